//! Clients that ask on whatever happens.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{Client, DEADLINE, eventually};

/// Requests that are due at fixed times, whatever became of those before: half on kept connections, half on fresh
/// ones.
pub(crate) struct OpenLoop {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl OpenLoop {
    const CLIENTS: usize = 12;
    /// Of one client; together they send 600 a second.
    const PERIOD: Duration = Duration::from_millis(20);

    pub(crate) fn start(address: SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |index: usize| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut kept: Option<Client> = None;
                let mut due = Instant::now() + Self::PERIOD * index as u32 / Self::CLIENTS as u32;
                while !stop.load(SeqCst) {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due += Self::PERIOD;
                    match request(&mut kept, address, index.is_multiple_of(2)) {
                        Ok(()) => drop(answered.fetch_add(1, SeqCst)),
                        Err(failure) => failures.push(failure),
                    }
                }
                failures
            })
        };
        let threads = (0..Self::CLIENTS).map(client).collect();
        Self { stop, answered, threads }
    }

    /// Waits until `count` more requests were answered.
    pub(crate) fn passes(&self, count: usize) {
        let target = self.answered.load(SeqCst) + count;
        eventually("requests go on", || self.answered.load(SeqCst) >= target);
    }

    /// What failed, in words.
    pub(crate) fn finish(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    }
}

/// One request. An answered `Connection: close` is followed, as every client does.
fn request(kept: &mut Option<Client>, address: SocketAddr, keeps: bool) -> Result<(), String> {
    let reused = kept.is_some();
    let mut client = match kept.take() {
        Some(client) => client,
        None => connect(address)?,
    };
    let sent = client.stream.write_all(b"GET /app/x HTTP/1.1\r\nHost: test\r\n\r\n");
    sent.map_err(|error| format!("send (reused: {reused}): {error}"))?;
    let response = client.try_response(false).ok_or_else(|| format!("no answer (reused: {reused})"))?;
    if response.status != 200 || !response.complete {
        return Err(response.head);
    }
    if keeps && response.field("connection") != Some("close") {
        *kept = Some(client);
    }
    Ok(())
}

fn connect(address: SocketAddr) -> Result<Client, String> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE);
    stream.map(Client::over).map_err(|error| format!("connect: {error}"))
}
