//! What the balancer says about itself: JSON for `jq`, text for Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use select::Belief;
use serde_json::{Map, Value, json};

use crate::clock;
use crate::insight::{self, Report, Told};
use crate::site::{Generation, Member, Shared, lock};
use crate::stats::{CLASSES, Totals};

pub(crate) const JSON: &str = "application/json";
/// The exposition format of Prometheus.
pub(crate) const METRICS: &str = "text/plain; version=0.0.4";

/// `/status`, with what the pickers of one thread believe.
pub(crate) fn json(shared: &Arc<Shared>, report: Option<&Report>) -> String {
    let now = clock::now();
    let generation = shared.generation();
    let leaving = shared.leaving();
    let mut clusters = Map::new();
    for (index, shard) in generation.clusters.iter().enumerate() {
        let mut cluster = cluster_json(&shard.members, now);
        for (position, backend) in cluster["backends"].as_array_mut().into_iter().flatten().enumerate() {
            let beliefs = report.map_or(&[][..], |report| report.beliefs(&generation, index, position));
            backend["believes"] = beliefs_json(beliefs);
        }
        cluster["queue"] = json!(shard.queue.len());
        clusters.insert(shard.config.name.clone(), cluster);
    }
    for member in leaving {
        let backends = clusters
            .entry(member.cluster.clone())
            .or_insert_with(|| json!({ "backends": [] }))
            .get_mut("backends")
            .and_then(Value::as_array_mut);
        if let Some(backends) = backends {
            backends.push(backend_json(&member, 0, now));
        }
    }
    let totals = &shared.totals;
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "driver": driver_name(shared),
        "drivers": lock(&shared.drivers).iter().map(ToString::to_string).collect::<Vec<_>>(),
        "policy": generation.config.policy.name(),
        "threads": lock(&shared.drivers).len(),
        "uptime_s": shared.uptime(now).as_secs(),
        "draining": shared.is_draining(),
        "generation": generation.number,
        "connections": totals.connections.load(Relaxed),
        "requests": totals.requests.load(Relaxed),
        "overloaded": totals.overloaded.load(Relaxed),
        "retries": totals.retries.load(Relaxed),
        "cancelled": totals.counts[CLASSES + 1].load(Relaxed),
        "tunnels": totals.tunnels.load(Relaxed),
        "clusters": clusters,
    });
    format!("{status:#}\n")
}

fn cluster_json(members: &[Arc<Member>], now: Instant) -> Value {
    let total: u64 = members.iter().map(|member| member.stats.requests.load(Relaxed)).sum();
    json!({ "backends": members.iter().map(|member| backend_json(member, total, now)).collect::<Vec<_>>() })
}

fn backend_json(member: &Member, cluster_requests: u64, now: Instant) -> Value {
    let requests = member.stats.requests.load(Relaxed);
    let estimate = member.backend.estimate(now);
    let known = estimate.latency_per_request_ns > 0.0;
    json!({
        "id": member.backend.id(),
        "address": member.address.to_string(),
        "state": member.backend.health(now).name(),
        "in_flight": member.backend.in_flight(),
        // null while nothing is known of it.
        "limit": member.backend.limit(),
        "requests": requests,
        "errors": member.stats.errors.load(Relaxed),
        "share": rounded(requests as f64 / cluster_requests.max(1) as f64),
        "latency_ms": { "p50": milliseconds(member, 0.5), "p99": milliseconds(member, 0.99) },
        // Latency per request in flight, which is what expected-latency multiplies by the queue.
        "estimate_ms": known.then(|| rounded(estimate.latency_per_request_ns / 1e6)),
        "failing": rounded(estimate.failing),
    })
}

/// Each number under its name and unit: `latency_per_request_ms`.
fn beliefs_json(beliefs: &[Belief]) -> Value {
    let entry = |belief: &Belief| (key_of(belief), json!(significant(belief.value)));
    Value::Object(beliefs.iter().map(entry).collect())
}

