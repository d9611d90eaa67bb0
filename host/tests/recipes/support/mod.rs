//! What the tests stand on: a lab in a folder of its own, the real `labhost`, and a look at what it leaves on the
//! machine.

mod http;
mod lab;
mod process;
pub(crate) mod programs;
mod running;

pub(crate) use http::get;
pub(crate) use lab::{BALANCER, Lab, WORKER};
pub(crate) use process::{Found, Watch, kill, processes, until};
pub(crate) use running::{Ended, KILLED, Running};

use std::time::Duration;

/// Nothing here takes longer unless it hangs; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
