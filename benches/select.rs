//! What a choice costs: one pick and one finish, by policy and size of the cluster.
//!
//! Caches are warm, and the time is given. Under contention a second thread does the same on the same view without
//! a pause, which is far more than balancer threads do to each other. tower's balancer reads the clock
//! itself, and its figure contains that; it is not measured under contention.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use select::{Backend, Cluster, Ejection, Outcome, PolicyKind, View};
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};

const SIZES: [usize; 6] = [2, 4, 8, 64, 256, 1000];
/// Between two choices: a thread that does little else.
const STEP: Duration = Duration::from_micros(10);

fn cluster(size: usize, policy: PolicyKind, start: Instant) -> Cluster {
    let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
    Cluster::new(Arc::new(View::new(backends, Ejection::default())), policy, 1)
}

/// As in a busy balancer: half a request in flight per backend, and every backend has been measured.
fn busy(size: usize, policy: PolicyKind, start: Instant) -> Cluster {
    let mut cluster = cluster(size, policy, start);
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
    *now += STEP;
    let ticket = cluster.pick(black_box(*now)).expect("all are up");
    cluster.finish(ticket, Outcome::Success, *now + Duration::from_millis(1));
}

fn pick_and_finish(criterion: &mut Criterion) {
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

/// Sets its flag when dropped, so that a bench that panics ends its second thread too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn contended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish beside a second thread");
    for policy in PolicyKind::ALL {
        for size in [8, 64] {
            let start = Instant::now();
            let mut cluster = busy(size, policy, start);
            let mut other = Cluster::new(Arc::clone(cluster.view()), policy, 2);
            let mut now = start + Duration::from_millis(1);
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let stop = Stop(&ended);
                scope.spawn(|| {
                    let mut now = start + Duration::from_millis(1);
                    while !ended.load(Relaxed) {
                        once(&mut other, &mut now);
                    }
                });
                group.bench_function(BenchmarkId::new(policy.name(), size), |bencher| {
                    bencher.iter(|| once(&mut cluster, &mut now));
                });
                drop(stop);
            });
        }
    }
    group.finish();
}

/// Answers at once.
struct Immediate;

impl Service<()> for Immediate {
    type Response = ();
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

fn tower_peer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tower");
    for size in SIZES {
        let measured = || {
            let (unknown, decay_ns) = (Duration::from_millis(30), 10e9);
            PeakEwma::new(Immediate, unknown, decay_ns, CompleteOnResponse::default())
        };
        let mut balance = Balance::new(ServiceList::new((0..size).map(|_| measured())));
        let mut context = Context::from_waker(Waker::noop());
        group.bench_function(BenchmarkId::new("p2c-peak-ewma", size), |bencher| {
            bencher.iter(|| {
                assert!(balance.poll_ready(&mut context).is_ready());
                let mut answer = Box::pin(balance.call(()));
                assert!(answer.as_mut().poll(&mut context).is_ready());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pick_and_finish, contended, tower_peer);
criterion_main!(benches);
