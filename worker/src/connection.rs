//! One connection: each request is read whole, answered, and the connection kept or closed as HTTP says.
//!
//! may_minihttp owns the socket and the loop; closing is done by shutting the socket, which that loop notices. Does
//! not know what an answer says.

use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
};

use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};
use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt};

use crate::{
    answer::Answer,
    request::{self, After},
    service::App,
};

pub(crate) struct Factory(pub(crate) &'static App);

pub(crate) struct Connection {
    app: &'static App,
    socket: RawFd,
    /// Nothing more is answered; bytes that were read already may still be parsed as requests.
    closing: bool,
}

impl HttpServiceFactory for Factory {
    type Service = Connection;

    /// may_minihttp gives the connection's descriptor as `id`.
    fn new_service(&self, id: usize) -> Connection {
        let connection = Connection { app: self.0, socket: id as RawFd, closing: false };
        // Else the answers to pipelined requests wait for an acknowledgement. Failure costs only time.
        let _ = sockopt::set_tcp_nodelay(connection.descriptor(), true);
        connection
    }
}

impl HttpService for Connection {
    fn call(&mut self, request: Request, out: &mut Response) -> io::Result<()> {
        if self.closing {
            out.status_code(400, "Bad Request");
            return Ok(());
        }
        match request::read(request) {
            Err(refused) => self.refuse(&refused),
            Ok(ask) => {
                self.app.write(self.app.answer(&ask), &ask, out);
                if ask.after == After::Close {
                    self.close(Shutdown::Read);
                }
            }
        }
        Ok(())
    }
}

impl Connection {
    /// Answers at once and closes. What follows in the buffer may not parse, and may_minihttp would then drop its own
    /// answer. Answers to requests pipelined before this one are lost; they are in a buffer that nobody can reach.
    fn refuse(&mut self, answer: &Answer) {
        let _ = send(self.descriptor(), self.app.refusal(answer).as_bytes(), SendFlags::NOSIGNAL);
        self.close(Shutdown::Both);
    }

    /// With `Shutdown::Read` may_minihttp still writes the answer before it sees the end of the stream.
    fn close(&mut self, how: Shutdown) {
        self.closing = true;
        let _ = shutdown(self.descriptor(), how);
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: may_minihttp calls this service only while the stream that owns the descriptor is alive.
        unsafe { BorrowedFd::borrow_raw(self.socket) }
    }
}
