//! The event loop.

mod attempts;
mod changes;

use std::collections::VecDeque;
use std::time::Duration;

use super::agenda::{Agenda, Event};
use super::contender::Contender;
use super::front::Front;
use super::load::{Load, Timetable};
use super::machine::{Machine, NEVER};
use super::next::Next;
use super::oracle::Oracle;
use super::reports::Reports;
use super::run::{Ending, Record, Run};
use super::scenario::{FOREVER, Scenario, Sharing};
use super::slab::Slab;
use crate::queue::Queue;
use crate::random::Random;
use crate::ticket::Ticket;

/// Attempts of one request that are kept apart so that none goes to a backend twice.
const TRIED_MAX: usize = 8;
const NOBODY: u32 = u32::MAX;
/// How long after the last arrival answers are waited for when there is no deadline; what is open then has timed
/// out. Stalled backends would be waited for until the end of time.
const GRACE: Duration = Duration::from_secs(60);

/// A request that has not ended for its client.
struct Request {
    record: u32,
    arrived_ns: u64,
    work_ns: f64,
    thread: u32,
    /// Client of a closed load.
    client: u32,
    /// The attempt under way.
    job: u32,
    /// Its place in the queue, while it waits.
    place: Option<u64>,
    tried: [usize; TRIED_MAX],
    attempts: usize,
}

/// One attempt of a request, or a probe. Stays on its backend even when nobody waits for it any more.
struct Job {
    /// [`NOBODY`] when the client has gone.
    request: u32,
    backend: u32,
    fails: bool,
    ticket: Option<Ticket>,
    started_ns: u64,
    work_ns: f64,
    in_flight_before: u32,
    /// Number of a probe, from 1; 0 for a request.
    probe: u64,
}

/// How a backend treats what arrives.
#[derive(Clone, Copy)]
struct Door {
    fails_share: f64,
    fails_work: f64,
    /// What a request on empty caches costs, over how many requests they fill, and how many of those are to come.
    cold_times: f64,
    cold_requests: u32,
    cold_left: u32,
    delay_ns: u64,
    black_hole: bool,
    refuses: bool,
    /// Probes in a row that said the same, positive when good.
    probes_in_row: i64,
}

const OPEN_DOOR: Door = Door {
    fails_share: 0.0,
    fails_work: 1.0,
    cold_times: 1.0,
    cold_requests: 1,
    cold_left: 0,
    delay_ns: 0,
    black_hole: false,
    refuses: false,
    probes_in_row: 0,
};

impl Door {
    /// How many times its work the next request takes, which warms the caches.
    fn warm_up(&mut self) -> f64 {
        let cold = f64::from(self.cold_left) / f64::from(self.cold_requests.max(1));
        self.cold_left = self.cold_left.saturating_sub(1);
        1.0 + (self.cold_times - 1.0) * cold
    }
}

/// Runs `scenario` once under `contender`. The same arguments give the same result, on every machine.
#[must_use]
pub fn run(scenario: &Scenario, contender: &Contender, seed: u64) -> Run {
    let mut world = World::new(scenario, contender, seed);
    world.play();
    world.into_run()
}

