//! What a choice costs: one pick and one finish, by policy and size of the cluster.
//!
//! One thread and warm caches: what several threads pay for sharing the view is not in here.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use select::{Backend, Cluster, Ejection, Outcome, PolicyKind, View};

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

fn pick_and_finish(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick and finish");
    for policy in PolicyKind::ALL {
        for size in [2, 8, 64] {
            let start = Instant::now();
            let mut cluster = busy(size, policy, start);
            let mut now = start + Duration::from_millis(1);
            group.bench_function(BenchmarkId::new(policy.name(), size), |bencher| {
                bencher.iter(|| {
                    now += Duration::from_micros(10);
                    let ticket = cluster.pick(black_box(now)).expect("all are up");
                    cluster.finish(ticket, Outcome::Success, now + Duration::from_millis(1));
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pick_and_finish);
criterion_main!(benches);
