//! Services: long-running programs on a host, under whatever supervises them there.
//!
//! The host has one command for it, `labhost-service`, whatever stands behind: the local agent, or systemd. So
//! nothing here depends on the provider, and everything goes over SSH.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use rhai::{Array, Dynamic, EvalAltResult, Map, NativeCallContext};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Host, fleet, options, run};
use crate::{
    Error, Kind,
    nearest::nearest,
    options_map,
    ssh::{Command, Session, quote},
    units::Span,
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// How long a service may take until it answers, unless the recipe says otherwise.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(30);
/// One remote wait; between two of them the service's state is looked at, so that one that died is noticed.
const READY_SLICE: Duration = Duration::from_millis(500);
/// Lines of a log shown with an error.
const LOG_LINES: u32 = 20;

options_map! {
    /// Options of `service`.
    pub(super) struct Service {
        /// Lower-case letters, digits and `-`.
        name: String,
        /// The command line. `{id}` and other properties of the host in braces are replaced.
        exec: String,
        /// Variables for the program.
        #[serde(default)]
        env: BTreeMap<String, String>,
        /// Files whose change restarts the service (the program itself, when `exec` begins with `./`, always does).
        #[serde(default)]
        files: Vec<String>,
        /// Files whose change only makes the service reload (SIGHUP).
        #[serde(default)]
        reload_files: Vec<String>,
        /// A path that must answer 200 before the call returns.
        #[serde(default)]
        ready: Option<String>,
        /// The port of `ready` (default: the host's public web port).
        #[serde(default)]
        port: Option<u16>,
        /// How long `ready` may take (default: 30 s).
        #[serde(default)]
        timeout: Option<Span>,
        /// When a program that ended is started again: `"always"` (the default), `"on-failure"` or `"no"`.
        #[serde(default)]
        restart: Option<String>,
        /// From SIGTERM to SIGKILL when it is stopped (default: 10 s).
        #[serde(default)]
        stop_timeout: Option<Span>,
        /// Whether the program takes over from the one that runs, so that a restart starts the new process first and
        /// the old one goes on when that fails (default: false).
        #[serde(default)]
        handover: bool,
    }
}

/// What became of a service on one host.
#[derive(Default)]
struct Ensured {
    changed: bool,
    state: String,
}

pub(super) fn ensure(context: &NativeCallContext<'_>, hosts: Vec<Host>, options: Map) -> Raw<Array> {
    let run = run(context)?;
    let service: Service = options::decode("service", options)?;
    if let Some(host) = hosts.first() {
        // A placeholder that does not exist is found before anything is sent.
        fill(&service.exec, host)?;
    }
    let service = Arc::new(service);
    let data = json!({ "what": service.name, "exec": service.exec });
    let work = {
        let service = Arc::clone(&service);
        move |session: Session, host: Host| {
            let service = Arc::clone(&service);
            async move { service.ensure_on(&session, &host).await }
        }
    };
    let ensured = fleet::each_recorded(&run, &hosts, "service", data, work)?;
    let changed = ensured.iter().filter(|one| one.changed).count();
    run.ui.note(&format!(
        "service {}: {changed} started or changed, {} as it should be",
        service.name,
        ensured.len() - changed
    ));
    let maps = hosts.iter().zip(ensured).map(|(host, one)| {
        Dynamic::from_map(Map::from([
            ("changed".into(), one.changed.into()),
            ("state".into(), one.state.into()),
            ("host".into(), host.0.name.clone().into()),
        ]))
    });
    Ok(maps.collect())
}

pub(super) fn logs(context: &NativeCallContext<'_>, host: Host, service: &str, options: Map) -> Raw<Dynamic> {
    let run = run(context)?;
    let options: super::host::Logs = options::decode("logs", options)?;
    let (name, lines) = (service.to_owned(), options.lines.unwrap_or(50));
    let work = move |session: Session, _| {
        let name = name.clone();
        async move { log_of(&session, &name, lines).await }
    };
    let mut texts = fleet::each(&run, &[host], &format!("logs of {service}"), work)?;
    Ok(texts.remove(0).into())
}

/// Removes the service `name`, or with a final `*` all services whose names begin like that. Returns how many there
/// were on each host.
pub(super) fn remove(context: &NativeCallContext<'_>, hosts: Vec<Host>, name: &str) -> Raw<Array> {
    let run = run(context)?;
    let wanted = name.to_owned();
    let work = move |session: Session, _| {
        let wanted = wanted.clone();
        async move { remove_on(&session, &wanted).await }
    };
    let removed = fleet::each_recorded(&run, &hosts, "remove service", json!({ "what": name }), work)?;
    Ok(removed.into_iter().map(Dynamic::from).collect())
}

async fn remove_on(session: &Session, wanted: &str) -> Result<i64, Error> {
    let is_wanted = |name: &str| match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == wanted,
    };
    let output = session.run(&Command { check: true, ..Command::new("labhost-service status") }).await?;
    let listed = answer(&output.stdout)?;
    let names = listed.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
    let mut count = 0;
    for name in names.filter(|name| is_wanted(name)) {
        let line = format!("labhost-service remove {}", quote(name));
        session.run(&Command { line, check: true, ..Command::default() }).await?;
        count += 1;
    }
    Ok(count)
}

