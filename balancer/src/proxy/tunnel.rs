//! A connection after 101: bytes both ways, of which nothing is understood.
//!
//! This module does not decide whether a client may have a tunnel, and does not count one as a request in flight: its
//! backend has answered.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Client;
use crate::buffer::Buffer;
use crate::pool::Upstream;
use crate::site::Shared;
use crate::socket::{Reader, Writer};
use crate::thread::{Count, Thread};
use crate::watch::Deadline;

/// Bytes received at once. One such buffer per direction is filled or being sent: 32 KiB for a tunnel.
const PIECE_BYTES: usize = 16 << 10;

/// Sends `head` to the client, then moves bytes both ways until both sides have ended, one breaks off, or neither has
/// sent anything for `idle`. The end of one direction is passed on and the other goes on. A drain ends the client's
/// direction at its deadline, and the process then ends the rest.
pub(super) async fn tunnel(
    client: &mut Client,
    thread: &Thread,
    mut upstream: Upstream,
    head: Buffer,
    idle: Duration,
) {
    let _open = Open::new(thread);
    let (sent, head) = client.writer.send(head, idle).await;
    thread.give_buffer(head);
    if sent.is_err() {
        return;
    }
    let both = [client.reader.deadline(), upstream.reader.deadline()];
    arm(&both, idle);
    monoio::join!(
        one_way(&mut client.reader, &mut upstream.writer, &both, idle),
        one_way(&mut upstream.reader, &mut client.writer, &both, idle)
    );
    for deadline in &both {
        deadline.disarm();
    }
}

fn arm(both: &[Deadline; 2], idle: Duration) {
    for deadline in both {
        deadline.arm(idle);
    }
}

/// Moves bytes until the sender ends. If anything else happens, both connections are broken off.
async fn one_way(reader: &mut Reader, writer: &mut Writer, both: &[Deadline; 2], idle: Duration) {
    let mut sending = Buffer::default();
    loop {
        reader.inbound.append_to(&mut sending);
        let (sent, buffer) = writer.send(sending, idle).await;
        sending = buffer;
        sending.clear();
        reader.inbound.clear();
        reader.inbound.reserve(PIECE_BYTES);
        let received = if sent.is_ok() { reader.receive_untimed().await } else { sent.map(|()| 0) };
        match received {
            Ok(0) if !reader.is_overdue() => return writer.finish(),
            Ok(0) | Err(_) => {
                reader.break_off();
                return writer.break_off();
            }
            Ok(_) => arm(both, idle),
        }
    }
}

/// One tunnel in the counters.
struct Open(Arc<Shared>);

impl Open {
    fn new(thread: &Thread) -> Self {
        thread.count(Count::Tunnel);
        thread.shared.totals.tunnels.fetch_add(1, Relaxed);
        Self(Arc::clone(&thread.shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.totals.tunnels.fetch_sub(1, Relaxed);
    }
}
