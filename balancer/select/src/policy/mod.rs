//! Policies: how one of several candidates is chosen.

mod envoy_peak_ewma;
mod expected_latency;
mod least_outstanding;
mod least_time;
pub(crate) mod prequal;
mod probe_argmin;
mod random;
mod round_robin;
mod two_choices;

use std::fmt;
use std::str::FromStr;

pub(crate) use envoy_peak_ewma::EnvoyPeakEwma;
pub(crate) use expected_latency::ExpectedLatency;
pub(crate) use least_outstanding::LeastOutstanding;
pub(crate) use least_time::LeastTime;
pub(crate) use prequal::Prequal;
pub(crate) use probe_argmin::ProbeArgmin;
pub(crate) use random::Random;
pub(crate) use round_robin::RoundRobin;
pub(crate) use two_choices::{TwoChoices, TwoChoicesPeakEwma};

use crate::decision::Belief;
use crate::view::View;

/// A request that has ended, but not one that was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Position in the view.
    pub backend: usize,
    /// From the choice to the answer, or to the failure.
    pub latency_ns: u64,
    /// Requests in flight there at the choice, this one not counted.
    pub in_flight_before: u32,
    pub failed: bool,
}

/// Chooses one of several backends. A policy belongs to one thread; what threads share is in the view.
pub trait Policy: Send {
    /// How many candidates are enough in a cluster of so many backends; `None` when it wants all of them. With a
    /// number, candidates are drawn at random and a choice does not cost more in a larger cluster.
    fn sample(&self, backends: usize) -> Option<usize> {
        let _ = backends;
        None
    }

    /// Asked before each choice: a backend to take instead, just to learn about it. Taken if it is up and was not
    /// tried.
    fn explore(&mut self, view: &View, now_ns: u64) -> Option<usize> {
        let _ = (view, now_ns);
        None
    }

    /// Chooses one of `candidates`, which are at least two different positions in the view in rising order. `now_ns`
    /// counts from the epoch of the view's backends and never goes back.
    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize;

    /// Hears of a request of this thread that has ended, chosen by it or not: a single candidate is not asked about.
    fn finished(&mut self, sample: &Sample, now_ns: u64) {
        let _ = (sample, now_ns);
    }

    /// Which of `candidates` the latest choice among them compared; all, unless the policy draws some.
    fn compared<'a>(&'a self, candidates: &'a [u32]) -> &'a [u32] {
        candidates
    }

    /// What one more request on `backend` costs, the smallest being preferred; `None` for a policy that has no such
    /// number. For reports: it changes nothing.
    fn cost(&self, view: &View, backend: usize, now_ns: u64) -> Option<f64> {
        let _ = (view, backend, now_ns);
        None
    }

    /// Tells what else it holds about `backend`, number by number. For reports: it changes nothing.
    fn believes(&self, view: &View, backend: usize, now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        let _ = (view, backend, now_ns, tell);
    }
}

/// The policies by name. All of them need only what a balancer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyKind {
    RoundRobin,
    Random,
    LeastOutstanding,
    TwoChoices,
    TwoChoicesPeakEwma,
    LeastTime,
    EnvoyPeakEwma,
    Prequal,
    ProbeArgmin,
    #[default]
    ExpectedLatency,
}

/// A name that belongs to no policy; the message lists those that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPolicy(pub String);

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no policy is called `{}`; there are {}", self.0, PolicyKind::NAMES.join(", "))
    }
}

impl std::error::Error for UnknownPolicy {}

impl PolicyKind {
    pub const ALL: [Self; 10] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastOutstanding,
        Self::TwoChoices,
        Self::TwoChoicesPeakEwma,
        Self::LeastTime,
        Self::EnvoyPeakEwma,
        Self::Prequal,
        Self::ProbeArgmin,
        Self::ExpectedLatency,
    ];
    /// What [`FromStr`] takes; `ours` is the default policy whatever that is.
    pub const NAMES: [&str; 11] = [
        "round-robin",
        "random",
        "least-outstanding",
        "p2c",
        "p2c-peak-ewma",
        "least-time",
        "envoy-peak-ewma",
        "prequal",
        "probe-argmin",
        "expected-latency",
        "ours",
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastOutstanding => "least-outstanding",
            Self::TwoChoices => "p2c",
            Self::TwoChoicesPeakEwma => "p2c-peak-ewma",
            Self::LeastTime => "least-time",
            Self::EnvoyPeakEwma => "envoy-peak-ewma",
            Self::Prequal => "prequal",
            Self::ProbeArgmin => "probe-argmin",
            Self::ExpectedLatency => "expected-latency",
        }
    }

    #[must_use]
    pub fn build(self, seed: u64) -> Box<dyn Policy> {
        match self {
            Self::RoundRobin => Box::new(RoundRobin::new(seed)),
            Self::Random => Box::new(Random::new(seed)),
            Self::LeastOutstanding => Box::new(LeastOutstanding::new(seed)),
            Self::TwoChoices => Box::new(TwoChoices::new(seed)),
            Self::TwoChoicesPeakEwma => Box::new(TwoChoicesPeakEwma::new(seed)),
            Self::LeastTime => Box::new(LeastTime::default()),
            Self::EnvoyPeakEwma => Box::new(EnvoyPeakEwma::new(seed)),
            Self::Prequal => Box::new(Prequal::new(seed)),
            Self::ProbeArgmin => Box::new(ProbeArgmin),
            Self::ExpectedLatency => Box::new(ExpectedLatency::new(seed)),
        }
    }
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        if name == "ours" {
            return Ok(Self::default());
        }
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}