/// `name_unit`, or the name alone of a number without a unit.
pub(crate) fn key_of(belief: &Belief) -> String {
    if belief.unit.is_empty() { belief.name.to_owned() } else { format!("{}_{}", belief.name, belief.unit) }
}

/// To four significant digits: more are noise in an average.
pub(crate) fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powf(3.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

/// The last choices of all threads with the costs compared, the newest first: `/decisions` on the admin socket.
pub(crate) fn decisions(shared: &Shared) -> String {
    let told = shared.insight.decisions(shared.uptime(clock::now()));
    let uptime = shared.uptime(clock::now());
    let list: Vec<Value> = told.iter().map(|told| decision_json(told, uptime)).collect();
    let answer = json!({
        "policy": shared.generation().config.policy.name(),
        "recorded_for_s": insight::RECORDED.as_secs(),
        "decisions": list,
    });
    format!("{answer:#}\n")
}

fn decision_json(told: &Told, uptime: Duration) -> Value {
    let shard = &told.generation.clusters[told.cluster];
    let id = |backend: u32| shard.members.get(backend as usize).map(|member| member.backend.id());
    let decision = &told.decision;
    let compared = decision.compared().iter().map(
        |one| json!({ "id": id(one.backend), "in_flight": one.in_flight, "cost": one.cost.map(significant) }),
    );
    json!({
        "age_ms": rounded(uptime.as_secs_f64() * 1e3 - decision.at_ns as f64 / 1e6),
        "thread": told.thread,
        "cluster": shard.config.name,
        "chosen": id(decision.chosen),
        "why": decision.why.name(),
        "candidates": decision.candidates,
        "compared": compared.collect::<Vec<_>>(),
    })
}

pub(crate) fn milliseconds(member: &Member, quantile: f64) -> Option<f64> {
    member.stats.latency(quantile).map(|latency| latency.as_micros() as f64 / 1000.0)
}

pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The driver's name, or `mixed` if threads ended up on different ones.
fn driver_name(shared: &Shared) -> &'static str {
    let drivers = lock(&shared.drivers);
    let Some(first) = drivers.first() else { return "none" };
    if drivers.iter().all(|driver| driver.name() == first.name()) { first.name() } else { "mixed" }
}

type Reading = fn(&Member, Instant) -> f64;

/// Per backend: name, type, help, value.
const BACKEND_METRICS: [(&str, &str, &str, Reading); 7] = [
    ("balancer_backend_up", "gauge", "Whether the backend takes requests.", |member, now| {
        f64::from(u8::from(member.backend.health(now) == select::Health::Up))
    }),
    ("balancer_backend_in_flight", "gauge", "Requests picked and not finished.", |member, _| {
        member.backend.in_flight().into()
    }),
    ("balancer_backend_limit", "gauge", "Requests that it may have at once.", |member, _| {
        member.backend.limit().map_or(f64::INFINITY, f64::from)
    }),
    ("balancer_backend_requests_total", "counter", "Requests that ended.", |member, _| {
        member.stats.requests.load(Relaxed) as f64
    }),
    ("balancer_backend_errors_total", "counter", "Requests that failed.", |member, _| {
        member.stats.errors.load(Relaxed) as f64
    }),
    (
        "balancer_backend_latency_p50_seconds",
        "gauge",
        "Median latency of the last 10 to 20 s.",
        |member, _| member.stats.latency(0.5).unwrap_or_default().as_secs_f64(),
    ),
    (
        "balancer_backend_latency_p99_seconds",
        "gauge",
        "99th percentile of the last 10 to 20 s.",
        |member, _| member.stats.latency(0.99).unwrap_or_default().as_secs_f64(),
    ),
];

