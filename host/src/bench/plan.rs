//! Turns a URL and options into everything the generator needs, before any socket is opened.
//!
//! Pure: no clock, no socket, no randomness but that of a seed.

use std::time::Duration;

use super::{
    book::Book,
    options::{Mode, NAME_CHARS_MAX, Options, Warmup},
    schedule::{Arrivals, Schedule},
    steady::CUTS,
    target::Target,
    timeline::{BLOCKS_MAX, Timeline},
};
use crate::error::Error;

/// One benchmark, checked and complete.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) options: Options,
    pub(super) target: Target,
    pub(super) name: String,
    /// The bytes of one request; all requests of a run are the same.
    pub(super) request: Vec<u8>,
    /// The answer has no body, whatever its head says.
    pub(super) is_head: bool,
    /// May be sent again when its connection turned out to be closed.
    pub(super) is_idempotent: bool,
    pub(super) load: Load,
    /// One share for each thread; never empty.
    pub(super) shares: Vec<Share>,
}

/// When requests are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Load {
    /// All at the start.
    Burst,
    /// Each when the connection's last answer is complete, as long as the start is less than this ago.
    Closed { duration: Duration },
    /// By a schedule, as long as the start is less than `duration` ago.
    Open { rate: f64, arrivals: Arrivals, seed: u64, duration: Duration },
}

impl Load {
    /// How long requests are due at most; `None` for a burst.
    pub(super) fn duration(self) -> Option<Duration> {
        match self {
            Self::Burst => None,
            Self::Closed { duration } | Self::Open { duration, .. } => Some(duration),
        }
    }
}

/// What one thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) connections: u64,
    /// At most so many requests; in a burst exactly so many.
    pub(super) requests: u64,
}

impl Plan {
    /// `cores` decides the number of threads: half of them, as the lab itself may run on this machine. CPUs that the
    /// options name decide it instead.
    pub(super) fn new(url: &str, options: &Options, cores: usize) -> Result<Self, Error> {
        options.check()?;
        let target = Target::parse(url)?;
        let method = options.method.to_ascii_uppercase();
        let connections = options.connections_used();
        let duration = options.duration_used() + fixed_warmup(options);
        let load = match options.mode {
            Mode::Burst => Load::Burst,
            Mode::Closed => Load::Closed { duration },
            Mode::Open => Load::Open {
                rate: options.rate.expect("checked above"),
                arrivals: options.arrivals_used(),
                seed: options.seed_used(),
                duration,
            },
        };
        let requests = match load {
            Load::Burst => connections,
            Load::Closed { .. } | Load::Open { .. } => options.requests.unwrap_or(u64::MAX),
        };
        let threads = match options.cpus.len() {
            0 => (cores / 2).max(1),
            named => named,
        };
        Ok(Self {
            name: options
                .name
                .clone()
                .unwrap_or_else(|| target.name().chars().take(NAME_CHARS_MAX).collect()),
            request: request_bytes(&method, &target, options),
            is_head: method == "HEAD",
            is_idempotent: matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"),
            shares: split(connections, requests, threads as u64),
            options: options.clone(),
            target,
            load,
        })
    }

    pub(super) fn connections(&self) -> u64 {
        self.shares.iter().map(|share| share.connections).sum()
    }

    /// How many requests are to be sent; `None` when only the duration ends the run.
    pub(super) fn requests(&self) -> Option<u64> {
        match self.load {
            Load::Burst => Some(self.connections()),
            Load::Closed { .. } | Load::Open { .. } => self.options.requests,
        }
    }

    /// When the requests of a thread are due in an open loop, from the start; nothing for other loads.
    pub(super) fn arrivals(&self, thread: usize) -> impl Iterator<Item = Duration> + Clone + 'static {
        let (schedule, duration) = match self.load {
            Load::Open { rate, arrivals, seed, duration } => (Schedule::new(arrivals, rate, seed), duration),
            _ => (Schedule::new(Arrivals::Constant, 1.0, 0), Duration::ZERO),
        };
        let requests = usize::try_from(self.shares[thread].requests).unwrap_or(usize::MAX);
        schedule.part(thread, self.shares.len()).take(requests).take_while(move |due| *due < duration)
    }

    /// An empty one for this run.
    pub(super) fn book(&self) -> Book {
        let load_end = self.load.duration().unwrap_or_default();
        Book::new(&self.cuts(), self.timeline(), self.fixed_warmup(), load_end)
    }

    pub(super) fn timeline(&self) -> Timeline {
        Timeline::new(self.load_end().unwrap_or_default().saturating_sub(self.fixed_warmup()))
    }

    /// When the warm-up may end, from the start: at first 0, then whatever else is possible, in order.
    pub(super) fn cuts(&self) -> Vec<Duration> {
        let others = match self.options.warmup_used() {
            Warmup::NONE => Vec::new(),
            Warmup::Fixed(span) => vec![span.0],
            Warmup::Auto(_) => {
                let length = self.load_end().unwrap_or_default();
                CUTS.iter().map(|blocks| length * *blocks as u32 / BLOCKS_MAX as u32).collect()
            }
        };
        std::iter::once(Duration::ZERO).chain(others).collect()
    }

    /// What is left out of the start whatever the run shows.
    pub(super) fn fixed_warmup(&self) -> Duration {
        fixed_warmup(&self.options)
    }

    /// When the last request should be due, as far as that is known before: the duration, or in an open loop the time
    /// that its number of requests takes on average.
    pub(super) fn load_end(&self) -> Option<Duration> {
        let duration = self.load.duration()?;
        let counted = match (self.load, self.options.requests) {
            (Load::Open { rate, .. }, Some(requests)) => {
                Duration::try_from_secs_f64(requests as f64 / rate).unwrap_or(duration)
            }
            _ => duration,
        };
        Some(counted.min(duration))
    }
}

