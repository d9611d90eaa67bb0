//! The policy simulator on a topology of the user's own: options in, rows out, and a page that shows them.
//!
//! [`Options`] is what a recipe may write, [`Study`] plays it on all cores, [`chart`] and [`page`] draw. All of it is
//! pure apart from the threads. The simulation itself is `select::sim`, which drives the code that the balancer
//! runs.
//!
//! It does not measure anything: what a real balancer costs, and what a network takes, is not in its figures.

pub mod chart;
mod options;
pub mod page;
mod study;
mod topology;

pub use options::Options;
pub use study::{OverTime, Row, Study};
pub use topology::{Backend, Event, Work};
