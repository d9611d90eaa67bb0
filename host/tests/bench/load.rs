//! Bursts and closed loops: how many requests are in flight, what bounds them, and how a run ends.

use std::{process::Command, sync::Mutex};

use super::*;

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
    check_child("ulimit -Sn 256", "load::child_runs_a_burst_of_400");
}

#[test]
fn a_low_hard_limit_is_named_before_anything_is_sent() {
    check_child("ulimit -n 256", "load::child_is_refused_a_burst_of_400");
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

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_hint() {
    for url in ["https://127.0.0.1/", "127.0.0.1", "http://127.0.0.1/a b"] {
        let error = bench::http(url, &burst(1), &|_| {}).await.unwrap_err();
        assert!(error.kind == labhost::Kind::Recipe && error.hint.is_some(), "{url}");
    }
    let error = bench::http("http://127.0.0.1/", &burst(0), &|_| {}).await.unwrap_err();
    assert_eq!(error.kind, labhost::Kind::Recipe);
}