fn fixed_warmup(options: &Options) -> Duration {
    match options.warmup_used() {
        Warmup::Fixed(span) => span.0,
        Warmup::Auto(_) => Duration::ZERO,
    }
}

/// Deals connections and requests out evenly; a thread without a connection is left out.
fn split(connections: u64, requests: u64, threads: u64) -> Vec<Share> {
    let threads = threads.clamp(1, connections.max(1));
    let part = |total: u64, thread: u64| total / threads + u64::from(thread < total % threads);
    (0..threads)
        .map(|thread| Share { connections: part(connections, thread), requests: part(requests, thread) })
        .collect()
}

fn request_bytes(method: &str, target: &Target, options: &Options) -> Vec<u8> {
    let mut head = format!("{method} {} HTTP/1.1\r\n", target.path);
    let has = |name: &str| options.headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    if !has("host") {
        head += &format!("Host: {}\r\n", target.authority);
    }
    if !has("user-agent") {
        head += "User-Agent: labhost\r\n";
    }
    for (name, value) in &options.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !options.keepalive {
        head += "Connection: close\r\n";
    }
    // RFC 9110, section 8.6: a method that usually has a body says so even when it is empty.
    let body = options.body.as_deref().unwrap_or_default();
    if options.body.is_some() || matches!(method, "POST" | "PUT" | "PATCH") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    [head.as_bytes(), body.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &Options) -> Plan {
        Plan::new("http://127.0.0.1:8080/cluster1?x=1", options, 4).unwrap()
    }

    #[test]
    fn a_request_has_host_and_no_body_by_default() {
        let plan = plan(&Options::default());
        let text = String::from_utf8(plan.request).unwrap();
        let expected = "GET /cluster1?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: labhost\r\n\r\n";
        assert_eq!(text, expected);
        assert_eq!(plan.name, "cluster1");
    }

    #[test]
    fn a_body_is_framed_by_its_length_in_bytes() {
        let headers = [("host".to_owned(), "other".to_owned())].into();
        let options =
            Options { method: "post".into(), body: Some("ü".into()), headers, ..Options::default() };
        let plan = plan(&options);
        let text = String::from_utf8(plan.request).unwrap();
        assert!(text.starts_with("POST "), "{text}");
        assert!(text.contains("host: other\r\n") && !text.contains("Host:"), "{text}");
        assert!(text.ends_with("Content-Length: 2\r\n\r\nü"), "{text}");
        assert!(!plan.is_idempotent);
    }

    #[test]
    fn a_connection_that_is_not_kept_is_announced() {
        let text =
            String::from_utf8(plan(&Options { keepalive: false, ..Options::default() }).request).unwrap();
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    }

    #[test]
    fn named_cpus_decide_the_number_of_threads() {
        let options = Options { cpus: vec![0, 3, 5], ..Options::default() };
        assert_eq!(plan(&options).shares.len(), 3);
    }

    #[test]
    fn no_request_is_lost_when_threads_share_them() {
        for threads in 1..9 {
            for connections in 1..20 {
                let shares = split(connections, 1000, threads);
                assert_eq!(shares.iter().map(|share| share.connections).sum::<u64>(), connections);
                assert_eq!(shares.iter().map(|share| share.requests).sum::<u64>(), 1000);
                assert!(shares.iter().all(|share| share.connections > 0));
            }
        }
    }

    #[test]
    fn a_burst_gives_every_request_its_connection() {
        let plan = plan(&Options { requests: Some(1001), ..Options::default() });
        assert!(plan.shares.iter().all(|share| share.connections == share.requests));
        assert_eq!(plan.requests(), Some(1001));
    }

    #[test]
    fn closed_with_few_requests_opens_no_idle_connection() {
        let options = Options { mode: Mode::Closed, requests: Some(3), ..Options::default() };
        assert_eq!(plan(&options).connections(), 3);
    }
}