/// `/metrics`.
pub(crate) fn metrics(shared: &Arc<Shared>) -> String {
    let now = clock::now();
    let mut text = String::new();
    let totals = &shared.totals;
    let plain: [(&str, &str, &str, f64); 8] = [
        ("balancer_uptime_seconds", "gauge", "Time since the start.", shared.uptime(now).as_secs_f64()),
        (
            "balancer_connections",
            "gauge",
            "Open client connections.",
            totals.connections.load(Relaxed) as f64,
        ),
        (
            "balancer_connections_total",
            "counter",
            "Client connections accepted.",
            totals.connections_accepted.load(Relaxed) as f64,
        ),
        (
            "balancer_connections_refused_total",
            "counter",
            "Client connections over the limit.",
            totals.connections_refused.load(Relaxed) as f64,
        ),
        ("balancer_requests_total", "counter", "Requests read.", totals.requests.load(Relaxed) as f64),
        (
            "balancer_requests_refused_total",
            "counter",
            "Requests answered with an error of the balancer's own.",
            totals.refused.load(Relaxed) as f64,
        ),
        (
            "balancer_requests_overloaded_total",
            "counter",
            "Of these, the ones for which every backend had too many already.",
            totals.overloaded.load(Relaxed) as f64,
        ),
        (
            "balancer_retries_total",
            "counter",
            "Requests sent once more.",
            totals.retries.load(Relaxed) as f64,
        ),
    ];
    for (name, kind, help, value) in plain {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    write_counts(&mut text, totals);
    let (name, dropped) =
        ("balancer_access_log_dropped_total", shared.access.as_ref().map_or(0, |log| log.dropped()));
    let _ = writeln!(
        text,
        "# HELP {name} Lines of the access log that were lost.\n# TYPE {name} counter\n{name} {dropped}"
    );
    let generation = shared.generation();
    write_queues(&mut text, &generation);
    for metric in &BACKEND_METRICS {
        write_backend_metric(&mut text, &generation, metric, now);
    }
    text
}

/// What threads add up ten times a second.
fn write_counts(text: &mut String, totals: &Totals) {
    let _ = text.write_str(
        "# HELP balancer_responses_total Answers to clients by class of status.\n\
         # TYPE balancer_responses_total counter\n",
    );
    for (class, count) in (1..=CLASSES).zip(&totals.counts) {
        let _ = writeln!(text, "balancer_responses_total{{code=\"{class}xx\"}} {}", count.load(Relaxed));
    }
    let counters = [
        ("balancer_upstream_connects_total", "Connections made to backends.", &totals.counts[CLASSES]),
        (
            "balancer_requests_cancelled_total",
            "Requests whose client went away.",
            &totals.counts[CLASSES + 1],
        ),
        ("balancer_tunnels_total", "Connections that changed their protocol.", &totals.counts[CLASSES + 2]),
        ("balancer_downstream_rx_bytes_total", "Bytes from clients.", &totals.traffic[0]),
        ("balancer_downstream_tx_bytes_total", "Bytes to clients.", &totals.traffic[1]),
        ("balancer_upstream_rx_bytes_total", "Bytes from backends.", &totals.traffic[2]),
        ("balancer_upstream_tx_bytes_total", "Bytes to backends.", &totals.traffic[3]),
    ];
    for (name, help, value) in counters {
        let value = value.load(Relaxed);
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
    let (name, open) = ("balancer_tunnels", totals.tunnels.load(Relaxed));
    let _ = writeln!(text, "# HELP {name} Tunnels open now.\n# TYPE {name} gauge\n{name} {open}");
}

fn write_queues(text: &mut String, generation: &Generation) {
    let name = "balancer_cluster_queue";
    let _ = writeln!(text, "# HELP {name} Requests that wait for a backend with room.\n# TYPE {name} gauge");
    for shard in &generation.clusters {
        let _ = writeln!(text, "{name}{{cluster=\"{}\"}} {}", escaped(&shard.config.name), shard.queue.len());
    }
}

fn write_backend_metric(
    text: &mut String,
    generation: &Generation,
    (name, kind, help, read): &(&str, &str, &str, Reading),
    now: Instant,
) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for member in generation.members() {
        let (cluster, id) = (escaped(&member.cluster), escaped(member.backend.id()));
        let _ = writeln!(text, "{name}{{cluster=\"{cluster}\",backend=\"{id}\"}} {}", read(member, now));
    }
}

/// A label value: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
