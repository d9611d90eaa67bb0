//! `Host`: one instance in a recipe, and what can be done on it over SSH.

use std::{collections::BTreeMap, sync::Arc};

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};

use super::{fleet, options, service, usage};
use crate::{instance::Instance, options::Options, options_map, units::Span};

/// One instance. Cheap to clone; a snapshot taken when the recipe asked for it.
#[derive(Debug, Clone)]
pub struct Host(pub Arc<Instance>);

impl From<Instance> for Host {
    fn from(instance: Instance) -> Self {
        Self(Arc::new(instance))
    }
}

type Raw<T> = Result<T, Box<EvalAltResult>>;

options_map! {
    /// Options of `exec`.
    #[derive(Default)]
    pub(super) struct Exec {
        /// End the command after this time (default: none).
        #[serde(default)]
        pub(super) timeout: Option<Span>,
        /// Variables for the command.
        #[serde(default)]
        pub(super) env: BTreeMap<String, String>,
        /// Working directory (default: the login's home).
        #[serde(default)]
        pub(super) cwd: Option<String>,
        /// Text for its standard input.
        #[serde(default)]
        pub(super) input: Option<String>,
        /// Whether a status other than 0 is an error (default: true).
        #[serde(default)]
        pub(super) check: Option<bool>,
    }
}

options_map! {
    /// Options of `upload` and `write`.
    #[derive(Default)]
    pub(super) struct Put {
        /// Permissions in octal as text, for example `"0755"` (default: `"0755"` for uploads, `"0644"` for texts).
        #[serde(default)]
        pub(super) mode: Option<String>,
    }
}

options_map! {
    /// Options of `wait_http`.
    #[derive(Default)]
    pub(super) struct WaitHttp {
        /// Port on the host (default: its public web port).
        #[serde(default)]
        pub(super) port: Option<u16>,
        /// The status to wait for (default: 200).
        #[serde(default)]
        pub(super) status: Option<u16>,
        /// How long (default: 30 s).
        #[serde(default)]
        pub(super) timeout: Option<Span>,
    }
}

options_map! {
    /// Options of `logs`.
    #[derive(Default)]
    pub(super) struct Logs {
        /// How many lines from the end (default: 50).
        #[serde(default)]
        pub(super) lines: Option<u32>,
    }
}

pub(super) fn known_options(known: &mut options::Known) {
    known.insert("exec", <Exec as Options>::OPTIONS);
    known.insert("upload", <Put as Options>::OPTIONS);
    known.insert("write", <Put as Options>::OPTIONS);
    known.insert("wait_http", <WaitHttp as Options>::OPTIONS);
    known.insert("logs", <Logs as Options>::OPTIONS);
    known.insert("service", <service::Service as Options>::OPTIONS);
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Host>("Host");
    engine.register_global_module(rhai::exported_module!(properties).into());
    engine.register_global_module(rhai::exported_module!(methods).into());
}

/// The instance's properties.
#[export_module]
mod properties {
    use super::*;

    fn text(value: Option<impl ToString>) -> Dynamic {
        value.map_or(Dynamic::UNIT, |value| value.to_string().into())
    }

    /// The instance's id, for example `i-0a1b2c...`.
    #[rhai_fn(get = "id", pure)]
    pub fn id(host: &mut Host) -> String {
        host.0.id.clone()
    }

    /// `FLEET-SLOT`, the name used by `labhost ssh` and in the logs.
    #[rhai_fn(get = "name", pure)]
    pub fn name(host: &mut Host) -> String {
        host.0.name.clone()
    }

    /// The instance type, for example `t2.micro`.
    #[rhai_fn(get = "type", pure)]
    pub fn instance_type(host: &mut Host) -> String {
        host.0.instance_type.clone()
    }

