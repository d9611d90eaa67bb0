//! The benchmark against servers whose behaviour is known: what it reports must be what they did.

use std::{
    future::Future,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
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

mod open;

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

/// Every request fails in this way, and nothing else happens.
async fn check_fault(server: &Server, kind: &str, options: Options) -> Report {
    let report = run(&server.url(), &options).await;
    let lines = report.errors.iter();
    let kinds: Vec<_> = lines.map(|line| (line.kind.as_str(), line.side.as_str(), line.count)).collect();
    assert_eq!(kinds, [(kind, "server", options.requests.unwrap())]);
    assert!(!report.errors[0].sample.is_empty());
    assert_eq!((report.counts.ok, report.verdict), (0, Verdict::Failed));
    report
}

async fn check_held_at_once(count: u64) {
    let report = run(&Server::holding(count as usize).url(), &burst(count)).await;
    assert_eq!((report.counts.ok, report.verdict), (count, Verdict::Transient));
}

#[tokio::test]
async fn a_burst_of_1000_is_in_flight_all_at_once() {
    // The server needs as many descriptors as the client, in the same process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    check_held_at_once(1000).await;
}

#[tokio::test]
async fn closed_connections_are_in_flight_all_at_once() {
    let report = run(&Server::holding(100).url(), &closed(100, 100)).await;
    assert_eq!(report.counts.ok, 100);
}

#[tokio::test]
#[ignore = "run by the tests below, in a process with a low limit"]
async fn child_runs_a_burst_of_400() {
    check_held_at_once(400).await;
}

#[tokio::test]
#[ignore = "run by the tests below, in a process with a low limit"]
async fn child_is_refused_a_burst_of_400() {
    let (sent, mut is_sent) = mpsc::unbounded_channel();
    let server = Server::start(move |_, _| {
        let sent = sent.clone();
        async move { sent.send(()).unwrap() }
    });
    let error = bench::http(&server.url(), &burst(400), &|_| {}).await.unwrap_err();
    assert!(error.message.contains("RLIMIT_NOFILE") && error.message.contains("256"), "{error}");
    assert!(error.hint.unwrap().contains("ulimit -Hn"));
    // A connection made later than anything the benchmark might have made is the first to arrive.
    let mark = TcpStream::connect(server.address).await.unwrap();
    timeout(DEADLINE, is_sent.recv()).await.unwrap().unwrap();
    assert!(is_sent.try_recv().is_err(), "nothing was sent before the error");
    drop(mark);
}

/// Runs one of this file's ignored tests under a shell's `ulimit`.
#[track_caller]
fn check_child(ulimit: &str, test: &str) {
    let script = format!("{ulimit} && exec \"$0\" --exact {test} --ignored");
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh").args(["-c", &script]).arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_low_soft_limit_is_raised() {
    check_child("ulimit -Sn 256", "child_runs_a_burst_of_400");
}

#[test]
fn a_low_hard_limit_is_named_before_anything_is_sent() {
    check_child("ulimit -n 256", "child_is_refused_a_burst_of_400");
}

#[tokio::test]
async fn no_sample_is_shorter_than_the_service_time() {
    for options in [burst(5), closed(3, 15), open(8)] {
        let report = run(&Server::fifo(10).url(), &options).await;
        let ok = report.latency_ms.ok.unwrap();
        assert!(ok.min >= 10.0, "{ok:?}");
        assert!(ok.min <= ok.p50 && ok.p50 <= ok.p90 && ok.p90 <= ok.p99 && ok.p99 <= ok.max, "{ok:?}");
        assert!(ok.min <= ok.mean && ok.mean <= ok.max, "{ok:?}");
    }
}

#[tokio::test]
async fn a_burst_waits_in_the_queue_that_it_made() {
    let report = run(&Server::fifo(5).url(), &burst(20)).await;
    let ok = report.latency_ms.ok.unwrap();
    // The k-th answer cannot come before k services are over.
    assert!(ok.max >= 100.0 && ok.p50 >= 50.0 && ok.mean >= 52.5, "{ok:?}");
    assert!(report.requests_per_second <= 200.0 && report.window_s >= 0.1, "{report:?}");
}

#[tokio::test]
async fn a_closed_loop_is_bound_by_its_connections() {
    let report = run(&Server::fifo(5).url(), &closed(4, 24)).await;
    // Six requests of each connection, and no two services at once.
    assert!(report.latency_ms.ok.unwrap().max >= 20.0 && report.wall_s >= 0.12, "{report:?}");
    assert!(report.requests_per_second <= 200.0, "{report:?}");
}

#[tokio::test]
async fn statuses_that_are_not_2xx_are_http_errors() {
    for (status, kind) in [(302, "status_3xx"), (404, "status_4xx"), (503, "status_5xx")] {
        let server = Server::answering(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nno"));
        for options in [burst(5), closed(2, 5), open(5)] {
            let report = check_fault(&server, kind, options).await;
            assert_eq!((report.counts.http_error, report.status[&status]), (5, 5));
            assert_eq!((report.requests_per_second, report.backends[0].errors), (0.0, 5));
            assert!(report.answers_per_second > 0.0);
        }
    }
}

#[tokio::test]
async fn broken_answers_have_their_kinds() {
    let cases = [
        ("", "reset_before_response"),
        ("HTTP/1.1 200 OK\r\nContent-", "eof_in_headers"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "eof_in_headers"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", "eof_in_body"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "eof_in_body"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "bad_http"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "bad_http"),
    ];
    for (bytes, kind) in cases {
        let server = Server::closing_after(bytes);
        for options in [burst(5), closed(2, 5), open(5)] {
            let report = check_fault(&server, kind, options).await;
            assert_eq!(report.counts.transport_error, 5, "{bytes:?}");
        }
    }
}

#[tokio::test]
async fn a_head_without_end_is_bad_http() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000));
    check_fault(&Server::answering(endless), "bad_http", burst(3)).await;
}

