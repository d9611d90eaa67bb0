//! What a recipe may simulate: the keys of its options map, their limits, and the scenario they make.

use std::time::Duration;

use select::{
    PolicyKind,
    sim::{Arrivals, Contender, FOREVER, Load, Order, Probe, Scenario, Spec, Step, Waiting},
};

use super::topology::{Backend, Event, Work, unknown, wrong};
use crate::{error::Error, options_map, units::Span};

/// More backends than the largest experiment has; a choice among more costs the same.
const BACKENDS_MAX: u32 = 1000;
/// Requests of one run: its records take 32 MB.
const REQUESTS_MAX: f64 = 1_000_000.0;
/// Requests of all runs of a call: about a minute on one core.
const REQUESTS_ALL_MAX: f64 = 50_000_000.0;
const SEEDS_MAX: u32 = 200;
const CLIENTS_MAX: u64 = 100_000;
const EVENTS_MAX: usize = 1000;
/// Points of a share over time; a plot has fewer pixels.
const POINTS_MAX: u128 = 2000;
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Requests that wait: the balancer's own default of `limits.queue`.
const QUEUE_MAX: usize = 1024;

const DURATION: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(5);
const SEEDS: u32 = 3;

options_map! {
    /// Options of `sim::run`. One of `loads`, `rates` and `clients` is needed.
    pub struct Options {
        /// The backends of a cluster, a list of maps: `name`, `count`, `slots`, `speed`, `order`, `credits`, `baseline`.
        pub backends: Vec<Backend>,
        /// How long requests take: `#{ mean, distribution, cv, one_in, ratio }`.
        #[serde(default)]
        pub work: Work,
        /// Names of policies; by default the balancer's own, least-outstanding, p2c, round-robin and the clairvoyant `oracle`.
        #[serde(default)]
        pub policies: Vec<String>,
        /// Loads to try, as shares of what all backends together can do.
        #[serde(default)]
        pub loads: Vec<f64>,
        /// Loads to try, in requests per second.
        #[serde(default)]
        pub rates: Vec<f64>,
        /// Loads to try, in clients that each wait for an answer before they send again.
        #[serde(default)]
        pub clients: Vec<u64>,
        /// How long a client waits between an answer and its next request (default: not at all).
        #[serde(default)]
        pub think: Option<Span>,
        /// Distances between requests that do not wait for answers: `"poisson"` (the default) or `"constant"`.
        #[serde(default)]
        pub arrivals: Option<String>,
        /// How long requests arrive that count (default: 20 s).
        #[serde(default)]
        pub duration: Option<Span>,
        /// How long requests arrive before that (default: 5 s).
        #[serde(default)]
        pub warm_up: Option<Span>,
        /// After this a client has no use for an answer any more (default: never). The balancer knows it, as by its
        /// `deadline_ms`, and lets requests wait or refuses them.
        #[serde(default)]
        pub deadline: Option<Span>,
        /// What happens to backends: a list of `#{ at, backend, what, ... }`.
        #[serde(default)]
        pub events: Vec<Event>,
        /// Failures in a row that eject a backend; 0 never does (default: 5).
        #[serde(default)]
        pub failures_in_row: Option<u32>,
        /// From one active check of a backend to the next (default: none).
        #[serde(default)]
        pub probe_interval: Option<Span>,
        /// Repetitions with other random numbers, which all policies share; results are means of them (default: 3).
        #[serde(default)]
        pub seeds: Option<u32>,
        /// Also tell what happened over time, in steps of this length.
        #[serde(default)]
        pub every: Option<Span>,
    }
}

/// A load as the recipe named it, and as the simulator takes it.
#[derive(Debug, Clone)]
pub(super) struct Offered {
    pub(super) shown: f64,
    /// Of an open load.
    pub(super) per_second: Option<f64>,
    pub(super) scenario: Scenario,
}

/// Everything checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) names: Vec<String>,
    pub(super) policies: Vec<(String, Contender)>,
    pub(super) loads: Vec<Offered>,
    pub(super) seeds: u32,
    pub(super) every: Option<Duration>,
    pub(super) warm_up: Duration,
}

