//! Benchmarks an HTTP/1.1 target and says what the figures are worth.
//!
//! `plan` turns URL and options into requests, `generate` sends them over `link`s, `book`, `record` and `timeline`
//! count, `total` adds up, `interval` and `steady` say how sure the figures are, `judge` gives the verdict, `slo` holds
//! the figures against objectives, and `report` is the stable shape of it that [`table()`], [`csv`], [`save()`] and
//! [`compare()`] print, write and set side by side. `rounds` measures several targets in turn and compares them by
//! `ratio`; `capacity` tries the rates that `search` says. Plan, interval, steady, judge, slo, ratio and search are
//! pure.
//!
//! - Latency is the time from the moment a request was due to the end of its answer, connecting included; never
//!   wall time divided by a number of requests. A request that times out is a sample at its age.
//! - A burst is really in flight all at once: every request has its own connection, and nothing limits them.
//! - In an open loop a request is due by a schedule that no answer can delay, and what the generator itself was late is
//!   reported beside the latency that it is part of.
//! - Every scheduled request is accounted for: `scheduled = ok + http_error + transport_error + timeout + unsent`.
//!
//! - The load runs on from a warm-up into the measurement; what of the start is cut off is said, and counted apart.
//! - Latencies have 95 % intervals that hold for dependent samples; what too few samples support is not shown.
//!
//! Does not know Rhai, TLS or HTTP/2, and does not follow redirects.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use crate::error::{Error, Kind};

mod alarm;
mod book;
mod capacity;
mod codec;
mod compare;
mod fault;
mod generate;
mod interval;
mod judge;
mod limits;
mod link;
mod open;
mod options;
mod plan;
mod ratio;
mod record;
mod report;
mod rounds;
mod save;
mod schedule;
mod search;
mod slo;
mod steady;
mod table;
mod target;
mod timeline;
mod total;

pub use capacity::{Capacity, CapacityOptions, Limit, Step, Trial, capacity};
pub use compare::{Comparison, Pair, compare};
pub use judge::Verdict;
pub use limits::Descriptors;
pub use options::{CONNECTIONS_MAX, Mode, Options, Warmup};
pub use ratio::Ratio;
pub use report::{
    BackendLine, Bounds, Client, Counts, ErrorLine, Intervals, Latencies, Little, OpenLoop, Quantiles,
    Report, SCHEMA, Spec, Summary, WarmedUp,
};
pub use rounds::{Contender, Ratios, Rounds, RoundsOptions, Turn, rounds};
pub use save::{SavedTable, csv, save, save_capacity, save_rounds, save_table};
pub use schedule::Arrivals;
pub use search::Finding;
pub use slo::{Objective, Outcome, Slo};
pub use table::{capacity_table, rounds_table, table};

/// A resolver that takes longer is broken, and a run with it would measure the resolver.
const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// How far a run has come; given to the caller about five times a second, and once at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Requests that ended, whatever became of them.
    pub done: u64,
    /// Of these, the ones that failed.
    pub errors: u64,
    /// How many requests there will be, when that is known.
    pub total: Option<u64>,
    /// Since the first request was due.
    pub elapsed: Duration,
    /// How long requests are sent; `None` for a burst.
    pub duration: Option<Duration>,
}

/// Runs one benchmark against `url`.
///
/// Failed requests are part of the report, not errors. Errors: of kind `recipe` for a URL or options that make no
/// sense and for limits of this machine that are too small (before anything is sent), `host` for a name that does
/// not resolve, `internal` for a thread that cannot be started. Needs a Tokio runtime with time and I/O. Dropping
/// the future ends the run: dropping returns when every connection is closed and every thread has ended, within
/// milliseconds (only a name's resolution, which the system does, may go on unheard).
pub async fn http(url: &str, options: &Options, progress: &dyn Fn(Progress)) -> Result<Report, Error> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let plan = Arc::new(plan::Plan::new(url, options, cores)?);
    let descriptors = limits::prepare(plan.connections())?;
    let address = resolve(&plan.target).await?;
    let started = SystemTime::now();
    let parts = generate::run(&plan, address, progress).await?;
    Ok(total::build(&total::Ended { url, plan: &plan, address, started, parts: &parts, descriptors }))
}

/// One address for the whole run, so that every request goes to the same target; IPv4 first, as `localhost` may
/// name both while servers often listen on the one only.
async fn resolve(target: &target::Target) -> Result<SocketAddr, Error> {
    let fail = |why: String| {
        Error::new(Kind::Host, format!("resolve {}: {why}", target.host))
            .with_hint("check the name, or use the address that the lab printed")
    };
    let lookup = tokio::net::lookup_host((target.host.as_str(), target.port));
    let found = tokio::time::timeout(RESOLVE_MAX, lookup).await;
    let found = found.map_err(|_| fail("no answer within 10 s".to_owned()))?;
    let mut addresses: Vec<_> = found.map_err(|error| fail(error.to_string()))?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| fail("no address".to_owned()))
}