    /// `pending`, `running`, `stopped`, ...
    #[rhai_fn(get = "state", pure)]
    pub fn state(host: &mut Host) -> String {
        serde_json::to_value(host.0.state)
            .ok()
            .and_then(|state| state.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// The cluster it serves, or `()`.
    #[rhai_fn(get = "cluster", pure)]
    pub fn cluster(host: &mut Host) -> Dynamic {
        text(host.0.cluster.clone())
    }

    /// What it is for, for example `balancer`, or `()`.
    #[rhai_fn(get = "role", pure)]
    pub fn role(host: &mut Host) -> Dynamic {
        text(host.0.role.clone())
    }

    /// The fleet it belongs to.
    #[rhai_fn(get = "fleet", pure)]
    pub fn fleet(host: &mut Host) -> String {
        host.0.fleet.clone()
    }

    /// Its place in the fleet, counted from 1.
    #[rhai_fn(get = "slot", pure)]
    pub fn slot(host: &mut Host) -> i64 {
        host.0.slot.into()
    }

    /// The address that users reach, or `()` while it has none.
    #[rhai_fn(get = "public_ip", pure)]
    pub fn public_ip(host: &mut Host) -> Dynamic {
        text(host.0.public_ip)
    }

    /// The address that other instances reach, or `()` while it has none.
    #[rhai_fn(get = "private_ip", pure)]
    pub fn private_ip(host: &mut Host) -> Dynamic {
        text(host.0.private_ip)
    }

    /// The port for a public web service: 80 on EC2, 8080 on this machine.
    #[rhai_fn(get = "http_port", pure)]
    pub fn http_port(host: &mut Host) -> i64 {
        host.0.http_port.into()
    }

    /// Whether workers on it emulate its type's capacity instead of burning CPU.
    #[rhai_fn(get = "emulated", pure)]
    pub fn emulated(host: &mut Host) -> bool {
        host.0.emulated
    }

    /// Two handles are equal when they name the same instance.
    #[rhai_fn(name = "==", pure)]
    pub fn equals(host: &mut Host, other: Host) -> bool {
        host.0.id == other.0.id
    }

    /// `large-1 (i-0a1b2c..., t2.large, 127.77.9.11)`.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn to_string(host: &mut Host) -> String {
        let address = host.0.public_ip.map_or_else(|| "no address".to_owned(), |address| address.to_string());
        format!("{} ({}, {}, {address})", host.0.name, host.0.id, host.0.instance_type)
    }
}

/// What can be done on one host; the same functions on a list of hosts work on all of them in parallel.
#[export_module]
mod methods {
    use super::*;

    fn one(results: Array) -> Dynamic {
        results.into_iter().next().unwrap_or(Dynamic::UNIT)
    }

    /// Runs a shell command and waits for it. Returns `#{ code, stdout, stderr, ms, host }`; a status other than 0
    /// is an error unless `check: false`.
    #[rhai_fn(return_raw)]
    pub fn exec(context: NativeCallContext, host: Host, command: &str) -> Raw<Dynamic> {
        fleet::exec(&context, vec![host], command, Map::new()).map(one)
    }

    /// Runs a shell command with options `timeout`, `env`, `cwd`, `input` and `check`.
    #[rhai_fn(name = "exec", return_raw)]
    pub fn exec_with(context: NativeCallContext, host: Host, command: &str, options: Map) -> Raw<Dynamic> {
        fleet::exec(&context, vec![host], command, options).map(one)
    }

    /// Copies a local file to `remote` (relative to the login's home) unless it is there already. The file appears
    /// under its name only when it is complete. Returns `#{ changed, bytes, sha256, host }`.
    #[rhai_fn(return_raw)]
    pub fn upload(context: NativeCallContext, host: Host, local: &str, remote: &str) -> Raw<Dynamic> {
        fleet::upload(&context, vec![host], local, remote, Map::new()).map(one)
    }

    /// As `upload`, with option `mode`.
    #[rhai_fn(name = "upload", return_raw)]
    pub fn upload_with(
        context: NativeCallContext,
        host: Host,
        local: &str,
        remote: &str,
        options: Map,
    ) -> Raw<Dynamic> {
        fleet::upload(&context, vec![host], local, remote, options).map(one)
    }

    /// Writes `text` to the file `remote`. Returns `#{ changed, bytes, sha256, host }`.
    #[rhai_fn(return_raw)]
    pub fn write(context: NativeCallContext, host: Host, remote: &str, text: &str) -> Raw<Dynamic> {
        fleet::write(&context, vec![host], remote, text, Map::new()).map(one)
    }

