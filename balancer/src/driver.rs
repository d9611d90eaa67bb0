//! What a thread runs on: io_uring where the kernel allows it, epoll otherwise.

use std::fmt;
use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

/// Entries of a ring's submission queue: monoio 0.2.4 panics when a queue is full, so it must hold what one turn of
/// the loop can submit. 4096 entries are 400 KB with their completions.
const RING_ENTRIES: u32 = 4096;
/// Events taken from epoll at once.
const EPOLL_EVENTS: u32 = 1024;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum DriverChoice {
    /// io_uring if a ring can be built, epoll otherwise.
    #[default]
    Auto,
    /// io_uring or nothing.
    #[value(name = "io_uring")]
    IoUring,
    Epoll,
}

/// What a thread got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Driver {
    IoUring {
        flags: &'static str,
    },
    /// `refused` says why there is no ring, if one was tried.
    Epoll {
        refused: Option<String>,
    },
}

impl Driver {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::IoUring { .. } => "io_uring",
            Self::Epoll { .. } => "epoll",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring { flags } => write!(f, "io_uring ({flags})"),
            Self::Epoll { refused: None } => write!(f, "epoll"),
            Self::Epoll { refused: Some(reason) } => write!(f, "epoll (no ring: {reason})"),
        }
    }
}

/// A runtime for the thread that builds it.
pub(crate) enum AnyRuntime {
    IoUring(Runtime<TimeDriver<IoUringDriver>>),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl AnyRuntime {
    pub(crate) fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

/// Builds a runtime. A ring may fail although small ones succeed (locked memory) or be forbidden (seccomp), so the
/// real one is tried rather than a probe.
pub(crate) fn build(choice: DriverChoice) -> io::Result<(AnyRuntime, Driver)> {
    if choice == DriverChoice::Epoll {
        return build_epoll(None);
    }
    match build_ring() {
        Ok((runtime, flags)) => Ok((AnyRuntime::IoUring(runtime), Driver::IoUring { flags })),
        Err(error) if choice == DriverChoice::IoUring => Err(error),
        Err(error) => build_epoll(Some(error.to_string())),
    }
}

fn build_epoll(refused: Option<String>) -> io::Result<(AnyRuntime, Driver)> {
    let runtime = RuntimeBuilder::<LegacyDriver>::new().with_entries(EPOLL_EVENTS).enable_timer().build()?;
    Ok((AnyRuntime::Epoll(runtime), Driver::Epoll { refused }))
}

/// With the task-run flags a completion waits for the thread to ask instead of interrupting it, which is what makes
/// a ring cheaper than epoll here; without them epoll is better. Kernel 5.19 has the first two, 6.0 all three.
fn build_ring() -> io::Result<(Runtime<TimeDriver<IoUringDriver>>, &'static str)> {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_coop_taskrun().setup_taskrun_flag();
    let cooperative = flags.clone();
    flags.setup_single_issuer();
    match build_with(flags) {
        Ok(runtime) => Ok((runtime, "coop_taskrun, taskrun_flag, single_issuer")),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((build_with(cooperative)?, "coop_taskrun, taskrun_flag"))
        }
        Err(error) => Err(error),
    }
}

fn build_with(flags: io_uring::Builder) -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES);
    builder.uring_builder(flags).enable_timer().build()
}
