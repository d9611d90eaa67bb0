//! `balancer`: its configuration, its status, its address.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};
use serde_json::{Value, json};

use super::{Host, Run, fleet, options, run};
use crate::{Error, Kind, error::Context as _, http, options::Options, options_map, provider::Instance};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// How long a balancer may take to show its status.
const STATUS_WITHIN: Duration = Duration::from_secs(3);

/// The most header fields that may_minihttp reads; with more it closes the connection without an answer.
const WORKER_FIELDS_MAX: u16 = 16;

options_map! {
    /// Options of `balancer::config`; what is left out has the balancer's own default.
    #[derive(Default)]
    struct Config {
        /// The port of the workers (default: 8000).
        #[serde(default)]
        port: Option<u16>,
        /// How a backend is chosen; the balancer's `--help` lists the policies.
        #[serde(default)]
        policy: Option<String>,
        /// Threads (default: one per core).
        #[serde(default)]
        threads: Option<u16>,
        /// Active checks: `#{ path, interval_ms, rise, fall }`.
        #[serde(default)]
        probe: Option<Value>,
        /// `#{ connect_ms, head_ms, response_ms, body_idle_ms, keepalive_ms, drain_ms }`.
        #[serde(default)]
        timeouts: Option<Value>,
        #[serde(default)]
        limits: Option<Value>,
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
    let cluster = |backends| json!({ "backends": backends, "fields_not_forwarded": not_forwarded, "fields_max": fields_max });
    let clusters: serde_json::Map<_, _> =
        clusters.into_iter().map(|(name, backends)| (name.to_owned(), cluster(backends))).collect();
    let mut whole =
        json!({ "listen": super::service::address(listen, listen.0.http_port)?, "clusters": clusters });
    let optional = [
        ("policy", config.policy.map(Value::from)),
        ("threads", config.threads.map(Value::from)),
        ("probe", config.probe),
        ("timeouts", config.timeouts),
        ("limits", config.limits),
    ];
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
        Error::usage(format!("`{place}` is no balancer's address: {why}"))
            .with_hint("Give an address as printed by run.rhai, for example 127.77.9.11, or a URL such as http://127.77.9.11:8080.")
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

async fn status_at(address: SocketAddr) -> Result<Value, Error> {
    let (status, body) = http::get(address, "/status", STATUS_WITHIN).await.map_err(Error::host)?;
    if status != 200 {
        return Err(Error::host(format!("GET http://{address}/status: status {status}")));
    }
    serde_json::from_slice(&body).context(Kind::Host, || format!("GET http://{address}/status"))
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

    /// As `config`, with options `port` (of the workers), `policy`, `threads`, `probe`, `timeouts`, `limits` and
    /// `fields_not_forwarded`.
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
