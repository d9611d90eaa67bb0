//! Policies: how one of several candidates is chosen.

mod expected_latency;
mod least_outstanding;
mod round_robin;

use std::fmt;
use std::str::FromStr;

pub use expected_latency::ExpectedLatency;
pub use least_outstanding::LeastOutstanding;
pub use round_robin::RoundRobin;

use crate::cluster::View;

/// Chooses one of several backends. A policy belongs to one thread; what threads share is in the view.
pub trait Policy: Send {
    /// Chooses one of `candidates`, which are at least two different positions in the view in rising order. `now_ns`
    /// counts from the epoch of the view's backends and never goes back.
    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize;
}

/// The policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyKind {
    RoundRobin,
    LeastOutstanding,
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
    pub const ALL: [Self; 3] = [Self::RoundRobin, Self::LeastOutstanding, Self::ExpectedLatency];
    /// What [`FromStr`] takes; `ours` is the default policy whatever that is.
    pub const NAMES: [&str; 4] = ["round-robin", "least-outstanding", "expected-latency", "ours"];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastOutstanding => "least-outstanding",
            Self::ExpectedLatency => "expected-latency",
        }
    }

    #[must_use]
    pub fn build(self, seed: u64) -> Box<dyn Policy> {
        match self {
            Self::RoundRobin => Box::new(RoundRobin::new(seed)),
            Self::LeastOutstanding => Box::new(LeastOutstanding::new(seed)),
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
