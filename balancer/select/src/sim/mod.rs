//! Where policies are judged: a simulation on a virtual clock.
//!
//! [`run`] plays a [`Scenario`] under a [`Contender`]: requests arrive, the very [`Cluster`](crate::Cluster) that
//! the balancer runs chooses, backends work, and what happened comes back as a [`Run`]. Time is counted in
//! nanoseconds and only events move it, so that a minute of traffic takes a fraction of a second. All chance comes
//! from the seed; requests arrive at the same times with the same work whatever the policy.
//!
//! The network takes no time here, a choice takes none, and the balancer's own capacity has no limit. Hedged
//! requests, bodies and keep-alive connections are not simulated.

mod agenda;
mod baselines;
mod contender;
mod front;
mod load;
mod machine;
mod next;
mod oracle;
mod reports;
mod run;
mod scenario;
mod slab;
mod trace;
mod work;
mod world;

pub use contender::Contender;
pub use load::{Arrivals, Load, Step};
pub use machine::{Credits, Discipline, Spec};
pub use oracle::Order;
pub use run::{Ending, Record, Run, Summary, quantile};
pub use scenario::{Change, FOREVER, Probe, Retry, Scenario, Sharing, Threads, Waiting, What};
pub use trace::{Difference, Told, Trace};
pub use work::Work;
pub use world::run;