#[tokio::test]
async fn a_reset_before_an_answer_has_its_kind() {
    let server = Server::start(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    check_fault(&server, "reset_before_response", burst(5)).await;
}

#[tokio::test]
async fn a_reset_while_sending_has_its_kind() {
    let server = Server::start(|_, mut stream| async move {
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    });
    let options = Options { method: "POST".to_owned(), body: Some("x".repeat(1 << 20)), ..burst(3) };
    let report = run(&server.url(), &options).await;
    assert_eq!(report.counts.transport_error, 3);
    // The kernel may have taken all of the body before the reset comes.
    let expected = ["write_broken", "reset_before_response"];
    assert!(report.errors.iter().all(|line| expected.contains(&line.kind.as_str())), "{:?}", report.errors);
}

#[tokio::test]
async fn a_refused_connection_has_its_kind() {
    // Bound and not listening: nobody else can have the port meanwhile.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    for options in [burst(5), closed(2, 6), open(5)] {
        let report = run(&url, &options).await;
        assert_eq!(report.errors[0].kind, "connect_refused");
        assert_eq!(report.counts.transport_error, options.requests.unwrap());
    }
}

#[tokio::test]
async fn a_full_listen_queue_gives_connect_timeouts() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let options = Options { timeout: span("400ms"), connect_timeout: span("200ms"), ..burst(20) };
    let report = run(&format!("http://{}/", listener.local_addr().unwrap()), &options).await;
    assert_eq!(report.counts.timeout, 20);
    let kinds: Vec<_> = report.errors.iter().map(|line| line.kind.as_str()).collect();
    assert_eq!(kinds, ["connect_timeout", "ttfb_timeout"]);
}

#[tokio::test]
async fn a_timeout_is_a_sample_at_its_age() {
    let silent = Server::start(|_, mut stream| async move { while read_request(&mut stream).await {} });
    let stuck = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello");
    for (server, kind) in [(silent, "ttfb_timeout"), (stuck, "total_timeout")] {
        for options in [burst(5), closed(2, 5), open(5)] {
            let options = Options { timeout: span("50ms"), ..options };
            let report = check_fault(&server, kind, options).await;
            assert_eq!(report.counts.timeout, 5);
            assert!(report.latency_ms.all.unwrap().min >= 50.0 && report.errors[0].latency_ms.p50 >= 50.0);
            assert!(report.latency_ms.ok.is_none());
        }
    }
}