struct World<'a> {
    scenario: &'a Scenario,
    machines: Vec<Machine>,
    doors: Vec<Door>,
    next: Next,
    agenda: Agenda,
    timetable: Option<Timetable>,
    arrival_ns: u64,
    deadlines: VecDeque<(u64, u32, u32)>,
    front: Front,
    oracle: Option<Oracle>,
    reports: Option<Reports>,
    requests: Slab<Request>,
    jobs: Slab<Job>,
    /// The requests that wait, and when each has waited for long enough.
    queue: Queue<u32>,
    patience: VecDeque<(u64, u32, u64)>,
    records: Vec<Record>,
    random_work: Random,
    random_fate: Random,
    late_ns: Option<u64>,
    probes: u64,
    picks: u64,
    /// Requests that have not ended.
    open: usize,
    now_ns: u64,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, contender: &Contender, seed: u64) -> Self {
        assert!(scenario.retry.attempts_max as usize <= TRIED_MAX, "too many attempts");
        let count = scenario.backends.len();
        // Each use of chance has a stream of its own, so that one policy's choices do not shift another's work.
        let mut seeds = Random::new(seed);
        let reports = Reports::new(if contender.asks() { count } else { 0 });
        let mut world = Self {
            scenario,
            machines: scenario.backends.iter().map(|&spec| Machine::new(spec)).collect(),
            doors: vec![OPEN_DOOR; count],
            next: Next::new(count),
            agenda: Agenda::default(),
            timetable: None,
            arrival_ns: NEVER,
            deadlines: VecDeque::new(),
            front: Front::new(scenario, contender, &reports, seeds.bits()),
            oracle: match contender {
                Contender::Oracle(order) => Some(Oracle::new(*order)),
                _ => None,
            },
            reports: contender.asks().then_some(reports),
            requests: Slab::default(),
            jobs: Slab::default(),
            queue: Queue::new(scenario.waiting.map_or(0, |waiting| waiting.count_max)),
            patience: VecDeque::new(),
            records: Vec::new(),
            random_work: Random::new(seeds.bits()),
            random_fate: Random::new(seeds.bits()),
            late_ns: match scenario.threads.sharing {
                Sharing::Late(lag) => Some(lag.as_nanos() as u64),
                Sharing::Shared | Sharing::Private => None,
            },
            probes: 0,
            picks: 0,
            open: 0,
            now_ns: 0,
        };
        world.prepare(seeds.bits());
        world
    }

    fn prepare(&mut self, seed: u64) {
        for (index, change) in self.scenario.changes.iter().enumerate() {
            self.agenda.add(change.at.as_nanos() as u64, Event::Change(index));
        }
        if let Some(probe) = self.scenario.probe {
            let count = self.machines.len() as u64;
            for backend in 0..self.machines.len() {
                let at_ns = probe.interval.as_nanos() as u64 * backend as u64 / count;
                self.agenda.add(at_ns, Event::Probe { backend });
            }
        }
        match &self.scenario.load {
            Load::Open { arrivals, steps } => {
                let mut timetable = Timetable::new(*arrivals, steps, seed);
                self.arrival_ns = timetable.advance().unwrap_or(NEVER);
                self.timetable = Some(timetable);
            }
            Load::Closed { clients, .. } => {
                for client in 0..*clients as u32 {
                    self.agenda.add(0, Event::Send { client });
                }
            }
        }
    }

    fn play(&mut self) {
        let until_ns = self.scenario.until.as_nanos() as u64;
        let grace_ns = GRACE.min(self.scenario.deadline).as_nanos() as u64;
        loop {
            let (machine_ns, backend) = self.next.first();
            let agenda_ns = self.agenda.next_ns();
            let deadline_ns = self.deadlines.front().map_or(NEVER, |&(at, ..)| at);
            let waited_ns = self.patience.front().map_or(NEVER, |&(at, ..)| at);
            let arrival_ns = if self.arrival_ns < until_ns { self.arrival_ns } else { NEVER };
            let first = machine_ns.min(agenda_ns).min(deadline_ns).min(waited_ns).min(arrival_ns);
            let over = first >= until_ns && (self.open == 0 || first > until_ns + grace_ns);
            if first == NEVER || over {
                return;
            }
            self.now_ns = first;
            if first == machine_ns {
                self.machine(backend);
            } else if first == agenda_ns {
                if let Some((_, event)) = self.agenda.take() {
                    self.event(event);
                }
            } else if first == deadline_ns {
                self.deadline();
            } else if first == waited_ns {
                self.waited();
            } else {
                self.arrival();
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Change(index) => self.change(index),
            Event::Send { client } => self.send(client),
            Event::Unreached { job } => self.ended(job, true),
            Event::Answered { job } => self.ended(job, false),
            Event::Probe { backend } => self.send_probe(backend),
            Event::ProbeOver { job, number } => self.probe_over(job, number),
            Event::Hear { thread, news } => self.front.hear(thread, news, self.now_ns),
        }
    }

    /// A backend has come to a time at which something happens by itself.
    fn machine(&mut self, backend: usize) {
        if let Some(job) = self.machines[backend].take_ended(self.now_ns) {
            self.next.set(backend, self.machines[backend].next_ns());
            self.report(job, backend);
            match self.doors[backend].delay_ns {
                0 => self.ended(job, false),
                delay_ns => self.agenda.add(self.now_ns + delay_ns, Event::Answered { job }),
            }
            self.serve_waiting();
        } else {
            self.next.set(backend, self.machines[backend].next_ns());
        }
    }

    fn report(&mut self, job: u32, backend: usize) {
        let (Some(reports), Some(job)) = (&self.reports, self.jobs.get(job)) else { return };
        let report = &mut reports.read()[backend];
        report.in_flight = self.machines[backend].jobs() as u32;
        let service_ns = job.work_ns / self.machines[backend].speed_now();
        report.answered(job.in_flight_before, (self.now_ns - job.started_ns) as f64, service_ns);
    }

    fn into_run(mut self) -> Run {
        let warm_up_ns = self.scenario.warm_up.as_nanos() as u64;
        let deadline = if self.scenario.deadline < FOREVER { self.scenario.deadline } else { GRACE };
        for record in &mut self.records {
            if record.latency_ns == NEVER {
                record.latency_ns = self.now_ns - record.arrived_ns;
                record.ending = Ending::TimedOut;
            }
        }
        let first = self.records.partition_point(|record| record.arrived_ns < warm_up_ns);
        self.records.drain(..first);
        let measured = self.scenario.until.saturating_sub(self.scenario.warm_up);
        Run { records: self.records, deadline, measured, picks: self.picks }
    }
}