impl Options {
    /// Errors (of kind `recipe`, with a hint) when a value is out of range, contradicts another, or the whole would take
    /// too long.
    pub(super) fn check(&self) -> Result<Checked, Error> {
        let (names, specs) = self.specs()?;
        let policies: Vec<_> = self.policies()?;
        let seeds = self.seeds.unwrap_or(SEEDS);
        if !(1..=SEEDS_MAX).contains(&seeds) {
            return Err(wrong(
                format!("seeds: {seeds} is out of range"),
                format!("It may be 1 to {SEEDS_MAX}."),
            ));
        }
        let base = self.scenario(specs, &names)?;
        let loads = self.loads(&base)?;
        let asks_probes = |policy: &(String, Contender)| policy.0 == PolicyKind::ProbeArgmin.name();
        if policies.iter().any(asks_probes) && self.probe_interval.is_none() {
            return Err(wrong(
                "probe-argmin goes by active checks, and there are none",
                "Add probe_interval: \"1s\".",
            ));
        }
        self.check_size(&loads, policies.len(), seeds)?;
        let every = self.every.map(|span| span.0);
        if let Some(every) = every
            && (every.is_zero() || base.until.as_nanos() / every.as_nanos().max(1) > POINTS_MAX)
        {
            return Err(wrong(
                format!("every: {} is too short", Span(every)),
                format!("The whole time may have up to {POINTS_MAX} steps."),
            ));
        }
        Ok(Checked { names, policies, loads, seeds, every, warm_up: base.warm_up })
    }