impl Service {
    async fn ensure_on(&self, session: &Session, host: &Host) -> Result<Ensured, Error> {
        let definition = self.definition(session, host).await?;
        self.check_place_is_free(session, host).await?;
        let apply = Command {
            line: format!("labhost-service apply {}", quote(&self.name)),
            stdin: Some(definition.to_string().into_bytes()),
            check: true,
            ..Command::default()
        };
        let applied = answer(&session.run(&apply).await?.stdout)?;
        if let Some(path) = &self.ready {
            self.wait_ready(session, host, path).await?;
        }
        let changed = applied["changed"].as_bool().unwrap_or(false);
        let state = applied["service"]["state"].as_str().unwrap_or("running").to_owned();
        Ok(Ensured { changed, state })
    }

    async fn definition(&self, session: &Session, host: &Host) -> Result<Value, Error> {
        let exec = fill(&self.exec, host)?;
        let program = exec.split_whitespace().next().filter(|word| word.starts_with("./")).map(str::to_owned);
        let restart_on: Vec<_> = program.into_iter().chain(self.files.iter().cloned()).collect();
        let env: BTreeMap<_, _> =
            self.env.iter().map(|(key, text)| Ok((key, fill(text, host)?))).collect::<Result<_, Error>>()?;
        Ok(json!({
            "exec": exec,
            "env": env,
            "restart": self.restart.as_deref().unwrap_or("always"),
            "stop_timeout": self.stop_timeout.unwrap_or(Span(Duration::from_secs(10))),
            "handover": self.handover,
            "hash": hashes(session, &restart_on).await?,
            "reload_hash": hashes(session, &self.reload_files).await?,
        }))
    }

    /// Errors when somebody answers in the service's place before it runs: afterwards, an answer could not be told
    /// from its own.
    async fn check_place_is_free(&self, session: &Session, host: &Host) -> Result<(), Error> {
        let Some(path) = &self.ready else { return Ok(()) };
        let address = self.address_on(host)?;
        if self.state(session).await?.as_deref() == Some("running")
            || !session.answers(address, path, 200).await?
        {
            return Ok(());
        }
        let message = format!(
            "service {} on {}: its address {address} is in use: another program answers there",
            self.name, host.0.name
        );
        Err(Error::host(message)
            .with_hint(format!("Find it with `ss -ltnp 'sport = :{}'`, and end it.", address.port())))
    }

    fn address_on(&self, host: &Host) -> Result<SocketAddr, Error> {
        address(host, self.port.unwrap_or(host.0.http_port))
    }

    /// Waits until the service answers, it has died, or the time is over.
    async fn wait_ready(&self, session: &Session, host: &Host, path: &str) -> Result<(), Error> {
        let within = self.timeout.map_or(READY_WITHIN, |timeout| timeout.0);
        let deadline = Instant::now() + within;
        let address = self.address_on(host)?;
        loop {
            let slice = READY_SLICE.min(deadline.saturating_duration_since(Instant::now()));
            let answered = session.wait_http(address, path, 200, slice).await;
            let state = self.state(session).await?.unwrap_or_else(|| "gone".to_owned());
            let reason = match (&answered, state.as_str()) {
                (Ok(_), "running") => return Ok(()),
                (Err(error), _) if error.kind == Kind::Interrupted => return Err(error.clone()),
                (Ok(_), state) => {
                    format!("{address} is answered by another program, and the service is {state}")
                }
                (Err(_), "failed") => "it ended again and again".to_owned(),
                (Err(error), _) => format!("after {} {error}", Span(within)),
            };
            if state == "failed" || Instant::now() >= deadline {
                return Err(self.not_ready(session, host, &reason).await);
            }
        }
    }

    /// `None` when the host does not have the service.
    async fn state(&self, session: &Session) -> Result<Option<String>, Error> {
        let status = status_of(session, &self.name).await?;
        Ok(status.map(|status| status["state"].as_str().unwrap_or("unknown").to_owned()))
    }

    async fn not_ready(&self, session: &Session, host: &Host, reason: &str) -> Error {
        let log = log_of(session, &self.name, LOG_LINES).await.unwrap_or_default();
        Error::host(format!("service {} on {} is not ready: {reason}", self.name, host.0.name))
            .with_hint(format!(
                "The end of its log is above; all of it: labhost logs {} {}",
                host.0.name, self.name
            ))
            .with_detail(log)
    }
}

