//! `balancer`: its configuration, its status, its address.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};
use serde_json::{Value, json};

use super::{Host, Run, fleet, options, run};
use crate::{
    Error, Kind, error::Context as _, http, instance::Instance, options::Options, options_map, ssh::Command,
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// How long a balancer may take to show its status.
const STATUS_WITHIN: Duration = Duration::from_secs(3);

/// The balancer where recipes/run.rhai puts it, asking the one that runs there.
const ASK_DECISIONS: &str = "./balancer --config balancer.json --ask /decisions";
/// It answers within half a second, once others have been served.
const DECISIONS_WITHIN: Duration = Duration::from_secs(10);

/// The most header fields that may_minihttp reads; with more it closes the connection without an answer.
const WORKER_FIELDS_MAX: u16 = 16;

options_map! {
    /// `probe` of `balancer::config`: the active check of each worker.
    #[derive(Default, serde::Serialize)]
    struct Probe {
        /// What is fetched (default: `"/"`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// From one check to the next, and the time that one may take (default: 1000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interval_ms: Option<u64>,
        /// Passes in a row that bring a worker up (default: 1).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rise: Option<u32>,
        /// Failures in a row that take it down (default: 3).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fall: Option<u32>,
    }
}

options_map! {
    /// `timeouts` of `balancer::config`.
    #[derive(Default, serde::Serialize)]
    struct Timeouts {
        /// To connect to a worker (default: 2000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connect_ms: Option<u64>,
        /// For the whole head of a request (default: 10000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head_ms: Option<u64>,
        /// From the request to the head of the answer (default: 30000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        response_ms: Option<u64>,
        /// Without any byte of a body (default: 30000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body_idle_ms: Option<u64>,
        /// Between two requests of a client (default: 60000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keepalive_ms: Option<u64>,
        /// For idle clients to go at a stop (default: 5000).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain_ms: Option<u64>,
    }
}

options_map! {
    /// `limits` of `balancer::config`.
    #[derive(Default, serde::Serialize)]
    struct Limits {
        /// Of a request's head (default: 16384); beyond it 431.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head_bytes: Option<u64>,
        /// Of a request's target (default: 8192); beyond it 414.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_bytes: Option<u64>,
        /// Header fields of a request (default: 100); beyond it 431.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fields: Option<u64>,
        /// Client connections at once (default: 8192); beyond it 503.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connections: Option<u64>,
        /// Bodies streamed at once (default: 1024); beyond it 503.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bodies: Option<u64>,
    }
}

options_map! {
    /// Options of `balancer::config`; what is left out has the balancer's own default.
    #[derive(Default)]
    struct Config {
        /// The port of the workers (default: 8000).
        #[serde(default)]
        port: Option<u16>,
        /// How a backend is chosen: `"expected-latency"` (the default), `"least-outstanding"`, `"p2c"`, `"p2c-peak-ewma"`,
        /// `"least-time"`, `"envoy-peak-ewma"`, `"prequal"`, `"probe-argmin"`, `"random"` or `"round-robin"`.
        #[serde(default)]
        policy: Option<String>,
        /// Threads (default: one per core).
        #[serde(default)]
        threads: Option<u16>,
        /// Active checks of the workers: `#{ path, interval_ms, rise, fall }`.
        #[serde(default)]
        probe: Probe,
        /// `#{ connect_ms, head_ms, response_ms, body_idle_ms, keepalive_ms, drain_ms }`.
        #[serde(default)]
        timeouts: Timeouts,
        /// `#{ head_bytes, target_bytes, fields, connections, bodies }`.
        #[serde(default)]
        limits: Limits,
        /// Request fields that are not sent to workers: a list of names and prefixes (`"sec-*"`), or `"browser"` for what
        /// browsers add (the default, because may_minihttp takes 16 fields).
        #[serde(default)]
        fields_not_forwarded: Option<Value>,
        /// The most request fields that a worker takes; a request with more is answered 431 (default: 16).
        #[serde(default)]
        fields_max: Option<u16>,
    }
}

pub(super) fn known_options(known: &mut options::Known) {
    known.insert("balancer::config", <Config as Options>::OPTIONS);
    known.insert("balancer::config.probe", <Probe as Options>::OPTIONS);
    known.insert("balancer::config.timeouts", <Timeouts as Options>::OPTIONS);
    known.insert("balancer::config.limits", <Limits as Options>::OPTIONS);
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("balancer", rhai::exported_module!(functions).into());
}

fn config_text(listen: &Host, workers: &[Host], config: Config) -> Result<String, Error> {
    let port = config.port.unwrap_or(8000);
    let mut clusters: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for host in workers {
        let cluster = host.0.cluster.as_deref().ok_or_else(|| {
            Error::new(Kind::Recipe, format!("balancer::config: {} belongs to no cluster", host.0.name))
                .with_hint("Give its fleet a `cluster` in ec2::instances.")
        })?;
        let address = super::service::address(host, port)?;
        clusters.entry(cluster).or_default().push(json!({ "id": host.0.id, "address": address }));
    }
    if clusters.is_empty() {
        return Err(Error::new(Kind::Recipe, "balancer::config: no workers were given"));
    }
    let not_forwarded = config.fields_not_forwarded.unwrap_or_else(|| "browser".into());
    let fields_max = config.fields_max.unwrap_or(WORKER_FIELDS_MAX);
    let probe = config.probe;
    let cluster = |backends| {
        json!({
            "backends": backends,
            "probe": probe,
            "fields_not_forwarded": not_forwarded,
            "fields_max": fields_max,
        })
    };
    let clusters: serde_json::Map<_, _> =
        clusters.into_iter().map(|(name, backends)| (name.to_owned(), cluster(backends))).collect();
    let mut whole = json!({
        "listen": super::service::address(listen, listen.0.http_port)?,
        "clusters": clusters,
        "timeouts": config.timeouts,
        "limits": config.limits,
    });
    let optional = [("policy", config.policy.map(Value::from)), ("threads", config.threads.map(Value::from))];
    for (key, value) in optional {
        if let Some(value) = value {
            whole[key] = value;
        }
    }
    serde_json::to_string_pretty(&whole)
        .context(Kind::Internal, || "write the balancer's configuration".to_owned())
}

/// The instance that balances in this lab.
pub(super) fn balancer_of(instances: &[Instance]) -> Option<&Instance> {
    instances.iter().rev().find(|instance| instance.role.as_deref() == Some("balancer"))
}

/// `HOST:PORT` from an address, `address:port` or URL; without a port the lab's lb.json is asked, else 80.
fn authority(run: &Run, place: &str) -> Result<String, Error> {
    let wrong = |why: &str| {
        Error::usage(format!("`{place}` is no balancer's address: {why}")).with_hint(
            "Give an address as printed by run.rhai, for example 127.77.9.11, or a URL such as \
             http://127.77.9.11:8080.",
        )
    };
    if place.starts_with("https://") {
        return Err(wrong("TLS is not supported"));
    }
    let rest = place.strip_prefix("http://").unwrap_or(place);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse::<u16>().map_err(|_| wrong("its port is no number"))?)),
        None => (authority, None),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    if name.is_empty() || !name.chars().all(fits) || port == Some(0) {
        return Err(wrong("it must be a name or an IPv4 address"));
    }
    if name.chars().all(|c| c.is_ascii_digit() || c == '.') && name.parse::<Ipv4Addr>().is_err() {
        return Err(wrong("the IPv4 address is not complete"));
    }
    let port = port.unwrap_or_else(|| known_port(run, name).unwrap_or(80));
    Ok(format!("{name}:{port}"))
}

