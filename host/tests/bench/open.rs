//! The open loop: what a target that stops, falls behind or never answers looks like to those who do not wait for it.

use std::sync::Arc;

use super::*;

/// How long the stalling server answers nobody.
const STALL_MS: u64 = 300;
/// It stalls when it has read so many requests.
const STALL_AT: u64 = 400;

/// Answers at once, but for one time when it answers nobody for a while.
struct Stalling {
    server: Server,
    /// Requests that it had read, and not answered, while it stalled.
    held: Arc<AtomicU64>,
}

impl Stalling {
    fn start() -> Self {
        let (read, stall, held) = (AtomicU64::new(0), RwLock::new(()), Arc::new(AtomicU64::new(0)));
        let (shared, counter) = (Arc::new((read, stall)), Arc::clone(&held));
        let server = Server::start(move |_, stream| {
            serve_but_stall(stream, Arc::clone(&shared), Arc::clone(&counter))
        });
        Self { server, held }
    }

    async fn run(&self, options: &Options) -> Report {
        run(&self.server.url(), options).await
    }
}

async fn serve_but_stall(mut stream: TcpStream, shared: Arc<(AtomicU64, RwLock<()>)>, held: Arc<AtomicU64>) {
    let (read, stall) = &*shared;
    while read_request(&mut stream).await {
        if read.fetch_add(1, SeqCst) == STALL_AT {
            let _all = stall.write().await;
            held.fetch_add(1, SeqCst);
            sleep(Duration::from_millis(STALL_MS)).await;
        } else if stall.try_read().is_err() {
            held.fetch_add(1, SeqCst);
        }
        let _one = stall.read().await;
        if stream.write_all(HELLO.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// 1000 requests, one each millisecond.
fn each_millisecond(connections: u64) -> Options {
    Options { rate: Some(1000.0), connections: Some(connections), ..open(1000) }
}

/// The 400 requests before the stall may be those with the shortest latencies; of the 300 that are due in it, the
/// n-th waits at least 300 - n milliseconds. A slow machine only makes them longer.
#[track_caller]
fn check_stall_is_seen(report: &Report) {
    let ok = report.latency_ms.ok.unwrap();
    assert_eq!(ok.count, 1000);
    assert!(ok.p90 >= 195.0 && ok.p95 >= 245.0 && ok.p99 >= 285.0 && ok.max >= 299.0, "{ok:?}");
    assert!(ok.mean >= 45.0, "{ok:?}");
}

#[tokio::test]
async fn a_stall_is_felt_by_all_who_came_in_it() {
    check_stall_is_seen(&Stalling::start().run(&each_millisecond(1000)).await);
}

#[tokio::test]
async fn a_stall_is_not_hidden_by_few_connections() {
    let server = Stalling::start();
    let report = server.run(&each_millisecond(1)).await;
    check_stall_is_seen(&report);
    // The server has kept one request waiting. The others were in the generator, which is not their service.
    let open = report.open.unwrap();
    assert_eq!(server.held.load(SeqCst), 1);
    assert!(report.service_ms.unwrap().mean < report.latency_ms.ok.unwrap().mean / 2.0, "{report:?}");
    assert!(open.queued_ms.unwrap().count >= 250 && open.connections == 1, "{open:?}");
    assert!(report.reasons.iter().any(|reason| reason.contains("all 1 connections busy")), "{report:?}");
}

#[tokio::test]
async fn a_closed_loop_hides_the_same_stall() {
    let server = Stalling::start();
    let report = server.run(&closed(1, 1000)).await;
    // Only the longest of 1000 latencies can show it, whatever the machine does.
    assert_eq!((server.held.load(SeqCst), report.counts.ok), (1, 1000));
    assert!(report.latency_ms.ok.unwrap().max >= 299.0, "{report:?}");
}

#[tokio::test]
async fn requests_do_not_wait_for_answers() {
    let report = run(&Server::holding(100).url(), &open(100)).await;
    assert_eq!((report.counts.ok, report.open.unwrap().connections), (100, 100));
}

#[tokio::test]
async fn connections_stay_within_their_bound() {
    let report = run(&Server::fifo(5).url(), &Options { connections: Some(2), ..open(20) }).await;
    let (ok, open) = (report.latency_ms.ok.unwrap(), report.open.unwrap());
    assert_eq!((ok.count, open.connections, report.connect_ms.unwrap().count), (20, 2, 2));
    // The last of them was due after 10 ms, and 20 services of 5 ms come before its end.
    assert!(ok.max >= 90.0 && open.queued_ms.unwrap().count >= 10, "{report:?}");
}

#[tokio::test]
async fn a_target_that_falls_behind_is_overloaded() {
    let options = Options { rate: Some(1000.0), requests: None, duration: Some(span("300ms")), ..open(1) };
    let report = run(&Server::fifo(5).url(), &options).await;
    assert_eq!((report.counts.scheduled, report.counts.ok, report.window_s), (300, 300, 0.3));
    // It can have served 60 by then, and those in the rate are no more.
    assert!(report.open.unwrap().unfinished >= 240 && report.requests_per_second <= 200.1, "{report:?}");
    assert_eq!(report.open.unwrap().offered_per_second, 1000.0);
    assert!(report.latency_ms.ok.unwrap().max >= 1200.0);
    // On a busy machine the generator may have been starved besides.
    assert!(matches!(report.verdict, Verdict::Overloaded | Verdict::ClientLimited), "{report:?}");
    assert!(report.reasons.iter().any(|reason| reason.contains("did not keep up")), "{report:?}");
}

#[tokio::test]
async fn what_never_had_a_connection_is_a_timeout_at_its_deadline() {
    let read = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&read);
    let silent = Server::start(move |_, mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            while read_request(&mut stream).await {
                counter.fetch_add(1, SeqCst);
            }
        }
    });
    let options = Options { rate: Some(20_000.0), connections: Some(1), timeout: span("50ms"), ..open(100) };
    let report = run(&silent.url(), &options).await;
    assert_eq!((report.counts.timeout, report.verdict), (100, Verdict::Failed));
    let never_sent = report.errors.iter().find(|line| line.kind == "queue_timeout").unwrap();
    assert!(never_sent.side == "client" && never_sent.count + read.load(SeqCst) <= 100, "{report:?}");
    let all = report.latency_ms.all.unwrap();
    assert!(all.count == 100 && all.min >= 50.0, "{all:?}");
}

