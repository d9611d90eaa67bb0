//! What threads share, checked by loom under every order of its operations (up to a number of preemptions):
//!
//! ```text
//! RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test --release -p select --test model --target-dir target/loom
//! ```
#![cfg(loom)]
#![allow(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which then moves by itself"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use select::{Backend, Cluster, Ejection, Health, Limits, Outcome, PolicyKind, Queue, View};

const MS: Duration = Duration::from_millis(1);

fn view(size: usize, ejection: Ejection, start: Instant) -> Arc<View> {
    let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
    Arc::new(View::new(backends, ejection))
}

fn quick_to_eject() -> Ejection {
    Ejection { failures_in_row: 1, ..Ejection::default() }
}

#[test]
fn every_ticket_is_counted_once_and_an_estimate_is_one_that_was_learnt() {
    loom::model(|| {
        let start = Instant::now();
        let view = view(2, Ejection::default(), start);
        let threads: Vec<_> = (0..2)
            .map(|seed| {
                let view = Arc::clone(&view);
                loom::thread::spawn(move || {
                    let mut cluster = Cluster::new(view, PolicyKind::default(), seed);
                    let ticket = cluster.pick(start + MS).expect("up");
                    cluster.finish(ticket, Outcome::Success, start + 3 * MS);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let backends = view.backends();
        assert!(backends.iter().all(|backend| backend.in_flight() == 0));
        // One or two answers of 2 ms with nobody or one other in flight; a sample may be dropped, not distorted.
        for backend in backends {
            let latency_ns = backend.estimate(start + 3 * MS).latency_per_request_ns;
            assert!([0.0, 1e6, 2e6, 4e6 / 3.0].contains(&latency_ns), "{latency_ns}");
        }
    });
}

#[test]
fn threads_that_fail_at_once_do_not_eject_more_than_their_share() {
    loom::model(|| {
        let start = Instant::now();
        let view = view(2, quick_to_eject(), start);
        let threads: Vec<_> = (0..2)
            .map(|backend: usize| {
                let view = Arc::clone(&view);
                loom::thread::spawn(move || {
                    let mut cluster = Cluster::new(view, PolicyKind::LeastOutstanding, backend as u64);
                    let ticket = cluster.pick_other(&[1 - backend], start).expect("up");
                    cluster.finish(ticket, Outcome::Failure, start);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let ejected = view.backends().iter().filter(|b| b.health(start) == Health::Ejected).count();
        assert_eq!(ejected, 1, "half of two");
    });
}

#[test]
fn backend_on_trial_gets_one_request_of_two_threads() {
    loom::model(|| {
        let start = Instant::now();
        let view = view(2, quick_to_eject(), start);
        let mut cluster = Cluster::new(Arc::clone(&view), PolicyKind::LeastOutstanding, 0);
        let ticket = cluster.pick_other(&[1], start).expect("up");
        cluster.finish(ticket, Outcome::Failure, start);
        // Its second is over, and its probes are the quicker ones.
        view.backends()[0].probed(MS);
        view.backends()[1].probed(2 * MS);
        let now = start + Duration::from_secs(2);
        let threads: Vec<_> = (0..2)
            .map(|seed| {
                let view = Arc::clone(&view);
                loom::thread::spawn(move || {
                    let mut cluster = Cluster::new(view, PolicyKind::ProbeArgmin, seed);
                    let ticket = cluster.pick(now).expect("up");
                    // Not finished: both are under way at the same time.
                    ticket.backend()
                })
            })
            .collect();
        let chosen: Vec<usize> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        let trials = chosen.iter().filter(|&&backend| backend == 0).count();
        assert_eq!(trials, 1, "{chosen:?}");
        assert_eq!(view.backends()[0].in_flight() as usize, trials);
    });
}

#[test]
fn whoever_finds_no_room_and_waits_is_told_of_the_room_that_comes() {
    loom::model(|| {
        let start = Instant::now();
        let limits = Limits { deadline: Duration::from_secs(1), learns: true, in_flight_max: 1 };
        let view =
            Arc::new(Arc::into_inner(view(1, Ejection::default(), start)).expect("new").limited(limits));
        let queue = Arc::new(Queue::new(1));
        let mut cluster = Cluster::new(Arc::clone(&view), PolicyKind::LeastOutstanding, 0);
        let ticket = cluster.pick(start).expect("room for one");
        let waiting = {
            let (view, queue) = (Arc::clone(&view), Arc::clone(&queue));
            loom::thread::spawn(move || {
                let mut cluster = Cluster::new(view, PolicyKind::LeastOutstanding, 1);
                if cluster.pick(start).is_some() {
                    return true;
                }
                let place = queue.join(()).expect("room to wait");
                queue.is_first(place) && cluster.pick(start).is_some()
            })
        };
        cluster.finish(ticket, Outcome::Success, start + MS);
        let told = !queue.is_empty();
        let served = waiting.join().expect("no panic");
        assert!(served || told);
    });
}