/// The port of the balancer at `address` in lb.json.
fn known_port(run: &Run, address: &str) -> Option<u16> {
    let text = std::fs::read(run.lab.dir().join("lb.json")).ok()?;
    let view: Value = serde_json::from_slice(&text).ok()?;
    if view["public_ip"] != address {
        return None;
    }
    view["port"].as_u64()?.try_into().ok()
}

fn own_balancer(run: &Run) -> Result<Instance, Error> {
    let instances = run.wait(run.lab.list())?;
    balancer_of(&instances).cloned().ok_or_else(|| {
        Error::new(Kind::Recipe, "this lab has no balancer")
            .with_hint("Start it with recipes/run.rhai, or give an address: recipes/bench.rhai ADDRESS.")
    })
}

/// The parsed `/status` of the balancer on this instance.
pub(crate) async fn status_of(instance: &Instance) -> Result<Value, Error> {
    let address =
        instance.public_ip.ok_or_else(|| Error::host(format!("{} has no address yet", instance.name)))?;
    status_at(SocketAddr::V4(SocketAddrV4::new(address, instance.http_port))).await
}

async fn status_of_authority(authority: &str) -> Result<Value, Error> {
    let found = tokio::time::timeout(STATUS_WITHIN, tokio::net::lookup_host(authority)).await;
    let hint =
        "Is it the address of a labhost balancer? For another proxy, name what to load with --clusters.";
    let address = found
        .map_err(|_| Error::host(format!("resolve {authority}: no answer")))?
        .context(Kind::Host, || format!("resolve {authority}"))?
        .min_by_key(SocketAddr::is_ipv6)
        .ok_or_else(|| Error::host(format!("resolve {authority}: no address")))?;
    status_at(address).await.map_err(|error| error.with_hint(hint))
}

