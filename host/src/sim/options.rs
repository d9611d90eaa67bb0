//! What a recipe may simulate: the keys of its options map, their limits, and the scenario they make.

use std::time::Duration;

use select::{
    PolicyKind,
    sim::{
        Arrivals, Change, Contender, Credits, Discipline, FOREVER, Load, Order, Probe, Scenario, Spec, Step,
        Waiting, What,
    },
};

use crate::{
    error::{Error, Kind},
    options_map,
    ui::report::nearest,
    units::Span,
};

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

/// Slower and faster backends only make times too long or too short to be told apart.
const SPEED_MIN: f64 = 1e-6;
const SPEED_MAX: f64 = 1e6;
/// Above this a mean of thousands of samples says nothing any more.
const CV_MAX: f64 = 10.0;
const CV_MIN: f64 = 0.01;

const DURATION: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(5);
const SEEDS: u32 = 3;
/// Used for credits without a limit worth the name.
const CREDITS_MAX: Duration = Duration::from_secs(24 * 3600);

options_map! {
    /// An item of `backends`.
    pub struct Backend {
        /// What it is called in results, with `-1`, `-2`, ... when there are several; by default `"backend"`.
        #[serde(default)]
        pub name: Option<String>,
        /// How many of the kind (default: 1).
        #[serde(default)]
        pub count: Option<u32>,
        /// Requests worked on at once (default: 1).
        #[serde(default)]
        pub slots: Option<u32>,
        /// Work that a slot does per unit of time (default: 1).
        #[serde(default)]
        pub speed: Option<f64>,
        /// What those beyond the slots do: `"share"` them (the default: threads on cores) or wait in a `"queue"` (the
        /// lab's emulated workers).
        #[serde(default)]
        pub order: Option<String>,
        /// CPU time that can be spent before it drops to `baseline`; without it there is no such limit.
        #[serde(default)]
        pub credits: Option<Span>,
        /// Cores' worth that it earns all the time (default: 0.1, a t2.micro).
        #[serde(default)]
        pub baseline: Option<f64>,
    }
}

options_map! {
    /// `work` of `sim::run`: how long a request takes on a slot of speed 1.
    #[derive(Default)]
    pub struct Work {
        /// The mean (default: 5 ms).
        #[serde(default)]
        pub mean: Option<Span>,
        /// `"exponential"` (the default), `"constant"`, `"normal"` (cut at 0), `"log-normal"` or `"bimodal"`.
        #[serde(default)]
        pub distribution: Option<String>,
        /// Standard deviation over the mean, of the normal ones (default: 1).
        #[serde(default)]
        pub cv: Option<f64>,
        /// Bimodal: one request in so many is long (default: 100).
        #[serde(default)]
        pub one_in: Option<u32>,
        /// Bimodal: how many times as long (default: 100).
        #[serde(default)]
        pub ratio: Option<f64>,
    }
}

options_map! {
    /// An item of `events`: something that happens to a backend.
    pub struct Event {
        /// When, from the start of the warm-up on.
        pub at: Span,
        /// The name of a backend, or of all that are named alike.
        pub backend: String,
        /// `"speed"` (with `speed`), `"stall"`, `"fail"` (with `share`), `"delay"` (with `delay`), `"black-hole"`,
        /// `"crash"`, `"heal"` (ends all of these), `"drain"` or `"undrain"`.
        pub what: String,
        /// Of each slot from now on.
        #[serde(default)]
        pub speed: Option<f64>,
        /// Of the requests that fail from now on, 0 to 1 (default: 1).
        #[serde(default)]
        pub share: Option<f64>,
        /// Work of a request that fails, as a share of its whole work (default: 0.1).
        #[serde(default)]
        pub work: Option<f64>,
        /// By how much every answer comes later.
        #[serde(default)]
        pub delay: Option<Span>,
    }
}

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

