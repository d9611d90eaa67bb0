//! A successor takes over from a running balancer, and nobody notices; nor does anybody when one is stopped.

#![allow(clippy::disallowed_methods, reason = "deadlines of tests are on the real clock")]

#[path = "../common/mod.rs"]
mod common;
mod line;
mod open_loop;
mod refusal;
mod stop;
mod succession;