#[tokio::test]
async fn bytes_that_trickle_do_not_extend_the_timeout() {
    let server = Server::start(|_, mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    check_fault(&server, "total_timeout", Options { timeout: span("60ms"), ..burst(3) }).await;
}

#[tokio::test]
async fn every_framing_is_read_to_its_end() {
    let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    let answers = [
        HELLO.to_owned(),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        format!("{hints}{HELLO}"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
    ];
    for answer in answers {
        let report = run(&Server::answering(answer.clone()).url(), &closed(2, 20)).await;
        assert_eq!((report.counts.ok, report.stale_keepalive), (20, 0), "{answer:?}");
        assert_eq!(report.connect_ms.unwrap().count, 2, "{answer:?}");
    }
}

#[tokio::test]
async fn answers_that_end_with_the_connection_are_complete() {
    let closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    for answer in ["HTTP/1.1 200 OK\r\n\r\nhello", closing] {
        let report = run(&Server::closing_after(answer).url(), &closed(2, 20)).await;
        assert_eq!((report.counts.ok, report.stale_keepalive), (20, 0));
        assert_eq!(report.connect_ms.unwrap().count, 20);
    }
}

#[tokio::test]
async fn an_answer_byte_by_byte_is_read() {
    let server = Server::start(|_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        while read_request(&mut stream).await {
            for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" {
                let _ = stream.write_u8(*byte).await;
            }
        }
    });
    assert_eq!(run(&server.url(), &closed(2, 10)).await.counts.ok, 10);
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let server = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let report = run(&server.url(), &Options { method: "HEAD".to_owned(), ..closed(1, 10) }).await;
    assert_eq!((report.counts.ok, report.connect_ms.unwrap().count), (10, 1));
}

#[tokio::test]
async fn bytes_after_an_answer_are_not_taken_for_the_next_one() {
    let server = Server::answering(format!("{HELLO}HTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n"));
    let report = run(&server.url(), &closed(1, 10)).await;
    assert_eq!((report.counts.ok, report.counts.http_error), (10, 0));
}