impl Backend {
    fn spec(&self) -> Result<Spec, Error> {
        let (slots, speed) = (self.slots.unwrap_or(1), self.speed.unwrap_or(1.0));
        if !((1..=10_000).contains(&slots) && (SPEED_MIN..=SPEED_MAX).contains(&speed)) {
            return Err(wrong(
                format!("a backend of {slots} slots and speed {speed}"),
                "slots may be 1 to 10000, speed 0.000001 and more; an event can stall it.",
            ));
        }
        let discipline = match self.order.as_deref() {
            None | Some("share") => Discipline::Shared,
            Some("queue") => Discipline::Queue,
            Some(other) => {
                return Err(wrong(
                    format!("order: there is no `{other}`"),
                    "There are \"share\" and \"queue\".",
                ));
            }
        };
        let earned = self.baseline.unwrap_or(0.1);
        if !(1e-6..=1e6).contains(&earned) {
            return Err(wrong(format!("baseline: {earned} is out of range"), "It must be above 0."));
        }
        let credits = self.credits.map(|span| Credits { balance: span.0, earned, max: CREDITS_MAX });
        Ok(Spec { discipline, credits, ..Spec::shared(slots, speed) })
    }
}

impl Work {
    fn checked(&self) -> Result<select::sim::Work, Error> {
        use select::sim::Work as W;
        let mean_ns = self.mean.map_or(5e6, |span| span.0.as_secs_f64() * 1e9);
        let (cv, one_in, ratio) =
            (self.cv.unwrap_or(1.0), self.one_in.unwrap_or(100), self.ratio.unwrap_or(100.0));
        if mean_ns < 1e3 || one_in == 0 || !(CV_MIN..=CV_MAX).contains(&cv) || !(1.0..=1e6).contains(&ratio) {
            return Err(wrong(
                "work is out of range",
                "mean may be 1us and more, cv 0.01 to 10, one_in 1 and more, ratio 1 and more.",
            ));
        }
        Ok(match self.distribution.as_deref() {
            None | Some("exponential") => W::Exponential { mean_ns },
            Some("constant") => W::Constant { mean_ns },
            Some("normal") => W::Normal { mean_ns, cv },
            Some("log-normal") => W::LogNormal { mean_ns, cv },
            Some("bimodal") => W::Bimodal { mean_ns, one_in, ratio },
            Some(other) => {
                let known = ["exponential", "constant", "normal", "log-normal", "bimodal"];
                return Err(unknown("work.distribution", other, &known));
            }
        })
    }
}

impl Event {
    fn changes(&self, names: &[String]) -> Result<Vec<Change>, Error> {
        let what = self.what()?;
        let is_meant = |name: &str| {
            name == self.backend
                || name.strip_prefix(&self.backend).and_then(|rest| rest.strip_prefix('-')).is_some_and(
                    |number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()),
                )
        };
        let meant = names.iter().enumerate().filter(|(_, name)| is_meant(name));
        let changes: Vec<_> = meant.map(|(backend, _)| Change { at: self.at.0, backend, what }).collect();
        if changes.is_empty() {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(unknown("events: backend", &self.backend, &known));
        }
        Ok(changes)
    }

    fn what(&self) -> Result<What, Error> {
        let needs =
            |key: &str| wrong(format!("event \"{}\" needs `{key}`", self.what), format!("Add {key}: VALUE."));
        let share = |key: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(value),
            false => Err(wrong(format!("events: {key}: {value} is out of range"), "It may be 0 to 1.")),
        };
        Ok(match self.what.as_str() {
            "speed" => match self.speed.ok_or_else(|| needs("speed"))? {
                speed if (0.0..=SPEED_MAX).contains(&speed) => What::Speed(speed),
                speed => return Err(wrong(format!("events: speed: {speed} is out of range"), "0 stalls.")),
            },
            "stall" => What::Speed(0.0),
            "fail" => What::Fail {
                share: share("share", self.share.unwrap_or(1.0))?,
                work: share("work", self.work.unwrap_or(0.1))?,
            },
            "delay" => What::Delay(self.delay.ok_or_else(|| needs("delay"))?.0),
            "black-hole" => What::BlackHole,
            "crash" => What::Crash,
            "heal" => What::Restart,
            "drain" => What::Drain(true),
            "undrain" => What::Drain(false),
            other => {
                let known =
                    ["speed", "stall", "fail", "delay", "black-hole", "crash", "heal", "drain", "undrain"];
                return Err(unknown("events: what", other, &known));
            }
        })
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

fn unknown(key: &str, name: &str, known: &[&str]) -> Error {
    let near = nearest(name, known.iter().copied())
        .map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    wrong(format!("{key}: there is no `{name}`"), format!("{near}There are {}.", known.join(", ")))
}

fn wrong(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(Kind::Recipe, format!("sim::run: {}", message.into())).with_hint(hint.into())
}
