//! Moving a body from one socket to another.

use std::time::Duration;

use crate::buffer::Buffer;
use crate::http::{Body, Refusal};
use crate::socket::{Reader, Writer};

/// Bytes received at once while a body streams. Measured: from 96 to 112 KiB, backends wake about once per answer of 1
/// MiB, with 48 to 88 or 128 KiB four to ten times, and a byte costs up to twice as much CPU. One buffer is filled
/// while another is sent: 208 KiB for a connection.
pub(super) const STREAM_BYTES: usize = 104 << 10;
/// The same for an answer whose request still streams as well: 248 KiB for both.
pub(super) const BESIDE_BYTES: usize = 20 << 10;
/// Receives of at least this much are worth it even when less is expected.
const RECEIVE_BYTES_MIN: usize = 4 << 10;

/// Why a body did not arrive.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The sender closed or broke off.
    Read,
    /// The sender made no progress for too long.
    ReadTooSlow,
    /// The sender broke the framing.
    Framing(Refusal),
    /// The receiver closed, broke off or made no progress.
    Write,
}

/// Moves what belongs to `body` from `inbound` to the end of `sending`, as content only if `unchunked`. What is left
/// in `inbound` belongs to something else.
pub(crate) fn take_ready(
    inbound: &mut Buffer,
    sending: &mut Buffer,
    body: &mut Body,
    unchunked: bool,
) -> Result<(), Refusal> {
    if inbound.is_empty() || body.is_done() {
        return Ok(());
    }
    if unchunked {
        let taken = body.advance_into(inbound.as_slice(), sending.end())?;
        inbound.consume(taken);
        return Ok(());
    }
    let taken = body.advance(inbound.as_slice())?;
    if taken == inbound.len() {
        inbound.append_to(sending);
    } else {
        sending.end().extend_from_slice(&inbound.as_slice()[..taken]);
        inbound.consume(taken);
    }
    Ok(())
}

/// Sends `sending`, then the rest of `body` as it comes, receiving the next piece of at most `piece_bytes` while one is
/// sent. Returns the buffer last sent, which can be sent again as long as it was the only one.
pub(crate) async fn pump(
    reader: &mut Reader,
    writer: &mut Writer,
    body: &mut Body,
    mut sending: Buffer,
    unchunked: bool,
    piece_bytes: usize,
    idle: Duration,
) -> (Result<(), PumpError>, Buffer) {
    loop {
        if let Err(refusal) = take_ready(&mut reader.inbound, &mut sending, body, unchunked) {
            return (Err(PumpError::Framing(refusal)), sending);
        }
        if body.is_done() {
            let (sent, sending) = writer.send(sending, idle).await;
            return (sent.map_err(|_| PumpError::Write), sending);
        }
        reader.inbound.reserve(piece(body, piece_bytes));
        let ((sent, sent_buffer), received) = monoio::join!(writer.send(sending, idle), reader.receive(idle));
        sending = sent_buffer;
        if sent.is_err() {
            return (Err(PumpError::Write), sending);
        }
        sending.clear();
        match received {
            Ok(0) if reader.is_overdue() => return (Err(PumpError::ReadTooSlow), sending),
            Ok(0) if *body == Body::UntilClose => return (Ok(()), sending),
            Ok(0) | Err(_) => return (Err(PumpError::Read), sending),
            Ok(_) => {}
        }
    }
}

/// How much to receive next.
fn piece(body: &Body, piece_bytes: usize) -> usize {
    match body {
        Body::Length(left) => {
            usize::try_from(*left).unwrap_or(usize::MAX).clamp(RECEIVE_BYTES_MIN, piece_bytes)
        }
        _ => piece_bytes,
    }
}