async fn status_at(address: SocketAddr) -> Result<Value, Error> {
    let (status, body) = http::get(address, "/status", STATUS_WITHIN).await.map_err(Error::host)?;
    if status != 200 {
        return Err(Error::host(format!("GET http://{address}/status: status {status}")));
    }
    serde_json::from_slice(&body).context(Kind::Host, || format!("GET http://{address}/status"))
}

/// Asked on the host, over SSH: decisions are told on the balancer's admin socket alone.
async fn decisions_of(run: &Run, host: &Host) -> Result<Value, Error> {
    let what = || format!("the last choices of the balancer on {}", host.0.name);
    let session = run.sessions.get(&host.0).await?;
    let command = Command { check: true, ..Command::new(ASK_DECISIONS).timeout(DECISIONS_WITHIN) };
    let output = session.run(&command).await.map_err(|error| {
        error.with_hint("Is it the lab's balancer, as recipes/run.rhai deploys it? Run that again to bring it up to date.")
    })?;
    let mut answer: Value = serde_json::from_slice(&output.stdout).context(Kind::Host, what)?;
    Ok(answer["decisions"].take())
}

/// The load balancer.
#[export_module]
mod functions {
    use super::*;

    /// The text of a configuration for the balancer on `host`, with the workers in their clusters and all else at
    /// its default. Write it with `host.write("balancer.json", ...)`.
    #[rhai_fn(return_raw)]
    pub fn config(context: NativeCallContext, host: Host, workers: Array) -> Raw<String> {
        config_with(context, host, workers, Map::new())
    }

    /// As `config`, with options `port` (of the workers), `policy`, `threads`, `probe`, `timeouts`, `limits`,
    /// `fields_not_forwarded` and `fields_max`.
    #[rhai_fn(name = "config", return_raw)]
    pub fn config_with(context: NativeCallContext, host: Host, workers: Array, options: Map) -> Raw<String> {
        let _run = run(&context)?;
        let options: Config = options::decode("balancer::config", options)?;
        Ok(config_text(&host, &fleet::hosts_of(workers)?, options)?)
    }

    /// What the balancer on `host` says of itself: version, driver, and per backend state, share and latency.
    #[rhai_fn(return_raw)]
    pub fn status(context: NativeCallContext, host: Host) -> Raw<Dynamic> {
        let run = run(&context)?;
        let status = run.wait(status_of(&host.0))?;
        rhai::serde::to_dynamic(status)
    }

    /// What this lab's own balancer says of itself.
    #[rhai_fn(name = "status", return_raw)]
    pub fn own_status(context: NativeCallContext) -> Raw<Dynamic> {
        let run = run(&context)?;
        let balancer = own_balancer(&run)?;
        rhai::serde::to_dynamic(run.wait(status_of(&balancer))?)
    }

    /// What the balancer at `place` (an address, address:port or URL) says of itself.
    #[rhai_fn(name = "status", return_raw)]
    pub fn status_of_place(context: NativeCallContext, place: &str) -> Raw<Dynamic> {
        let run = run(&context)?;
        let authority = authority(&run, place)?;
        rhai::serde::to_dynamic(run.wait(status_of_authority(&authority))?)
    }

    /// The last 64 choices of the balancer on `host` with the costs compared, the newest first: `#{ age_ms, thread,
    /// cluster, chosen, why, candidates, compared }`, where `compared` has `#{ id, in_flight, cost }` of each candidate.
    /// The first call begins to record them, for ten seconds.
    #[rhai_fn(return_raw)]
    pub fn decisions(context: NativeCallContext, host: Host) -> Raw<Dynamic> {
        let run = run(&context)?;
        rhai::serde::to_dynamic(run.wait(decisions_of(&run, &host))?)
    }

    /// The last 64 choices of this lab's own balancer.
    #[rhai_fn(name = "decisions", return_raw)]
    pub fn own_decisions(context: NativeCallContext) -> Raw<Dynamic> {
        let run = run(&context)?;
        let host = Host::from(own_balancer(&run)?);
        rhai::serde::to_dynamic(run.wait(decisions_of(&run, &host))?)
    }

    /// The URL of `path` at a balancer: `place` is an address, address:port or URL as printed by run.rhai. Without a
    /// port it is looked up in this lab, else 80.
    #[rhai_fn(return_raw)]
    pub fn url(context: NativeCallContext, place: &str, path: &str) -> Raw<String> {
        let run = run(&context)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(format!("http://{}{slash}{path}", authority(&run, place)?))
    }

    /// The URL of `path` at this lab's own balancer.
    #[rhai_fn(name = "url", return_raw)]
    pub fn own_url(context: NativeCallContext, path: &str) -> Raw<String> {
        let run = run(&context)?;
        Ok(fleet::url(&Host::from(own_balancer(&run)?), path, 0)?)
    }
}
