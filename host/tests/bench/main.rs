//! The benchmark against servers whose behaviour is known: what it reports must be what they did.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use labhost::bench::{self, Arrivals, Mode, Options, Report, Verdict, Warmup};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Barrier, RwLock, Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

mod answers;
mod capacity;
mod faults;
mod files;
mod load;
mod open;
mod rounds;
mod slo;

/// No run here takes more than a second on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A server on a port of its own, gone with all its connections when dropped.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Runs `handle` for each connection, numbered from 0.
    fn start<F, Fut>(handle: F) -> Self
    where
        F: Fn(usize, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(4096).unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for index in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(handle(index, stream));
            }
        });
        Self { address, task }
    }

    /// Answers every request on every connection with the same bytes.
    fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        Self::start(move |_, mut stream| {
            let bytes = Arc::clone(&bytes);
            async move { while read_request(&mut stream).await && stream.write_all(&bytes).await.is_ok() {} }
        })
    }

    /// Reads one request of each connection, sends these bytes and closes.
    fn closing_after(bytes: &'static str) -> Self {
        Self::start(move |_, mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(bytes.as_bytes()).await;
        })
    }

    /// Answers nobody until so many requests are held at once.
    fn holding(count: usize) -> Self {
        let barrier = Arc::new(Barrier::new(count));
        Self::start(move |_, mut stream| {
            let barrier = Arc::clone(&barrier);
            async move {
                if read_request(&mut stream).await {
                    barrier.wait().await;
                    let _ = stream.write_all(HELLO.as_bytes()).await;
                }
            }
        })
    }

    /// Serves one request at a time, each for `service_ms`.
    fn fifo(service_ms: u64) -> Self {
        let slot = Arc::new(Semaphore::new(1));
        Self::start(move |_, mut stream| {
            let slot = Arc::clone(&slot);
            async move {
                while read_request(&mut stream).await {
                    let permit = slot.acquire().await.unwrap();
                    sleep(Duration::from_millis(service_ms)).await;
                    drop(permit);
                    if stream.write_all(HELLO.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
    }

    fn url(&self) -> String {
        format!("http://{}/cluster1", self.address)
    }
}

/// Reads the head of a request without a body; false when the client closed.
async fn read_request(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}

fn burst(requests: u64) -> Options {
    Options { requests: Some(requests), ..Options::default() }
}

fn closed(connections: u64, requests: u64) -> Options {
    let (connections, requests) = (Some(connections), Some(requests));
    Options { mode: Mode::Closed, connections, requests, ..Options::default() }
}

/// So many requests, evenly spaced within a few milliseconds.
fn open(requests: u64) -> Options {
    let arrivals = Some(Arrivals::Constant);
    Options { mode: Mode::Open, rate: Some(2000.0), arrivals, requests: Some(requests), ..Options::default() }
}

fn span(text: &str) -> labhost::units::Span {
    text.parse().unwrap()
}

/// Runs a benchmark and checks what holds for every report.
async fn run(url: &str, options: &Options) -> Report {
    let report = timeout(DEADLINE, bench::http(url, options, &|_| {})).await.expect("ends in time").unwrap();
    let counts = report.counts;
    assert_eq!(counts.scheduled, counts.ok + counts.errors() + counts.unsent);
    assert_eq!(report.errors.iter().map(|line| line.count).sum::<u64>(), counts.errors());
    let count = |summary: Option<bench::Summary>| summary.map_or(0, |summary| summary.count);
    assert_eq!(count(report.latency_ms.ok), counts.ok);
    assert_eq!(count(report.latency_ms.all), counts.scheduled - counts.unsent);
    let answers = counts.ok + counts.http_error;
    assert_eq!(report.status.values().sum::<u64>(), answers);
    assert!(report.status_latency_ms.keys().eq(report.status.keys()));
    assert_eq!(report.backends.iter().map(|line| line.count).sum::<u64>(), answers);
    assert_eq!(count(report.service_ms), counts.ok);
    if let Some(open) = report.open {
        // Each request was late by the generator's fault, be it by nothing; some of them had to wait besides.
        assert_eq!(count(open.send_lag_ms), counts.scheduled - counts.unsent);
        assert!(count(open.queued_ms) <= counts.scheduled && open.connections <= report.spec.connections);
    }
    report
}