    /// As `write`, with option `mode`.
    #[rhai_fn(name = "write", return_raw)]
    pub fn write_with(
        context: NativeCallContext,
        host: Host,
        remote: &str,
        text: &str,
        options: Map,
    ) -> Raw<Dynamic> {
        fleet::write(&context, vec![host], remote, text, options).map(one)
    }

    /// Copies the file `remote` to `local`, which must lie inside the lab's folder. Returns
    /// `#{ bytes }`.
    #[rhai_fn(return_raw)]
    pub fn download(context: NativeCallContext, host: Host, remote: &str, local: &str) -> Raw<Dynamic> {
        fleet::download(&context, host, remote, local)
    }

    /// Makes a service run: a systemd unit on EC2, a supervised process here. Options: `name`, `exec` (may contain
    /// `{id}`, `{name}`, `{type}`, `{cluster}`, `{private_ip}`, `{public_ip}`, `{http_port}`), `env`, `files`
    /// (restart when one of them changed), `reload_files` (reload with SIGHUP when only these changed), `ready` (a
    /// path that must answer 200 before the call returns), `port`, `timeout`, `restart`. Returns
    /// `#{ changed, state, host }`.
    #[rhai_fn(return_raw)]
    pub fn service(context: NativeCallContext, host: Host, options: Map) -> Raw<Dynamic> {
        service::ensure(&context, vec![host], options).map(one)
    }

    /// Stops and forgets a service; one that does not exist is no error. With a final `*`, as in `"test-*"`, all whose
    /// names begin like that. Returns how many there were.
    #[rhai_fn(return_raw)]
    pub fn remove_service(context: NativeCallContext, host: Host, name: &str) -> Raw<Dynamic> {
        service::remove(&context, vec![host], name).map(one)
    }

    /// What a service's processes have used since they began: `#{ cpu_s, user_s, system_s, processes, rss_bytes_peak,
    /// pss_bytes }`. The difference of two calls is what was used in between, within a clock tick (10 ms).
    /// `rss_bytes_peak` counts shared pages once per process, `pss_bytes` divides them (`()` where that may not be read).
    #[rhai_fn(return_raw)]
    pub fn usage(context: NativeCallContext, host: Host, service: &str) -> Raw<Dynamic> {
        usage::usage(&context, &host, service)
    }

    /// The last 50 lines that a service printed.
    #[rhai_fn(return_raw)]
    pub fn logs(context: NativeCallContext, host: Host, service: &str) -> Raw<Dynamic> {
        service::logs(&context, host, service, Map::new())
    }

    /// As `logs`, with option `lines`.
    #[rhai_fn(name = "logs", return_raw)]
    pub fn logs_with(context: NativeCallContext, host: Host, service: &str, options: Map) -> Raw<Dynamic> {
        service::logs(&context, host, service, options)
    }

    /// Waits, on the host itself, until `path` answers 200 at its web port.
    #[rhai_fn(return_raw)]
    pub fn wait_http(context: NativeCallContext, host: Host, path: &str) -> Raw<Dynamic> {
        fleet::wait_http(&context, vec![host], path, Map::new()).map(one)
    }

    /// As `wait_http`, with options `port`, `status` and `timeout`.
    #[rhai_fn(name = "wait_http", return_raw)]
    pub fn wait_http_with(context: NativeCallContext, host: Host, path: &str, options: Map) -> Raw<Dynamic> {
        fleet::wait_http(&context, vec![host], path, options).map(one)
    }

    /// The address of the host's public web service, for example `http://127.77.9.11:8080`.
    #[rhai_fn(return_raw)]
    pub fn url(host: Host) -> Raw<String> {
        url_at(host, "", 0)
    }

    /// The address of `path` on the host's public web service.
    #[rhai_fn(name = "url", return_raw)]
    pub fn url_path(host: Host, path: &str) -> Raw<String> {
        url_at(host, path, 0)
    }

    /// The address of `path` at a port of the host.
    #[rhai_fn(name = "url", return_raw)]
    pub fn url_at(host: Host, path: &str, port: i64) -> Raw<String> {
        Ok(fleet::url(&host, path, port)?)
    }
}
