//! The head of an answer: received, judged, and written as the client gets it.
//!
//! This module does not read bodies and does not send the final head.

use std::cell::Cell;
use std::time::Duration;

use super::plan::Meta;
use crate::buffer::Buffer;
use crate::config::Config;
use crate::error::Error;
use crate::http::{self, Body, Refusal};
use crate::pool::Keep;
use crate::socket::{Reader, Writer};

/// Interim answers (1xx) before the real one; a backend that sends more is broken.
const INTERIM_MAX: usize = 8;
/// What a receive of an answer's head asks for at least.
const ROOM_MIN: usize = 2 << 10;

/// The head of an answer, judged; its bytes, as the client gets them, may be in a buffer beside it.
pub(super) struct Head {
    pub(super) status: u16,
    /// Length of the head as received.
    pub(super) bytes: usize,
    pub(super) body: Body,
    pub(super) upstream: Keep,
    pub(super) client_persists: bool,
    /// The head goes to the client as it came, and was not copied.
    pub(super) in_place: bool,
    pub(super) unchunked: bool,
}

/// What the head of an answer is judged by.
pub(super) struct Expected<'a> {
    pub(super) meta: &'a Meta,
    pub(super) config: &'a Config,
    /// Whether the request was whole from the start, and whether its sending is under way.
    pub(super) whole: bool,
    pub(super) uploading: Cell<bool>,
    /// The protocols that the client offers to change to.
    pub(super) upgrade: Option<&'a [u8]>,
}

/// Receives until the head of the final answer is there. Interim answers are passed on, but for 100, which the
/// balancer sends itself.
pub(super) async fn receive_head(
    reader: &mut Reader,
    writer: &mut Writer,
    expected: &Expected<'_>,
    head_out: &mut Buffer,
) -> Result<Head, Error> {
    let (mut searched, mut interims) = (0, 0);
    loop {
        let bytes = reader.inbound.as_slice();
        let head = judge(bytes, searched, expected, head_out).map_err(Error::BadAnswer)?;
        searched = bytes.len();
        match head {
            Some(head) if head.status == 101 => return Ok(head),
            Some(head) if head.status < 200 => {
                interims += 1;
                if interims > INTERIM_MAX {
                    return Err(Error::BadAnswer(Refusal::Malformed("interim answer")));
                }
                if head.status != 100 && expected.meta.version == 1 {
                    let idle = expected.config.timeouts.body_idle;
                    let interim = if head.in_place { &bytes[..head.bytes] } else { head_out.as_slice() };
                    send_interim(writer, interim, idle).await?;
                }
                head_out.clear();
                reader.inbound.consume(head.bytes);
                searched = 0;
            }
            Some(head) => return Ok(head),
            None => receive_more(reader, interims == 0).await?,
        }
    }
}

/// `untouched` says that no answer was taken from this connection yet.
async fn receive_more(reader: &mut Reader, untouched: bool) -> Result<(), Error> {
    reader.inbound.reserve(ROOM_MIN);
    let before = reader.inbound.len();
    match reader.receive_untimed().await {
        Ok(0) | Err(_) if reader.is_abandoned() => Err(Error::ClientGone),
        Ok(0) if reader.is_overdue() => Err(Error::ResponseTimeout),
        Ok(0) | Err(_) if before == 0 && untouched => Err(Error::Died),
        Ok(0) | Err(_) => Err(Error::Truncated),
        Ok(_) => Ok(()),
    }
}

async fn send_interim(writer: &mut Writer, head: &[u8], idle: Duration) -> Result<(), Error> {
    let mut buffer = Buffer::with_capacity(head.len());
    buffer.end().extend_from_slice(head);
    writer.send(buffer, idle).await.0.map_err(|_| Error::ClientGone)
}

/// Parses an answer's head and writes what the client gets of it to `head_out`, unless it can be sent in place.
fn judge(
    bytes: &[u8],
    searched: usize,
    expected: &Expected<'_>,
    head_out: &mut Buffer,
) -> Result<Option<Head>, Refusal> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (meta, limits) = (expected.meta, &expected.config.limits.head);
    let mut space = http::space();
    let Some(response) = http::parse_response(bytes, searched, meta.is_head, limits, &mut space)? else {
        return Ok(None);
    };
    if response.status == 101 && !switches(expected, &response) {
        return Err(Refusal::Malformed("change of protocol that was not asked for"));
    }
    let upload_complete = expected.whole || !expected.uploading.get();
    let unchunked = meta.version == 0 && matches!(response.body, Body::Chunked(_));
    let client_persists = meta.persists && upload_complete && !unchunked && response.body != Body::UntilClose;
    let connection: Option<&[u8]> = match (client_persists, meta.version) {
        // The final answer says what becomes of the connection.
        _ if response.is_interim() => None,
        (false, _) => Some(b"close"),
        (true, 0) => Some(b"keep-alive"),
        (true, _) => None,
    };
    let in_place = !http::write_response(head_out.end(), &response, connection, meta.version);
    Ok(Some(Head {
        status: response.status,
        bytes: response.head_bytes,
        upstream: keep(&response, meta),
        client_persists,
        in_place,
        unchunked,
        body: response.body,
    }))
}

/// What may become of the backend's connection when all goes well.
fn keep(response: &http::Response<'_, '_>, meta: &Meta) -> Keep {
    if !response.persists {
        Keep::Close
    } else if meta.is_head || matches!(response.status, 204 | 304) {
        Keep::Resting
    } else {
        Keep::Ready
    }
}

/// Whether a 101 is to what the client offers, and the whole request was sent before.
fn switches(expected: &Expected<'_>, response: &http::Response<'_, '_>) -> bool {
    let both = expected.upgrade.zip(response.upgrade);
    !expected.uploading.get() && both.is_some_and(|(offered, chosen)| http::offers(offered, chosen))
}