#[tokio::test]
async fn figures_have_intervals_where_there_are_enough_samples() {
    let server = Server::answering(HELLO);
    let report = run(&server.url(), &open(1000)).await;
    let (ok, intervals) = (report.latency_ms.ok.unwrap(), report.interval_ms.unwrap());
    for (value, bounds) in [(ok.p50, intervals.p50), (ok.p90, intervals.p90), (ok.p99, intervals.p99)] {
        let bounds = bounds.unwrap();
        assert!(bounds.low <= value && bounds.high.is_none_or(|high| value <= high), "{report:?}");
    }
    assert!(intervals.p999.is_none() && bench::table(&[report]).contains("95 % from"));
    let few = run(&server.url(), &open(300)).await;
    assert!(few.interval_ms.unwrap().p99.is_none(), "{few:?}");
    let row = bench::table(std::slice::from_ref(&few)).lines().nth(2).unwrap().to_owned();
    assert_eq!(row.split_whitespace().nth(8), Some("-"), "p99 of 300 answers is not shown: {row}");
    assert_eq!(run(&server.url(), &burst(1000)).await.interval_ms, None);
}

#[tokio::test]
async fn a_given_warmup_is_left_out_of_all_figures() {
    let server = Server::answering(HELLO);
    let warmup = Some(Warmup::Fixed(span("50ms")));
    let options = Options { warmup, requests: None, duration: Some(span("200ms")), ..open(1) };
    let report = run(&server.url(), &Options { rate: Some(400.0), ..options }).await;
    // Of 100 that are due every 2.5 ms, the first 20 are in the first 50 ms.
    assert_eq!((report.warmup.requests, report.warmup.errors, report.warmup.cut_s), (20, 0, 0.05));
    assert_eq!((report.counts.scheduled, report.counts.ok, report.window_s), (80, 80, 0.2));
    assert_eq!((report.latency_ms.all.unwrap().count, report.backends[0].count), (80, 80));
    assert_eq!(report.open.unwrap().offered_per_second, 400.0);
    assert!(report.reasons.iter().any(|reason| reason.contains("0.05 s is left out, with 20")), "{report:?}");
}

#[tokio::test]
async fn a_run_that_ends_in_its_warmup_has_no_figures() {
    let server = Server::answering(HELLO);
    let warmup = Some(Warmup::Fixed(span("1m")));
    let report = run(&server.url(), &Options { warmup, ..closed(2, 50) }).await;
    assert_eq!((report.warmup.requests, report.counts.scheduled, report.verdict), (50, 0, Verdict::Failed));
    assert!(report.reasons.iter().any(|reason| reason.contains("ended in its warm-up")), "{report:?}");
}

#[tokio::test]
async fn littles_law_is_checked() {
    let server = Server::fifo(1);
    let all = run(&server.url(), &Options { rate: Some(200.0), ..open(60) }).await.little.unwrap();
    // All requests ended within the load's time at most, so nothing is left over at its ends.
    assert!(all.difference.abs() < 0.001 && all.in_flight > 0.0, "{all:?}");
    assert!(run(&server.url(), &closed(2, 50)).await.little.unwrap().difference.abs() < 0.001);
    assert_eq!(run(&server.url(), &burst(5)).await.little, None);
}

#[tokio::test]
async fn a_duration_ends_the_arrivals() {
    let server = Server::answering(HELLO);
    let options = |requests| Options { requests, duration: Some(span("50ms")), ..open(1) };
    // 2000 per second for 50 ms.
    assert_eq!(run(&server.url(), &options(None)).await.counts.scheduled, 100);
    let counts = run(&server.url(), &options(Some(1000))).await.counts;
    assert_eq!((counts.scheduled, counts.ok, counts.unsent), (1000, 100, 900));
}

#[tokio::test]
async fn a_seed_decides_how_many_come() {
    let server = Server::answering(HELLO);
    let mut counts = Vec::new();
    for seed in [7, 7, 8] {
        let arrivals = Some(Arrivals::Poisson);
        let options =
            Options { requests: None, duration: Some(span("50ms")), arrivals, seed: Some(seed), ..open(1) };
        let report = run(&server.url(), &options).await;
        assert_eq!(report.spec.seed, Some(seed));
        counts.push(report.counts.scheduled);
    }
    assert!(counts[0] == counts[1] && counts[0] != counts[2], "{counts:?}");
}
