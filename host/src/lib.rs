//! `labhost` runs lab recipes: Rhai scripts that boot instances, deploy over SSH, benchmark and tear down.
//!
//! A recipe crosses three names: `script` (bindings) -> `script::ec2` and its neighbours -> `provider`, `ssh`
//! or `bench`. Those three, `lab` and `sim` do not know Rhai and can be used without it; of the others, `script` alone
//! deals in its values.

pub mod bench;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod commands;
pub mod docs;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod failure;
pub mod files;
pub mod http;
pub mod identity;
pub mod instance;
pub mod invocation;
pub mod keys;
pub mod lab;
pub mod locate;
pub mod nearest;
pub mod options;
pub mod programs;
pub mod provider;
pub mod recipe;
pub mod runner;
pub mod script;
pub mod sim;
pub mod ssh;
pub mod status;
pub mod ui;
pub mod units;

pub use error::{Error, Kind};
