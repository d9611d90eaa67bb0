//! Clients that go on whatever happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::{Client, eventually};

/// Clients that send requests until told to stop and count what failed.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Half of the clients keep their connections, half open one per request. An answered `Connection: close` is
    /// followed, as every client does.
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..clients)
            .map(|index| {
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                std::thread::spawn(move || {
                    let mut failures = Vec::new();
                    let mut client: Option<Client> = None;
                    while !stop.load(SeqCst) {
                        let mut current = client.take().unwrap_or_else(|| Client::connect(address));
                        current.send("GET /app/x HTTP/1.1\r\nHost: test\r\n\r\n");
                        sent.fetch_add(1, SeqCst);
                        match current.try_response(false) {
                            Some(response) if response.status == 200 && response.complete => {
                                let keep = response.field("connection") != Some("close") && index % 2 == 0;
                                client = keep.then_some(current);
                            }
                            Some(response) => failures.push(response.head),
                            None => failures.push("no answer".to_owned()),
                        }
                    }
                    failures
                })
            })
            .collect();
        Self { stop, sent, threads }
    }

    /// Waits until `count` more requests were sent.
    pub fn passes(&self, count: usize) {
        let target = self.sent.load(SeqCst) + count;
        eventually("requests go on", || self.sent.load(SeqCst) >= target);
    }

    /// What failed, in words.
    pub fn finish(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    }
}
