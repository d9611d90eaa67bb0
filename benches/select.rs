//! What a choice costs: one pick and one finish, by policy, size of the cluster and number of threads, beside the
//! `tower` crate's P2C over peak-EWMA.
//!
//! `now` is given, moves by 10 us per choice and is not read from a clock, except under "with the clock read", which
//! is what to compare with tower: it reads the clock itself.

use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use select::{Backend, Cluster, Ejection, Limits, Outcome, PolicyKind, View};
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};

const SIZES: [usize; 6] = [2, 4, 8, 64, 256, 1000];

fn view(size: usize, start: Instant) -> Arc<View> {
    let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
    let limits = Limits { deadline: Duration::from_secs(30), learns: true, in_flight_max: u32::MAX };
    Arc::new(View::new(backends, Ejection::default()).limited(limits))
}

/// As in a busy balancer: half a request in flight per backend, and every backend has been measured.
fn busy(size: usize, policy: PolicyKind, start: Instant) -> Cluster {
    let view = view(size, start);
    for (index, backend) in view.backends().iter().enumerate() {
        backend.probed(Duration::from_micros(900 + index as u64 % 200));
    }
    let mut cluster = Cluster::new(view, policy, 1);
    for round in 0..4 * size as u32 {
        let ticket = cluster.pick(start).expect("all are up");
        cluster.finish(ticket, Outcome::Success, start + Duration::from_micros(u64::from(900 + round % 200)));
    }
    for _ in 0..size / 2 {
        // Left in flight for the whole measurement.
        let _ = cluster.pick(start);
    }
    cluster
}

fn once(cluster: &mut Cluster, now: &mut Instant) {
    *now += Duration::from_micros(10);
    let ticket = cluster.pick(black_box(*now)).expect("all are up");
    cluster.finish(ticket, Outcome::Success, *now + Duration::from_millis(1));
}

fn one_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish");
    for policy in PolicyKind::ALL {
        for size in SIZES {
            let start = Instant::now();
            let mut cluster = busy(size, policy, start);
            let mut now = start + Duration::from_millis(1);
            group.bench_function(BenchmarkId::new(policy.name(), size), |bencher| {
                bencher.iter(|| once(&mut cluster, &mut now));
            });
        }
    }
    group.finish();
}

fn with_the_clock_read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish with the clock read");
    for size in [8, 64] {
        let mut cluster = busy(size, PolicyKind::default(), Instant::now());
        group.bench_function(BenchmarkId::new(PolicyKind::default().name(), size), |bencher| {
            bencher.iter(|| {
                let ticket = cluster.pick(Instant::now()).expect("all are up");
                cluster.finish(ticket, Outcome::Success, Instant::now());
            });
        });
        group.bench_function(BenchmarkId::new("tower p2c peak-ewma", size), |bencher| {
            let mut balance = tower_balance(size);
            let mut context = Context::from_waker(Waker::noop());
            bencher.iter(|| {
                assert!(balance.poll_ready(&mut context).is_ready());
                let answer = pin!(balance.call(()));
                assert!(matches!(answer.poll(&mut context), Poll::Ready(Ok(()))));
            });
        });
    }
    group.finish();
}

/// A service that answers at once.
#[derive(Clone)]
struct Nothing;

impl Service<()> for Nothing {
    type Response = ();
    type Error = std::convert::Infallible;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

fn tower_balance(size: usize) -> Balance<ServiceList<Vec<PeakEwma<Nothing>>>, ()> {
    let service = || PeakEwma::new(Nothing, Duration::from_millis(30), 10e9, CompleteOnResponse::default());
    Balance::new(ServiceList::new((0..size).map(|_| service()).collect::<Vec<_>>()))
}

/// Threads that do nothing but choose, over one view: the worst case. The time is that of one choice on one thread.
fn contended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish, contended");
    for policy in PolicyKind::ALL {
        for threads in [2, 8] {
            group.bench_function(
                BenchmarkId::new(format!("{}, 8 backends", policy.name()), threads),
                |bencher| {
                    bencher.iter_custom(|rounds| together(policy, threads, rounds, Duration::ZERO));
                },
            );
        }
    }
    let spaced = BenchmarkId::new("one per 10 us and thread", 2);
    group.bench_function(spaced, |bencher| {
        bencher.iter_custom(|rounds| together(PolicyKind::default(), 2, rounds, Duration::from_micros(10)));
    });
    group.finish();
}

/// Runs `rounds` choices on each of `threads`, with so much other work before each, and returns the longest time that
/// a thread spent on choosing.
fn together(policy: PolicyKind, threads: u64, rounds: u64, apart: Duration) -> Duration {
    let start = Instant::now();
    let view = Arc::clone(busy(8, policy, start).view());
    let ready = Arc::new(Barrier::new(threads as usize));
    let workers: Vec<_> = (0..threads)
        .map(|seed| {
            let (view, ready) = (Arc::clone(&view), Arc::clone(&ready));
            std::thread::spawn(move || {
                let mut cluster = Cluster::new(view, policy, seed);
                let mut now = start + Duration::from_millis(1);
                ready.wait();
                if apart.is_zero() {
                    let begin = Instant::now();
                    (0..rounds).for_each(|_| once(&mut cluster, &mut now));
                    return begin.elapsed();
                }
                (0..rounds).map(|_| spaced(&mut cluster, &mut now, apart)).sum()
            })
        })
        .collect();
    workers.into_iter().map(|worker| worker.join().expect("no panic")).max().unwrap_or_default()
}

/// One choice after some time without; includes one read of the clock.
fn spaced(cluster: &mut Cluster, now: &mut Instant, apart: Duration) -> Duration {
    let idle = Instant::now();
    while idle.elapsed() < apart {
        std::hint::spin_loop();
    }
    let begin = Instant::now();
    once(cluster, now);
    begin.elapsed()
}

criterion_group!(benches, one_thread, with_the_clock_read, contended);
criterion_main!(benches);