#[tokio::test]
async fn a_large_body_is_drained() {
    let size = 3_000_000;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{}", "x".repeat(size));
    assert_eq!(run(&Server::answering(answer).url(), &closed(2, 6)).await.counts.ok, 6);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_no_error() {
    let report = run(&Server::closing_after(HELLO).url(), &closed(2, 40)).await;
    assert_eq!((report.counts.ok, report.counts.errors()), (40, 0));
    assert_eq!((report.stale_keepalive, report.connect_ms.unwrap().count), (38, 40));
}

#[tokio::test]
async fn a_post_is_not_sent_twice() {
    let report_options = Options { method: "POST".to_owned(), ..closed(1, 10) };
    let report = run(&Server::closing_after(HELLO).url(), &report_options).await;
    assert_eq!((report.counts.ok, report.counts.transport_error), (5, 5));
    assert_eq!((report.stale_keepalive, report.connect_ms.unwrap().count), (0, 5));
}

/// Answers the requests of each connection by its number: two backends, and every third by the balancer itself.
fn balanced(served: &Arc<[AtomicU64; 3]>) -> Server {
    let served = Arc::clone(served);
    Server::start(move |index, mut stream| {
        let served = Arc::clone(&served);
        let (status, field) = match index % 3 {
            2 => (503, String::new()),
            backend => (200, format!("X-Instance-Id: i-{backend}\r\n")),
        };
        async move {
            while read_request(&mut stream).await {
                served[index % 3].fetch_add(1, SeqCst);
                let answer = format!("HTTP/1.1 {status} X\r\n{field}Content-Length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
}

#[tokio::test]
async fn backends_are_told_apart_by_the_header() {
    let served = Arc::default();
    let report = run(&balanced(&served).url(), &closed(9, 300)).await;
    let served = served.each_ref().map(|count| count.load(SeqCst));
    for (id, count) in ["i-0", "i-1", "(none)"].iter().zip(served) {
        let line = report.backends.iter().find(|line| line.id == *id).unwrap();
        assert_eq!((line.count, line.errors), (count, if *id == "(none)" { count } else { 0 }));
        assert!((line.share - count as f64 / 300.0).abs() < 1e-5);
    }
    assert_eq!((report.counts.ok, report.counts.http_error), (served[0] + served[1], served[2]));
}

#[tokio::test]
async fn every_request_is_accounted_for_when_everything_happens() {
    let server = Server::start(|index, mut stream| async move {
        read_request(&mut stream).await;
        match index % 4 {
            0 => {}
            1 => drop(stream.read_u8().await),
            2 => drop(stream.write_all(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n").await),
            _ => drop(stream.write_all(HELLO.as_bytes()).await),
        }
    });
    // Long enough for the other three quarters on any machine.
    let report = run(&server.url(), &Options { timeout: span("2s"), ..burst(200) }).await;
    let counts = report.counts;
    assert_eq!([counts.ok, counts.http_error, counts.transport_error, counts.timeout], [50; 4]);
    assert!(report.reasons.iter().any(|reason| reason.contains("150 of 200")), "{:?}", report.reasons);
}

#[tokio::test]
async fn a_duration_ends_the_run_before_its_requests_are_sent() {
    let options = Options { duration: Some(span("60ms")), ..closed(1, 1000) };
    let report = run(&Server::fifo(10).url(), &options).await;
    assert_eq!((report.counts.scheduled, report.counts.errors()), (1000, 0));
    assert!(report.counts.unsent >= 994 && report.counts.ok >= 1, "{:?}", report.counts);
    assert_eq!((report.window_s, report.verdict), (0.06, Verdict::TooShort));
}

#[tokio::test]
async fn only_answers_within_the_window_count_for_the_rate() {
    let duration = Some(span("90ms"));
    let options = Options { mode: Mode::Closed, connections: Some(3), duration, ..Options::default() };
    let report = run(&Server::fifo(60).url(), &options).await;
    // All are sent at the start; the second and third answers come after the end, and still are samples.
    assert!(report.counts.ok >= 3, "{:?}", report.counts);
    assert!(report.requests_per_second <= 1.0 / 0.09 + 0.001, "{}", report.requests_per_second);
    assert!(report.latency_ms.ok.unwrap().max >= 180.0);
}

#[tokio::test]
async fn progress_counts_up_to_the_total() {
    let seen = Mutex::new(Vec::new());
    let server = Server::fifo(10);
    let record = |progress| seen.lock().unwrap().push(progress);
    timeout(DEADLINE, bench::http(&server.url(), &closed(1, 45), &record)).await.unwrap().unwrap();
    let seen: Vec<bench::Progress> = seen.into_inner().unwrap();
    assert!(seen.iter().all(|progress| progress.total == Some(45) && progress.done <= 45));
    assert!(seen.is_sorted_by_key(|progress| progress.done), "{seen:?}");
    assert_eq!(seen.last().unwrap().done, 45);
}

#[tokio::test]
async fn a_cancelled_run_leaves_no_connection() {
    let (held, mut is_held) = mpsc::unbounded_channel();
    let (ended, mut is_ended) = mpsc::unbounded_channel();
    let server = Server::start(move |_, mut stream| {
        let (held, ended) = (held.clone(), ended.clone());
        async move {
            read_request(&mut stream).await;
            let _ = held.send(());
            assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
            let _ = ended.send(());
        }
    });
    for options in [burst(200), closed(200, 1_000_000), open(200)] {
        let url = server.url();
        let all_held = async {
            for _ in 0..200 {
                is_held.recv().await.unwrap();
            }
        };
        let cancelled = async {
            tokio::select! {
                _ = bench::http(&url, &options, &|_| {}) => panic!("no request is answered"),
                () = all_held => {}
            }
        };
        timeout(DEADLINE, cancelled).await.expect("all connections are held in time");
        for _ in 0..200 {
            timeout(DEADLINE, is_ended.recv()).await.expect("the client closes in time").unwrap();
        }
    }
}

/// A good burst with a name that is awkward to print, one that fails, a closed and an open loop.
async fn four_reports() -> Vec<Report> {
    let good = Server::answering("HTTP/1.1 200 OK\r\nX-Instance-Id: a,\"b\"\r\nContent-Length: 0\r\n\r\n");
    let bad = Server::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort");
    let named = |name: &str, options| Options { name: Some(name.to_owned()), ..options };
    let awkward = "a, \"quoted\" name that is far too long for its column";
    vec![
        run(&good.url(), &named(awkward, burst(20))).await,
        run(&bad.url(), &named("bad", burst(20))).await,
        run(&good.url(), &named("loop", closed(2, 40))).await,
        run(&good.url(), &named("rate", open(40))).await,
    ]
}

#[tokio::test]
async fn a_table_is_plain_and_fits_100_columns() {
    let table = bench::table(&four_reports().await);
    assert!(table.lines().all(|line| line.len() <= 100 && line.trim_end() == line), "{table}");
    assert!(table.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()), "{table}");
    let words =
        ["p99", "eof_in_body", "100.0 %", "transient", "too_short", "failed", "burst:", "closed loop:"];
    for word in words.into_iter().chain(["open loop: 2000 requests/s", "from sending", "send lag"]) {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
    assert_eq!(bench::table(&[]), "");
}

/// Splits a line of CSV (RFC 4180) that has no line breaks in its fields.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut().unwrap().push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields
}

#[tokio::test]
async fn saved_files_hold_the_reports() {
    let reports = four_reports().await;
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("artifacts");
    bench::save(&reports[..1], &dir, "x-1").unwrap();
    let (json, csv) = bench::save(&reports, &dir, "x-1").unwrap();
    assert_eq!((&json, &csv), (&dir.join("bench-x-1.json"), &dir.join("bench-x-1.csv")));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "no temporary file stays");

    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(document["schema"], 1);
    let read: Vec<Report> = serde_json::from_value(document["reports"].clone()).unwrap();
    assert_eq!(read, reports);

    let text = std::fs::read_to_string(csv).unwrap();
    let rows: Vec<_> = text.lines().map(fields).collect();
    assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
    // A header, four targets, and a backend of each good one.
    assert_eq!(rows.len(), 1 + 4 + 3, "{text}");
    assert_eq!(rows[1][1], reports[0].name);
    assert_eq!((rows[2][0].as_str(), rows[2][5].as_str()), ("backend", "a,\"b\""));
    let of_open = |column: &str| rows[6][rows[0].iter().position(|name| name == column).unwrap()].clone();
    assert_eq!((of_open("mode").as_str(), of_open("offered_per_second").as_str()), ("open", "2000"));
    assert!(!of_open("service_p99_ms").is_empty() && !of_open("send_lag_p99_ms").is_empty(), "{text}");
}

#[tokio::test]
async fn a_name_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "../x", "a/b", "a b", "ü"] {
        let error = bench::save(&[], dir.path(), name).unwrap_err();
        assert_eq!(error.kind, labhost::Kind::Recipe, "{name:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn comparison_states_ratios_to_the_first() {
    let mut reports = four_reports().await;
    let mut twice = reports[0].clone();
    twice.requests_per_second *= 2.0;
    twice.latency_ms.ok.as_mut().unwrap().p99 *= 3.0;
    reports.push(twice);
    let comparison = bench::compare(&reports);
    assert_eq!((&comparison.baseline, comparison.pairs.len()), (&reports[0].name, 4));
    let last = &comparison.pairs[3];
    assert_eq!((last.requests_per_second, last.p50, last.p99), (Some(2.0), Some(1.0), Some(3.0)));
    assert!(last.words.contains("2.00 times the requests per second"), "{}", last.words);
    assert_eq!(comparison.pairs[0].p99, None);
    assert!(comparison.pairs[1].words.contains("not asked in the same way"));
    assert!(comparison.pairs[0].words.contains("the result of bad is failed"));
    // What an open loop reaches is what was asked for.
    let words = &bench::compare(&[reports[3].clone(), reports[3].clone()]).pairs[0].words;
    assert!(words.contains("1.00 times the p99") && !words.contains("requests per second"), "{words}");
    assert!(bench::compare(&[]).pairs.is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_hint() {
    for url in ["https://127.0.0.1/", "127.0.0.1", "http://127.0.0.1/a b"] {
        let error = bench::http(url, &burst(1), &|_| {}).await.unwrap_err();
        assert!(error.kind == labhost::Kind::Recipe && error.hint.is_some(), "{url}");
    }
    let error = bench::http("http://127.0.0.1/", &burst(0), &|_| {}).await.unwrap_err();
    assert_eq!(error.kind, labhost::Kind::Recipe);
}
