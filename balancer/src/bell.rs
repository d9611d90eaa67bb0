//! How one thread tells another that there may be room for a request that waits there.
//!
//! monoio's wakers must not leave their thread, so each thread waits for a byte on a socket of its own.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release};

use monoio::io::AsyncReadRent;

/// A thread's bell, as others hold it.
#[derive(Debug)]
pub(crate) struct Bell {
    /// Rung and not heard yet: once is enough.
    rung: AtomicBool,
    sender: UnixStream,
}

/// The thread's own end.
#[derive(Debug)]
pub(crate) struct Hearing {
    receiver: UnixStream,
    bell: Arc<Bell>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<(Arc<Self>, Hearing)> {
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        let bell = Arc::new(Self { rung: AtomicBool::new(false), sender });
        Ok((Arc::clone(&bell), Hearing { receiver, bell }))
    }

    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, AcqRel) {
            // There is room for one byte. The thread may have ended, and then nobody waits there.
            let _ = (&self.sender).write(&[1]);
        }
    }
}

impl Hearing {
    /// Calls `hear` each time the bell was rung, for ever. `nonblocking` is what the driver needs.
    pub(crate) async fn listen(self, nonblocking: bool, mut hear: impl FnMut()) -> io::Result<()> {
        self.receiver.set_nonblocking(nonblocking)?;
        let mut receiver = monoio::net::UnixStream::from_std(self.receiver)?;
        let mut buffer = vec![0; 1];
        loop {
            let (result, returned) = receiver.read(buffer).await;
            buffer = returned;
            if result? == 0 {
                return Ok(());
            }
            // Before looking, so that whoever rings from now on is heard once more.
            self.bell.rung.store(false, Release);
            hear();
        }
    }
}