    fn specs(&self) -> Result<(Vec<String>, Vec<Spec>), Error> {
        let (mut names, mut specs) = (Vec::new(), Vec::new());
        for backend in &self.backends {
            let (spec, count) = (backend.spec()?, backend.count.unwrap_or(1));
            if count > BACKENDS_MAX || names.len() + count as usize > BACKENDS_MAX as usize {
                return Err(wrong("too many backends", format!("There may be up to {BACKENDS_MAX}.")));
            }
            let name = backend.name.as_deref().unwrap_or("backend");
            for number in 1..=count {
                names.push(if count == 1 { name.to_owned() } else { format!("{name}-{number}") });
                specs.push(spec);
            }
        }
        if specs.is_empty() {
            return Err(wrong(
                "there are no backends",
                "Write for example backends: [#{ count: 4, slots: 2 }].",
            ));
        }
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(wrong(
                format!("two backends are called `{}`", twice.1),
                "Give each kind a `name` of its own.",
            ));
        }
        Ok((names, specs))
    }

    fn policies(&self) -> Result<Vec<(String, Contender)>, Error> {
        if self.policies.is_empty() {
            let defaults =
                [PolicyKind::default().name(), "least-outstanding", "p2c", "round-robin", "oracle"];
            return defaults.iter().map(|name| contender(name)).collect();
        }
        self.policies.iter().map(|name| contender(name)).collect()
    }

    fn scenario(&self, specs: Vec<Spec>, names: &[String]) -> Result<Scenario, Error> {
        let warm_up = self.warm_up.map_or(WARM_UP, |span| span.0);
        let duration = self.duration.map_or(DURATION, |span| span.0);
        if duration.is_zero() || duration > DURATION_MAX || warm_up > DURATION_MAX {
            return Err(wrong(
                format!("duration: {} is out of range", Span(duration)),
                format!("duration and warm_up may be up to {}.", Span(DURATION_MAX)),
            ));
        }
        let mut scenario = Scenario::steady(specs, self.work.checked()?, Load::poisson(0.0));
        (scenario.warm_up, scenario.until) = (warm_up, warm_up + duration);
        scenario.deadline = self.deadline.map_or(FOREVER, |span| span.0);
        scenario.waiting = self.deadline.map(|span| Waiting { count_max: QUEUE_MAX, deadline: span.0 });
        scenario.ejection.failures_in_row = self.failures_in_row.unwrap_or(scenario.ejection.failures_in_row);
        // As the balancer has them by default; a health check costs a worker next to nothing.
        scenario.probe = self.probe_interval.map(|span| Probe {
            interval: span.0.max(Duration::from_millis(1)),
            timeout: span.0.max(Duration::from_millis(1)),
            work_ns: 1e3,
            rise: 1,
            fall: 3,
        });
        if self.events.len() > EVENTS_MAX {
            return Err(wrong("too many events", format!("There may be up to {EVENTS_MAX}.")));
        }
        for event in &self.events {
            scenario.changes.extend(event.changes(names)?);
        }
        Ok(scenario)
    }

    fn loads(&self, base: &Scenario) -> Result<Vec<Offered>, Error> {
        let capacity = base.capacity_per_second();
        let given = [!self.loads.is_empty(), !self.rates.is_empty(), !self.clients.is_empty()];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err(wrong(
                "one of loads, rates and clients must be given",
                "loads: [0.5, 0.9] are shares of the capacity, rates: [500] requests per second, clients: [64] wait \
                 for their answers.",
            ));
        }
        let open = |shown: f64, per_second: f64| {
            if !(shown > 0.0 && per_second.is_finite()) {
                return Err(wrong(format!("a load of {shown} is out of range"), "It must be above 0."));
            }
            let steps = vec![Step { at: Duration::ZERO, per_second }];
            let load = Load::Open { arrivals: self.arrivals()?, steps };
            Ok(Offered { shown, per_second: Some(per_second), scenario: Scenario { load, ..base.clone() } })
        };
        let closed = |clients: u64| {
            if !(1..=CLIENTS_MAX).contains(&clients) {
                return Err(wrong(
                    format!("clients: {clients} is out of range"),
                    format!("1 to {CLIENTS_MAX}."),
                ));
            }
            let think = self.think.map_or(Duration::ZERO, |span| span.0);
            let load = Load::Closed { clients: clients as usize, think };
            Ok(Offered {
                shown: clients as f64,
                per_second: None,
                scenario: Scenario { load, ..base.clone() },
            })
        };
        let shares = self.loads.iter().map(|&share| open(share, share * capacity));
        let rates = self.rates.iter().map(|&rate| open(rate, rate));
        shares.chain(rates).chain(self.clients.iter().map(|&clients| closed(clients))).collect()
    }

    fn arrivals(&self) -> Result<Arrivals, Error> {
        match self.arrivals.as_deref() {
            None | Some("poisson") => Ok(Arrivals::Poisson),
            Some("constant") => Ok(Arrivals::Constant),
            Some(other) => Err(wrong(
                format!("arrivals: there is no `{other}`"),
                "There are \"poisson\" and \"constant\".",
            )),
        }
    }

    /// A simulation that would take minutes is refused before it begins.
    fn check_size(&self, loads: &[Offered], policies: usize, seeds: u32) -> Result<(), Error> {
        let mut all = 0.0;
        for load in loads {
            let seconds = load.scenario.until.as_secs_f64();
            // Clients that do not think send as fast as backends answer, or fail.
            let per_second = load.per_second.unwrap_or_else(|| load.scenario.capacity_per_second());
            let requests = seconds * per_second;
            if requests > REQUESTS_MAX {
                return Err(wrong(
                    format!("a load of {} makes {requests:.0} requests in {seconds} s", load.shown),
                    format!(
                        "A run may have {REQUESTS_MAX:.0}: lower duration, the load, or raise work.mean."
                    ),
                ));
            }
            all += requests * policies as f64 * f64::from(seeds);
        }
        if all > REQUESTS_ALL_MAX {
            return Err(wrong(
                format!("all runs together make {:.0} million requests", all / 1e6),
                format!(
                    "They may make {:.0} million: lower duration, seeds, or the number of loads or policies.",
                    REQUESTS_ALL_MAX / 1e6
                ),
            ));
        }
        Ok(())
    }
}

/// A policy by its name. Those that need what no balancer has are known here too.
fn contender(name: &str) -> Result<(String, Contender), Error> {
    if let Ok(kind) = name.parse::<PolicyKind>() {
        return Ok((kind.name().to_owned(), Contender::Real(kind)));
    }
    let marks = [
        Contender::WeightedRoundRobin,
        Contender::C3,
        Contender::Oracle(Order::Arrival),
        Contender::Oracle(Order::Work),
    ];
    if let Some(found) = marks.iter().find(|contender| contender.name() == name) {
        return Ok((name.to_owned(), *found));
    }
    let mut known: Vec<String> = PolicyKind::NAMES.map(str::to_owned).to_vec();
    known.extend(marks.iter().map(Contender::name));
    Err(unknown("policies", name, &known.iter().map(String::as_str).collect::<Vec<_>>()))
}
