//! Clusters and their backends.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use select::Ejection;
use serde_json::Value;

use super::address;
use super::object::{ConfigError, Object, wrong};
use crate::http::{FIELDS_MAX, ForwardedFor, NameList, Rules};

/// The cluster that takes every path that names no other.
pub const CATCH_ALL: &str = "*";
/// Paths that the balancer answers itself.
const RESERVED: [&str; 2] = ["status", "metrics"];
/// Of a backend: each answer of `/metrics` repeats it seven times.
const ID_BYTES_MAX: usize = 128;
/// Backends of one cluster. The choice looks at all of them.
const BACKENDS_MAX: usize = 4096;

/// What `"fields_not_forwarded": "browser"` stands for: fields that browsers add to every request and that an
/// application rarely reads. Without them a page load fits in the 16 fields that a worker on may_minihttp takes,
/// the three that the balancer adds included.
pub const BROWSER_FIELDS: [&str; 9] = [
    "sec-*",
    "dnt",
    "upgrade-insecure-requests",
    "priority",
    "pragma",
    "cache-control",
    "save-data",
    "device-memory",
    "purpose",
];

/// One cluster. Requests whose first path segment is `name` go to it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterConfig {
    pub name: String,
    pub backends: Vec<BackendConfig>,
    pub probe: Probe,
    /// `ejection`: `failures_in_row` (0 never ejects), `time_ms`, `time_max_ms`, `ejected_percent_max`.
    pub ejection: Ejection,
    /// `in_flight_max`: requests that one backend has at once; by default without a bound, or
    /// as many as it is found to answer in time (see `deadline_ms`).
    pub in_flight_max: u32,
    /// `fields_not_forwarded` (names, prefixes such as `sec-*`, or `"browser"`), `fields_max`, `x_forwarded_for`
    /// (`append`, `replace`, `off`), `x_forwarded_proto`, `via`.
    pub rules: Rules,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// `id`: by default the address. The admin socket and the log name the backend by it.
    pub id: String,
    /// `address`: address and port.
    pub address: SocketAddr,
}

/// `probe`: an active check with GET; a status from 200 to 399 is a pass, and so is 426, which is all that a backend
/// says to a GET that speaks another protocol alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// `path`.
    pub path: String,
    /// `interval_ms`: between two probes, and the time that one may take.
    pub interval: Duration,
    /// `rise`: passes in a row that bring a backend up.
    pub rise: u32,
    /// `fall`: failures in a row that take it down.
    pub fall: u32,
}

pub(super) fn take_all(top: &mut Object) -> Result<Vec<ClusterConfig>, ConfigError> {
    let Some(value) = top.take("clusters") else { return Err(top.missing("clusters")) };
    let clusters = Object::new("clusters", value)?
        .into_entries()
        .map(|(name, value)| ClusterConfig::take(name, value))
        .collect::<Result<Vec<_>, _>>()?;
    if clusters.is_empty() {
        return Err(top.error("clusters", "names no cluster"));
    }
    Ok(clusters)
}

impl ClusterConfig {
    fn take(name: String, value: Value) -> Result<Self, ConfigError> {
        let mut object = Object::new(&format!("clusters.{name}"), value)?;
        check_name(&name)?;
        let backends = take_backends(&mut object)?;
        let probe = Probe::take(object.object("probe")?)?;
        let ejection = take_ejection(object.object("ejection")?)?;
        let in_flight_max = object.number("in_flight_max", u32::MAX.into(), 1..=u32::MAX.into())? as u32;
        let rules = take_rules(&mut object)?;
        object.finish()?;
        Ok(Self { name, backends, probe, ejection, in_flight_max, rules })
    }
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let problem = if RESERVED.contains(&name) {
        "this name is taken: the balancer answers this path itself"
    } else if name != CATCH_ALL && (name.is_empty() || !name.bytes().all(usable)) {
        "a cluster's name is a path segment: letters, digits and -._~, or `*` for all other paths"
    } else {
        return Ok(());
    };
    Err(ConfigError::Value { place: format!("clusters.{name}"), problem: problem.to_owned() })
}

