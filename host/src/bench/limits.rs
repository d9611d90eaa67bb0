//! What this machine allows the generator: descriptors, local ports, and how much CPU time it got.
//!
//! Raises the process's soft descriptor limit when a run needs it, and never lowers it. Pins a
//! thread when asked. Changes nothing else.

use std::{fs, time::Duration};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::options::wrong;
use crate::error::{Context, Error, Kind};

/// Descriptors that the rest of the program may open while a benchmark runs: SSH connections, files, runtimes.
const DESCRIPTORS_SPARE: u64 = 64;

/// The descriptors of this process, as they were when a run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors {
    /// The soft limit in force during the run; the largest number when there is none.
    pub limit: u64,
    /// Open before the run, plus what the run needs, plus a reserve.
    pub needed: u64,
}

/// Makes room for so many connections at once.
///
/// Errors (before anything is sent) when the hard limit or the range of local ports is too small for them.
pub(super) fn prepare(connections: u64) -> Result<Descriptors, Error> {
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let needed = descriptors_open() + connections + DESCRIPTORS_SPARE;
    check_ports(
        connections,
        &fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default(),
    )?;
    if !must_raise(soft, hard, needed, connections)? {
        return Ok(Descriptors { limit: soft, needed });
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context(Kind::Internal, || format!("raise the limit of open files to {hard}"))?;
    Ok(Descriptors { limit: hard, needed })
}

/// CPU time of the calling thread so far.
pub(super) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// How long the calling thread has been ready to run so far while its CPU served others; zero where the kernel does
/// not say (`CONFIG_SCHED_INFO`).
pub(super) fn thread_wait() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// Lets the calling thread run on this CPU only. Errors when it may not be used.
pub(super) fn pin(cpu: u16) -> Result<(), Error> {
    let mut set = CpuSet::new();
    set.set(cpu.into());
    sched_setaffinity(None, &set).map_err(|cause| {
        wrong(format!("cpus: this process cannot run on CPU {cpu}: {cause}"))
            .with_hint("`taskset -cp $$` lists the CPUs that it may use")
    })
}

/// Whether the soft limit has to be raised to the hard one; an error when that is not enough.
fn must_raise(soft: u64, hard: u64, needed: u64, connections: u64) -> Result<bool, Error> {
    if needed > hard {
        let message = format!(
            "{connections} connections at once need {needed} open files; \
             the hard limit of this process (RLIMIT_NOFILE) is {hard}"
        );
        return Err(wrong(message).with_hint(format!(
            "ask for fewer, or raise the limit: `ulimit -Hn {needed}` in a root shell, \
             `* hard nofile {needed}` in /etc/security/limits.conf, \
             or `--ulimit nofile={needed}` for a container"
        )));
    }
    Ok(needed > soft)
}

/// `range` is the text of Linux's `ip_local_port_range`; anything else passes.
fn check_ports(connections: u64, range: &str) -> Result<(), Error> {
    let mut numbers = range.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    let (Some(low), Some(high)) = (numbers.next(), numbers.next()) else { return Ok(()) };
    let ports = (high + 1).saturating_sub(low);
    if connections <= ports {
        return Ok(());
    }
    Err(wrong(format!(
        "{connections} connections to one address need as many local ports; this machine has {ports}"
    ))
    .with_hint(
        "ask for fewer, or widen the range: `sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"` as root",
    ))
}

/// Linux lists them; elsewhere the usual three and some more.
fn descriptors_open() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(64, |entries| entries.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_limit_that_is_too_small_is_named_before_the_run() {
        let error = must_raise(1024, 4096, 5100, 5000).unwrap_err();
        assert!(error.message.contains("5000 connections") && error.message.contains("4096"), "{error}");
        assert!(error.hint.unwrap().contains("ulimit -Hn 5100"));
    }

    #[test]
    fn the_soft_limit_is_raised_only_when_needed() {
        assert!(!must_raise(1024, 4096, 1024, 900).unwrap());
        assert!(must_raise(1024, 4096, 1025, 900).unwrap());
    }

    #[test]
    fn too_few_local_ports_are_named_before_the_run() {
        assert!(check_ports(28_000, "32768\t60999\n").is_ok());
        let error = check_ports(2_000, "40000 40999").unwrap_err();
        assert!(error.message.contains("1000"), "{error}");
        assert!(check_ports(2_000, "").is_ok());
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let before = thread_cpu();
        let mut sum = 0u64;
        while thread_cpu() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(thread_cpu() > before);
    }
}
