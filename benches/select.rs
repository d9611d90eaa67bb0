//! What a choice costs: one pick and one finish, by policy, size of the cluster and number of threads, beside the
//! `tower` crate's P2C over peak-EWMA.
//!
//! `now` is given, moves by 10 us per choice and is not read from a clock, except under "with the clock read", which
//! is what to compare with tower: it reads the clock itself.

use std::future::{Ready, ready};
use std::hint::black_box;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use select::{Backend, Cluster, Ejection, Limits, Outcome, PolicyKind, Ticket, View};
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

/// A picker as in a busy balancer: every backend has been measured, half a request is in flight per backend, and each
/// choice is followed by the end of the oldest request.
struct Busy {
    cluster: Cluster,
    /// A ring of the requests in flight, and where the oldest one is.
    open: Vec<Ticket>,
    oldest: usize,
    now: Instant,
}

impl Busy {
    fn new(view: Arc<View>, policy: PolicyKind, seed: u64, start: Instant) -> Self {
        let size = view.backends().len();
        for (index, backend) in view.backends().iter().enumerate() {
            backend.probed(Duration::from_micros(900 + index as u64 % 200));
        }
        let mut cluster = Cluster::new(view, policy, seed);
        for round in 0..4 * size as u32 {
            let ticket = cluster.pick(start).expect("all are up");
            let latency = Duration::from_micros(u64::from(900 + round % 200));
            cluster.finish(ticket, Outcome::Success, start + latency);
        }
        let open = (0..size.div_ceil(2)).map(|_| cluster.pick(start).expect("all are up")).collect();
        Self { cluster, open, oldest: 0, now: start + Duration::from_millis(1) }
    }

    fn once(&mut self) {
        self.now += Duration::from_micros(10);
        let ticket = self.cluster.pick(black_box(self.now)).expect("all are up");
        let oldest = self.in_turn(ticket);
        self.cluster.finish(oldest, Outcome::Success, self.now);
    }

    fn once_with_the_clock_read(&mut self) {
        let ticket = self.cluster.pick(Instant::now()).expect("all are up");
        let oldest = self.in_turn(ticket);
        self.cluster.finish(oldest, Outcome::Success, Instant::now());
    }

    /// Puts the ticket into the place of the oldest one.
    fn in_turn(&mut self, ticket: Ticket) -> Ticket {
        let oldest = mem::replace(&mut self.open[self.oldest], ticket);
        self.oldest = if self.oldest + 1 < self.open.len() { self.oldest + 1 } else { 0 };
        oldest
    }
}

fn one_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish");
    for policy in PolicyKind::ALL {
        for size in SIZES {
            let start = Instant::now();
            let mut busy = Busy::new(view(size, start), policy, 1, start);
            group.bench_function(BenchmarkId::new(policy.name(), size), |bencher| {
                bencher.iter(|| busy.once());
            });
        }
    }
    group.finish();
}

fn with_the_clock_read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish with the clock read");
    for size in SIZES {
        let start = Instant::now();
        let mut busy = Busy::new(view(size, start), PolicyKind::default(), 1, start);
        group.bench_function(BenchmarkId::new(PolicyKind::default().name(), size), |bencher| {
            bencher.iter(|| busy.once_with_the_clock_read());
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
        for size in SIZES {
            for threads in [2, 8] {
                let id = BenchmarkId::new(format!("{}, {threads} threads", policy.name()), size);
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|rounds| together(policy, size, threads, rounds, Duration::ZERO));
                });
            }
        }
    }
    let spaced =
        BenchmarkId::new(format!("{}, 2 threads, one per 10 us each", PolicyKind::default().name()), 8);
    group.bench_function(spaced, |bencher| {
        bencher
            .iter_custom(|rounds| together(PolicyKind::default(), 8, 2, rounds, Duration::from_micros(10)));
    });
    group.finish();
}

/// Runs `rounds` choices on each of `threads`, with so much other work before each, and returns the longest time that
/// a thread spent on choosing. With other work it is `rounds` times the median, as a choice in which the thread is
/// preempted takes as long as thousands.
fn together(policy: PolicyKind, size: usize, threads: u64, rounds: u64, apart: Duration) -> Duration {
    let start = Instant::now();
    let view = view(size, start);
    let ready = Arc::new(Barrier::new(threads as usize));
    let workers: Vec<_> = (0..threads)
        .map(|seed| {
            let (view, ready) = (Arc::clone(&view), Arc::clone(&ready));
            std::thread::spawn(move || {
                let mut busy = Busy::new(view, policy, seed, start);
                ready.wait();
                if apart.is_zero() {
                    let begin = Instant::now();
                    (0..rounds).for_each(|_| busy.once());
                    return begin.elapsed();
                }
                let mut times: Vec<_> = (0..rounds).map(|_| spaced(&mut busy, apart)).collect();
                let middle = times.len() / 2;
                *times.select_nth_unstable(middle).1 * rounds as u32
            })
        })
        .collect();
    workers.into_iter().map(|worker| worker.join().expect("no panic")).max().unwrap_or_default()
}

/// One choice after some time without; includes one read of the clock.
fn spaced(busy: &mut Busy, apart: Duration) -> Duration {
    let idle = Instant::now();
    while idle.elapsed() < apart {
        std::hint::spin_loop();
    }
    let begin = Instant::now();
    busy.once();
    begin.elapsed()
}

criterion_group!(benches, one_thread, with_the_clock_read, contended);
criterion_main!(benches);
