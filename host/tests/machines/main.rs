//! The EC2 provider against the fake endpoint with real machines behind it: Debian roots under systemd-nspawn with
//! their own systemd, cloud-init and sshd. What EC2's instances do with user data, units, timers and a power-off is
//! run for real; so is every program, from the recipe to the balancer.
//!
//! They need root, systemd-container and debootstrap, and take seconds. Where these are missing nothing is run, and
//! that is said; with LABHOST_MACHINES=1 it is a failure. LABHOST_MACHINES_SUITE=bullseye takes an older Debian.

#[expect(dead_code, reason = "the tests on local instances use the rest")]
#[path = "../ec2/fake/mod.rs"]
mod fake;
mod handover;
mod isolate;
#[expect(dead_code, reason = "the tests on local instances use the rest")]
#[path = "../ec2/lab.rs"]
mod lab;
mod nspawn;
mod one;
mod whole;

use std::time::{Duration, Instant};

/// A booting machine on a busy computer.
const WITHIN: Duration = Duration::from_secs(90);

/// Looks again and again until `look` returns something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Counts as the test that says so where no machines can be had.
#[test]
fn machines_can_be_had_or_their_absence_is_said() {
    if let Some(obstacle) = isolate::obstacle() {
        assert!(!isolate::are_machines_required(), "{obstacle}");
        isolate::say(&format!("\n*** The tests on real machines are NOT RUN: {obstacle}.\n"));
    }
}
