//! `kill -9` of labhost at every line that it writes to the journal: the next run converges, and `stop` leaves nothing.
//!
//! The lines are counted, not listed here, so a new step is covered without a change to this file.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::support::{BALANCER, KILLED, Lab, WORKER};

/// Labs at a time: a run mostly waits, so two for each of two cores keep them busy.
const LABS_AT_ONCE: usize = 4;

const RUN: &[&str] = &["recipes/run.rhai"];
const STOP: &[&str] = &["recipes/stop.rhai", "--confirm"];

/// Lines that this labhost process wrote to the journal of a lab where `lines_before` were already.
fn count_lines(lab: &Lab, lines_before: usize) -> usize {
    lab.journal().len() - lines_before
}

/// Calls `survive` for the points before and after each line, for several of them at a time.
fn at_every_line(lines: usize, survive: impl Fn(&str) + Sync) {
    let points: Vec<_> =
        (1..=lines).flat_map(|line| [format!("before:{line}"), format!("after:{line}")]).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Shown when the test fails, so that the last one in a thread is the culprit.
            println!("killed {point}");
            survive(point);
        }
    };
    thread::scope(|scope| {
        for _ in 0..LABS_AT_ONCE {
            scope.spawn(work);
        }
    });
}

#[test]
fn run_killed_at_any_line_is_completed_by_the_next() {
    let lab = Lab::new();
    lab.run().expect(0);
    let lines = count_lines(&lab, 0);
    assert!(lines > 15, "a whole run writes more than {lines} lines");
    at_every_line(lines, |point| {
        let lab = Lab::new();
        lab.killed_at(point, RUN).expect(KILLED);
        lab.run().expect(0);
        lab.assert_exactly(&["app-1", "lb-1"]);
        lab.assert_serves("cluster1");
        lab.stop().expect(0);
        lab.assert_nothing_left();
    });
}

#[test]
fn change_killed_at_any_line_is_completed_by_the_next_run() {
    let bigger = WORKER.replace("t2.micro", "t2.small");
    let change = |lab: &Lab| lab.set_topology(&[&bigger, BALANCER]);
    let lab = Lab::up();
    let before = lab.journal().len();
    change(&lab);
    lab.run().expect(0);
    let lines = count_lines(&lab, before);
    at_every_line(lines, |point| {
        let lab = Lab::up();
        change(&lab);
        lab.killed_at(point, RUN).expect(KILLED);
        lab.run().expect(0);
        lab.assert_exactly(&["app-1", "lb-1"]);
        assert_eq!(lab.instance("app-1").instance_type, "t2.small");
        lab.assert_serves("cluster1");
    });
}

#[test]
fn stop_killed_at_any_line_is_completed_by_the_next() {
    at_every_line(lines_of_stop(), |point| {
        let lab = Lab::up();
        lab.killed_at(point, STOP).expect(KILLED);
        lab.stop().expect(0);
        lab.assert_nothing_left();
    });
}

#[test]
fn run_after_a_killed_stop_makes_the_lab_anew() {
    at_every_line(lines_of_stop(), |point| {
        let lab = Lab::up();
        lab.killed_at(point, STOP).expect(KILLED);
        lab.run().expect(0);
        lab.assert_exactly(&["app-1", "lb-1"]);
        lab.stop().expect(0);
        lab.assert_nothing_left();
    });
}

#[test]
fn what_a_killed_labhost_was_writing_is_removed() {
    let lab = Lab::up();
    let half_written = [
        ".instances.json.123",
        ".lb.json.123",
        ".run.json.123",
        ".ssh_config.Ab12Cd",
        ".known_hosts.Ab12Cd",
        ".bench-burst.json.123.tmp",
    ];
    for name in half_written {
        lab.write(&format!("artifacts/{name}"), "{");
    }
    lab.write("artifacts/.mine", "not the lab's");
    lab.stop().expect(0);
    assert_eq!(lab.read("artifacts/.mine"), "not the lab's");
    std::fs::remove_file(lab.file("artifacts/.mine")).unwrap();
    // The last that `stop` removes.
    lab.write("artifacts/lock", "");
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

/// Found by trying, since `stop` removes the journal at its end.
fn lines_of_stop() -> usize {
    (1..)
        .find(|line| {
            let lab = Lab::up();
            lab.killed_at(&format!("after:{line}"), STOP).code == 0
        })
        .map(|past| past - 1)
        .expect("`stop` ends")
}
