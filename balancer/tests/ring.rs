//! The rings' set-up flags as the kernel was given them, seen by strace: /proc/PID/fdinfo does not show them.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Balancer, config_over, eventually};
use serde_json::json;

/// From linux/io_uring.h.
const COOP_TASKRUN: u32 = 1 << 8;
const TASKRUN_FLAG: u32 = 1 << 9;
const SINGLE_ISSUER: u32 = 1 << 12;
const THREADS: usize = 2;

/// Why the flags cannot be read here, if they cannot.
fn obstacle() -> Option<&'static str> {
    if !common::has_io_uring() {
        return Some("this kernel gives no ring");
    }
    match Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output() {
        Err(_) => Some("strace is missing; install it (Debian: apt install strace)"),
        Ok(output) if !output.status.success() => Some("strace may not trace here (ptrace is forbidden)"),
        Ok(_) => None,
    }
}

/// The flags of every ring that was set up, from lines such as `7 io_uring_setup(0x1000, {flags=0x1300, ...}) = 0x5`.
fn rings(trace: &Path) -> Vec<u32> {
    let trace = std::fs::read_to_string(trace).expect("strace's output");
    let made = trace.lines().filter(|line| line.contains("io_uring_setup(") && !line.contains(") = -"));
    made.filter_map(|line| {
        let flags = line.split("flags=").nth(1)?.split([',', '}']).next()?;
        u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()
    })
    .collect()
}

#[test]
fn kernel_was_given_the_flags_that_make_a_ring_cheap() {
    if let Some(why) = obstacle() {
        return eprintln!("NOT TESTED, the ring's set-up flags were not read: {why}");
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let trace = folder.path().join("trace");
    let mut strace = Command::new("strace");
    // With -D the child is the balancer itself, and strace ends with it.
    strace.args(["-D", "-f", "-qq", "-X", "raw", "-e", "trace=io_uring_setup", "-o"]).arg(&trace);
    strace.arg(env!("CARGO_BIN_EXE_balancer"));
    let config = config_over(&[], json!({ "threads": THREADS }));
    let balancer = Balancer::try_launch(strace, "auto", config).expect("the balancer starts under strace");
    let claimed = balancer.wait_log(&["listening"]);
    assert_eq!(balancer.status()["driver"], "io_uring");
    eventually("strace has written every ring", || rings(&trace).len() >= THREADS);
    let rings = rings(&trace);
    assert_eq!(rings.len(), THREADS, "one per thread");
    for flags in rings {
        assert_eq!(flags & (COOP_TASKRUN | TASKRUN_FLAG), COOP_TASKRUN | TASKRUN_FLAG, "{flags:#x}");
        assert_eq!(flags & SINGLE_ISSUER != 0, claimed.contains("single_issuer"), "{flags:#x}, {claimed}");
    }
}
