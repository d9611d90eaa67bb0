//! What happens to backends, and how active checks find out.

use std::time::Duration;

use super::{Event, Job, NOBODY, OPEN_DOOR, World};
use crate::sim::scenario::What;

impl World<'_> {
    pub(super) fn change(&mut self, index: usize) {
        let change = self.scenario.changes[index];
        let (backend, now_ns) = (change.backend, self.now_ns);
        match change.what {
            What::Speed(speed) => self.machines[backend].set_speed(speed, now_ns),
            What::Fail { share, work } => {
                (self.doors[backend].fails_share, self.doors[backend].fails_work) = (share, work);
            }
            What::Cold { times, requests } => {
                let door = &mut self.doors[backend];
                (door.cold_times, door.cold_requests, door.cold_left) = (times, requests, requests);
            }
            What::Delay(delay) => self.doors[backend].delay_ns = delay.as_nanos() as u64,
            What::BlackHole => {
                self.doors[backend].black_hole = true;
                self.machines[backend].set_speed(0.0, now_ns);
            }
            What::Crash => self.crash(backend),
            What::Restart => {
                self.doors[backend] = OPEN_DOOR;
                let speed = self.machines[backend].spec().speed;
                self.machines[backend].set_speed(speed, now_ns);
            }
            What::Drain(draining) => self.front.set_draining(backend, draining),
        }
        self.next.set(backend, self.machines[backend].next_ns());
        self.serve_waiting();
    }

    fn crash(&mut self, backend: usize) {
        self.doors[backend].refuses = true;
        for job in self.machines[backend].clear(self.now_ns) {
            self.ended(job, true);
        }
    }

    pub(super) fn send_probe(&mut self, backend: usize) {
        let Some(probe) = self.scenario.probe else { return };
        self.agenda.add(self.now_ns + probe.interval.as_nanos() as u64, Event::Probe { backend });
        self.probes += 1;
        let job = self.jobs.add(Job {
            request: NOBODY,
            backend: backend as u32,
            fails: false,
            ticket: None,
            started_ns: self.now_ns,
            work_ns: probe.work_ns,
            in_flight_before: self.machines[backend].jobs() as u32,
            probe: self.probes,
        });
        let over = Event::ProbeOver { job, number: self.probes };
        self.agenda.add(self.now_ns + probe.timeout.as_nanos() as u64, over);
        self.arrive(job, backend, probe.work_ns);
    }

    /// A probe that nobody has answered is a bad one. Its work stays on the backend.
    pub(super) fn probe_over(&mut self, job: u32, number: u64) {
        let Some(job) = self.jobs.get_mut(job).filter(|job| job.probe == number) else { return };
        job.probe = 0;
        let backend = job.backend as usize;
        self.probed(backend, false);
    }

    pub(super) fn probe_answered(&mut self, job: &Job, good: bool) {
        let backend = job.backend as usize;
        if good {
            self.front.probed(backend, Duration::from_nanos(self.now_ns - job.started_ns));
        }
        self.probed(backend, good);
    }

    fn probed(&mut self, backend: usize, good: bool) {
        let Some(probe) = self.scenario.probe else { return };
        let door = &mut self.doors[backend];
        let in_row = door.probes_in_row;
        door.probes_in_row = if good { in_row.max(0) + 1 } else { in_row.min(0) - 1 };
        if door.probes_in_row == i64::from(probe.rise) {
            self.front.set_up(backend, true);
        } else if door.probes_in_row == -i64::from(probe.fall) {
            self.front.set_up(backend, false);
        }
    }
}
