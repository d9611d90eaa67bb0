//! For measurements: what goes to the instances shares one uplink of a given rate, as from a home to a cloud.
//!
//! Only the SSH servers' side is held back. What instances send each other and what they send back is not.

use std::{
    io,
    pin::Pin,
    sync::{LazyLock, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// In Mbit/s; read by the agent when it starts. Without it nothing is held back.
pub(super) const VARIABLE: &str = "LABHOST_LOCAL_UPLINK_MBIT";

/// Taken at a time: so little that connections share a slow uplink evenly.
const CHUNK_BYTES: usize = 4 << 10;

/// An agent is one lab's.
static UPLINK: LazyLock<Option<Uplink>> = LazyLock::new(|| Uplink::new(&std::env::var(VARIABLE).ok()?));

#[derive(Debug)]
struct Uplink {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
}

impl Uplink {
    fn new(mbit: &str) -> Option<Self> {
        let bytes_per_second = mbit.parse::<f64>().ok()? * 1e6 / 8.0;
        let is_rate = bytes_per_second.is_finite() && bytes_per_second >= 1.0;
        is_rate.then(|| Self { bytes_per_second, free_at: Mutex::new(Instant::now()) })
    }

    /// When these bytes will have passed, behind all that were taken before.
    fn take(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let passing = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        *free_at = Instant::now().max(*free_at) + passing;
        *free_at
    }
}

/// A connection whose input comes over the uplink.
pub(super) struct Linked {
    stream: TcpStream,
    uplink: Option<&'static Uplink>,
    /// While what was read last is on its way.
    passing: Option<Pin<Box<Sleep>>>,
}

impl Linked {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, uplink: UPLINK.as_ref(), passing: None }
    }
}

impl AsyncRead for Linked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(uplink) = self.uplink else {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        };
        if let Some(passing) = &mut self.passing {
            ready!(passing.as_mut().poll(cx));
            self.passing = None;
        }
        let mut chunk = [0; CHUNK_BYTES];
        let mut chunk = ReadBuf::new(&mut chunk[..CHUNK_BYTES.min(buf.remaining())]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
        buf.put_slice(chunk.filled());
        self.passing = Some(Box::pin(sleep_until(uplink.take(chunk.filled().len()))));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Linked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
