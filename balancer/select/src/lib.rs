//! Choice of a backend: policies over one shared view.
//!
//! Each thread owns a small picker, [`Cluster`], over one [`View`] that all threads share. What is known of a
//! backend (requests in flight, health, estimate) lives in atomics of [`Backend`]; what is private to a thread
//! (random state, position, the latest time seen) lives in its picker. [`Cluster::pick`] counts a request in
//! flight at the moment of the decision; [`Cluster::finish`] takes it back and learns from its [`Outcome`].
//!
//! A cluster may have [`Limits`]: each backend is then given no more requests than it answers in time, and those for
//! which none has room wait in a [`Queue`].
//!
//! This crate knows no runtime, socket or clock: the time is always an argument, and random numbers come from a
//! seed given at construction. It does not probe, retry, wake who waits or time out; the balancer does.

mod backend;
mod cluster;
mod decision;
mod estimate;
mod policy;
mod price;
mod queue;
mod random;
#[cfg(not(loom))]
pub mod sim;
mod sync;
mod ticket;
mod view;

pub use backend::{Backend, Health};
pub use cluster::Cluster;
pub use decision::{Belief, COMPARED_MAX, Compared, DECISIONS_MAX, Decision, Why};
pub use estimate::Estimate;
pub use policy::{Policy, PolicyKind, Sample, UnknownPolicy};
pub use queue::Queue;
pub use random::Random;
pub use ticket::{Outcome, Ticket};
pub use view::{Ejection, Limits, View};
