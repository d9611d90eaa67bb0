//! Who is compared.

use super::baselines::{C3, Prequal, WeightedRoundRobin};
use super::oracle::Order;
use super::reports::Reports;
use super::scenario::Scenario;
use crate::policy::{Policy, PolicyKind, Random as RandomChoice};

/// A way to choose a backend in a simulation: what a balancer can run, and what knows more than one can.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Contender {
    /// What the balancer runs under this name.
    Real(PolicyKind),
    /// Smooth weighted round-robin with the true capacities as they were at the start.
    WeightedRoundRobin,
    /// Prequal with probes that backends answer, and with this quantile between cold and hot.
    Prequal { hot_quantile: f64 },
    /// C3 with what backends report in their answers.
    C3,
    /// The clairvoyant with a central queue.
    Oracle(Order),
}

impl Contender {
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Real(kind) => kind.name().to_owned(),
            Self::WeightedRoundRobin => "weighted-round-robin".to_owned(),
            Self::Prequal { hot_quantile } => format!("prequal-probed-{hot_quantile}"),
            Self::C3 => "c3".to_owned(),
            Self::Oracle(Order::Arrival) => "oracle".to_owned(),
            Self::Oracle(Order::Work) => "oracle-least-work".to_owned(),
        }
    }

    /// Whether it is a mark to measure by rather than a rival: it knows what no balancer can know.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        matches!(self, Self::WeightedRoundRobin | Self::Oracle(_))
    }

    /// Whether it reads what backends report.
    pub(super) fn asks(&self) -> bool {
        matches!(self, Self::Prequal { .. } | Self::C3)
    }

    /// The oracle chooses outside of the pickers, so its policy is never asked.
    pub(super) fn build(&self, scenario: &Scenario, reports: &Reports, seed: u64) -> Box<dyn Policy> {
        let backends = scenario.backends.len();
        match *self {
            Self::Real(kind) => kind.build(seed),
            Self::WeightedRoundRobin => {
                let weights = scenario.backends.iter().map(super::machine::Spec::capacity).collect();
                Box::new(WeightedRoundRobin::new(weights))
            }
            Self::Prequal { hot_quantile } => {
                Box::new(Prequal::new(backends, hot_quantile, reports.clone(), seed))
            }
            Self::C3 => Box::new(C3::new(backends, scenario.threads.count, reports.clone(), seed)),
            Self::Oracle(_) => Box::new(RandomChoice::new(seed)),
        }
    }
}