fn take_backends(object: &mut Object) -> Result<Vec<BackendConfig>, ConfigError> {
    let place = object.place_of("backends");
    let values = match object.take("backends") {
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong(&place, "an array", &other)),
        None => return Err(object.missing("backends")),
    };
    if values.len() > BACKENDS_MAX {
        return Err(object.error("backends", format!("has {}; at most {BACKENDS_MAX}", values.len())));
    }
    let mut seen = HashSet::new();
    let mut backends = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let backend = BackendConfig::take(&format!("{place}[{index}]"), value)?;
        if !seen.insert(backend.id.clone()) {
            return Err(object.error("backends", format!("the id `{}` occurs twice", backend.id)));
        }
        backends.push(backend);
    }
    Ok(backends)
}

impl BackendConfig {
    fn take(place: &str, value: Value) -> Result<Self, ConfigError> {
        let mut object = Object::new(place, value)?;
        let address = address(&mut object, "address")?;
        if address.port() == 0 {
            return Err(object.error("address", "nobody can be reached at port 0"));
        }
        let id = object.string("id")?.unwrap_or_else(|| address.to_string());
        if !is_id(&id) {
            let problem = "must be a path segment of the admin socket: 1 to 128 printable ASCII characters without \
                           spaces and slashes";
            return Err(object.error("id", problem));
        }
        object.finish()?;
        Ok(Self { id, address })
    }
}

fn is_id(text: &str) -> bool {
    let fits = (1..=ID_BYTES_MAX).contains(&text.len());
    fits && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

impl Probe {
    fn take(mut object: Object) -> Result<Self, ConfigError> {
        let path = object.string("path")?.unwrap_or_else(|| "/".to_owned());
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(object.error("path", format!("`{path}` is not a path such as /health")));
        }
        let probe = Self {
            path,
            interval: object.duration("interval_ms", Duration::from_secs(1))?,
            rise: object.number("rise", 1, 1..=100)? as u32,
            fall: object.number("fall", 3, 1..=100)? as u32,
        };
        object.finish()?;
        Ok(probe)
    }
}

fn take_ejection(mut object: Object) -> Result<Ejection, ConfigError> {
    let default = Ejection::default();
    let ejection = Ejection {
        failures_in_row: object.number("failures_in_row", default.failures_in_row.into(), 0..=1000)? as u32,
        time_base: object.duration("time_ms", default.time_base)?,
        time_max: object.duration("time_max_ms", default.time_max)?,
        ejected_percent_max: object.number(
            "ejected_percent_max",
            default.ejected_percent_max.into(),
            0..=100,
        )? as u32,
    };
    object.finish()?;
    Ok(ejection)
}

fn take_rules(object: &mut Object) -> Result<Rules, ConfigError> {
    Ok(Rules {
        dropped: take_dropped(object)?,
        fields_max: object.number("fields_max", FIELDS_MAX as u64 + 4, 4..=FIELDS_MAX as u64 + 4)? as usize,
        forwarded_for: match object.string("x_forwarded_for")?.as_deref() {
            None | Some("append") => ForwardedFor::Append,
            Some("replace") => ForwardedFor::Replace,
            Some("off") => ForwardedFor::Off,
            Some(other) => {
                return Err(
                    object.error("x_forwarded_for", format!("`{other}` is none of append, replace, off"))
                );
            }
        },
        forwarded_proto: object.flag("x_forwarded_proto", true)?,
        via: object.flag("via", true)?,
    })
}

fn take_dropped(object: &mut Object) -> Result<NameList, ConfigError> {
    const KEY: &str = "fields_not_forwarded";
    let expected = "an array of field names and prefixes (`sec-*`), or \"browser\"";
    let place = object.place_of(KEY);
    let values = match object.take(KEY) {
        None => return Ok(NameList::default()),
        Some(Value::String(word)) if word == "browser" => return Ok(NameList::new(BROWSER_FIELDS)),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong(&place, expected, &other)),
    };
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    for value in &values {
        let name = value.as_str().map(|text| text.strip_suffix('*').unwrap_or(text));
        if !name.is_some_and(|name| !name.is_empty() && name.bytes().all(usable)) {
            return Err(wrong(&place, expected, value));
        }
    }
    Ok(NameList::new(values.iter().filter_map(Value::as_str)))
}