/// `None` when the host does not have the service.
async fn status_of(session: &Session, name: &str) -> Result<Option<Value>, Error> {
    let line = format!("labhost-service status {}", quote(name));
    let output = session.run(&Command { line, check: false, ..Command::default() }).await?;
    if output.code == 0 { Ok(Some(answer(&output.stdout)?)) } else { Ok(None) }
}

/// The service's first process; `None` when it does not run.
pub(super) async fn pid(session: &Session, name: &str) -> Result<Option<u64>, Error> {
    Ok(status_of(session, name).await?.and_then(|status| status["pid"].as_u64()))
}

/// A host's service as seen on the host itself.
pub(super) fn address(host: &Host, port: u16) -> Result<SocketAddr, Error> {
    let address = host.0.private_ip.or(host.0.public_ip).ok_or_else(|| {
        Error::host(format!("{} has no address yet", host.0.name))
            .with_hint("Wait for it with ec2::wait first.")
    })?;
    Ok(SocketAddr::from((address, port)))
}

async fn log_of(session: &Session, service: &str, lines: u32) -> Result<String, Error> {
    let line = format!("labhost-service logs {} -n {lines}", quote(service));
    let output = session.run(&Command { line, check: true, ..Command::default() }).await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// SHA-256 of each file, as one text; empty for no files.
async fn hashes(session: &Session, files: &[String]) -> Result<String, Error> {
    if files.is_empty() {
        return Ok(String::new());
    }
    let names: Vec<_> = files.iter().map(|file| quote(file)).collect();
    let line = format!("sha256sum -- {}", names.join(" "));
    let output = session.run(&Command { line, check: true, ..Command::default() }).await?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.split(' ').next().unwrap_or(""))
        .collect())
}

fn answer(stdout: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(stdout).map_err(|cause| {
        let text: String = String::from_utf8_lossy(stdout).chars().take(200).collect();
        Error::host(format!("labhost-service answered what cannot be read: {cause}")).with_detail(text)
    })
}

/// Replaces `{id}` and the like. Braces around anything but a lower-case word are left alone (shell, JSON).
pub(super) fn fill(text: &str, host: &Host) -> Result<String, Error> {
    const NAMES: [&str; 10] =
        ["id", "name", "type", "cluster", "role", "fleet", "slot", "private_ip", "public_ip", "http_port"];
    let instance = &host.0;
    let address = |address: Option<std::net::Ipv4Addr>| address.map(|a| a.to_string()).unwrap_or_default();
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        filled.push_str(&rest[..start]);
        rest = &rest[start..];
        let word = rest[1..].split('}').next().unwrap_or_default();
        let is_word = !word.is_empty()
            && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
        if !is_word || word.len() + 2 > rest.len() {
            filled.push('{');
            rest = &rest[1..];
            continue;
        }
        filled.push_str(&match word {
            "id" => instance.id.clone(),
            "name" => instance.name.clone(),
            "type" => instance.instance_type.clone(),
            "cluster" => instance.cluster.clone().unwrap_or_default(),
            "role" => instance.role.clone().unwrap_or_default(),
            "fleet" => instance.fleet.clone(),
            "slot" => instance.slot.to_string(),
            "private_ip" => address(instance.private_ip),
            "public_ip" => address(instance.public_ip),
            "http_port" => instance.http_port.to_string(),
            unknown => return Err(unknown_placeholder(unknown, &NAMES)),
        });
        rest = &rest[word.len() + 2..];
    }
    filled.push_str(rest);
    Ok(filled)
}

fn unknown_placeholder(word: &str, names: &[&str]) -> Error {
    let near = nearest(word, names.iter().copied())
        .map_or_else(String::new, |near| format!("did you mean {{{near}}}? "));
    let known: Vec<_> = names.iter().map(|name| format!("{{{name}}}")).collect();
    Error::new(Kind::Recipe, format!("service: unknown placeholder {{{word}}}"))
        .with_hint(format!("{near}Known are {}.", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::testing::instance;

    fn filled(text: &str) -> Result<String, Error> {
        fill(text, &instance("large", 2, "t2.large", Some("cluster1")).into())
    }

    #[test]
    fn properties_of_the_host_are_filled_in() {
        let text =
            filled("./worker --listen {private_ip}:8000 --cluster {cluster} --instance-id {id}").unwrap();
        assert_eq!(text, "./worker --listen 127.77.0.12:8000 --cluster cluster1 --instance-id i-large2");
    }

    #[test]
    fn other_braces_are_left_alone() {
        for text in ["awk '{print $1}'", "echo {}", "{\"a\": 1}", "a { b", "{"] {
            assert_eq!(filled(text).unwrap(), text);
        }
    }

    #[test]
    fn unknown_placeholder_is_refused_with_a_suggestion() {
        assert!(filled("{privat_ip}").unwrap_err().hint.unwrap().contains("{private_ip}"));
    }
}
