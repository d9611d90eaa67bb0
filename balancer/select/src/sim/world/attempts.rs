//! A request's life: arrival, attempts, end.

use super::{Event, Job, Load, NEVER, NOBODY, Request, TRIED_MAX, World};
use crate::sim::front::News;
use crate::sim::run::{Ending, Record};
use crate::sim::scenario::FOREVER;
use crate::sim::work::unit;
use crate::ticket::{Outcome, Ticket};

impl World<'_> {
    /// An arrival of the open load.
    pub(super) fn arrival(&mut self) {
        self.arrival_ns = self.timetable.as_mut().and_then(|timetable| timetable.advance()).unwrap_or(NEVER);
        self.admit(NOBODY);
    }

    /// A client of a closed load sends.
    pub(super) fn send(&mut self, client: u32) {
        if self.now_ns < self.scenario.until.as_nanos() as u64 {
            self.admit(client);
        }
    }

    fn admit(&mut self, client: u32) {
        let work_ns = self.scenario.work.sample_ns(&mut self.random_work);
        let thread = match self.scenario.threads.count {
            1 => 0,
            count => self.random_work.below(count) as u32,
        };
        let record = self.records.len() as u32;
        self.records.push(Record {
            arrived_ns: self.now_ns,
            latency_ns: NEVER,
            backend: Record::NOBODY,
            attempts: 0,
            ending: Ending::TimedOut,
        });
        self.open += 1;
        let request = self.requests.add(Request {
            record,
            arrived_ns: self.now_ns,
            work_ns,
            thread,
            client,
            job: NOBODY,
            place: None,
            tried: [0; TRIED_MAX],
            attempts: 0,
        });
        if self.scenario.deadline < FOREVER {
            let at_ns = self.now_ns + self.scenario.deadline.as_nanos() as u64;
            self.deadlines.push_back((at_ns, request, record));
        }
        if let Some(oracle) = &mut self.oracle {
            oracle.add(request, work_ns);
            self.serve_waiting();
        } else {
            self.attempt(request);
        }
    }

    /// Sends a request to the backend that is chosen for it, keeps it waiting, or ends it.
    pub(super) fn attempt(&mut self, id: u32) {
        let Some(request) = self.requests.get(id) else { return };
        let (thread, attempts) = (request.thread as usize, request.attempts);
        // Who comes when others wait waits behind them; who comes again has waited.
        let ticket = if attempts == 0 && !self.queue.is_empty() {
            None
        } else {
            self.front.pick(thread, &request.tried[..attempts], self.now_ns)
        };
        match ticket {
            Some(ticket) => self.dispatch(id, ticket.backend(), Some(ticket)),
            None if attempts == 0 && self.join(id, thread) => {}
            None => self.end(id, if attempts == 0 { Ending::Refused } else { Ending::Failed }),
        }
    }

    fn dispatch(&mut self, id: u32, backend: usize, ticket: Option<Ticket>) {
        self.picks += 1;
        let door = self.doors[backend];
        let fails = door.fails_share > 0.0 && unit(&mut self.random_fate) < door.fails_share;
        let Some(request) = self.requests.get_mut(id) else { return };
        request.tried[request.attempts] = backend;
        request.attempts += 1;
        let (thread, record) = (request.thread as usize, request.record as usize);
        let share = if fails { door.fails_work } else { self.doors[backend].warm_up() };
        let work_ns = request.work_ns * share;
        self.records[record].backend = backend as u32;
        let job = self.jobs.add(Job {
            request: id,
            backend: backend as u32,
            fails,
            ticket,
            started_ns: self.now_ns,
            work_ns,
            in_flight_before: self.machines[backend].jobs() as u32,
            probe: 0,
        });
        if let Some(request) = self.requests.get_mut(id) {
            request.job = job;
        }
        self.tell_others(thread, News::Picked { job, backend });
        self.arrive(job, backend, work_ns);
    }

    /// The attempt comes to its backend, or finds out that it does not.
    pub(super) fn arrive(&mut self, job: u32, backend: usize, work_ns: f64) {
        let (door, retry) = (self.doors[backend], self.scenario.retry);
        if door.refuses || door.black_hole {
            let wait = if door.refuses { retry.refused_after } else { retry.timeout_connect };
            self.agenda.add(self.now_ns + wait.as_nanos() as u64, Event::Unreached { job });
            return;
        }
        self.machines[backend].add(job, work_ns, self.now_ns);
        self.next.set(backend, self.machines[backend].next_ns());
        if let Some(reports) = &self.reports {
            reports.read()[backend].in_flight = self.machines[backend].jobs() as u32;
        }
    }

    /// An attempt or a probe is over; `unreached` when its backend gave no answer at all.
    pub(super) fn ended(&mut self, id: u32, unreached: bool) {
        let Some(job) = self.jobs.take(id) else { return };
        if job.probe > 0 {
            return self.probe_answered(&job, !unreached && !job.fails);
        }
        if job.request == NOBODY {
            return;
        }
        let Some(request) = self.requests.get_mut(job.request) else { return };
        request.job = NOBODY;
        let (thread, again) =
            (request.thread as usize, request.attempts < self.scenario.retry.attempts_max as usize);
        let failed = unreached || job.fails;
        let outcome = if failed { Outcome::Failure } else { Outcome::Success };
        self.settle(thread, id, job.ticket, outcome);
        if unreached && again {
            if let Some(oracle) = &mut self.oracle {
                oracle.add(job.request, job.work_ns);
                return;
            }
            self.attempt(job.request);
        } else {
            self.end(job.request, if failed { Ending::Failed } else { Ending::Answered });
        }
    }

    /// Gives a ticket back.
    fn settle(&mut self, thread: usize, job: u32, ticket: Option<Ticket>, outcome: Outcome) {
        if let Some(ticket) = ticket {
            self.front.finish(thread, ticket, outcome, self.now_ns);
            self.tell_others(thread, News::Finished { job, outcome });
        }
    }

    /// The request is over for its client.
    fn end(&mut self, id: u32, ending: Ending) {
        let Some(request) = self.requests.take(id) else { return };
        if let Some(place) = request.place {
            self.queue.leave(place);
        }
        self.open -= 1;
        let record = &mut self.records[request.record as usize];
        record.latency_ns = self.now_ns - request.arrived_ns;
        record.attempts = request.attempts as u32;
        record.ending = ending;
        if request.client != NOBODY
            && let Load::Closed { think, .. } = self.scenario.load
        {
            // Whatever the answer, it takes a round trip: otherwise who is refused at once would ask without end, and time
            // stand still.
            let round_trip_ns = (self.scenario.retry.refused_after.as_nanos() as u64).max(1);
            let at_ns = (self.now_ns + think.as_nanos() as u64).max(request.arrived_ns + round_trip_ns);
            self.agenda.add(at_ns, Event::Send { client: request.client });
        }
    }

    /// The deadline of the oldest request has come.
    pub(super) fn deadline(&mut self) {
        let Some((_, id, record)) = self.deadlines.pop_front() else { return };
        let Some(request) = self.requests.get(id).filter(|request| request.record == record) else { return };
        let (thread, job) = (request.thread as usize, request.job);
        if let Some(oracle) = &mut self.oracle {
            oracle.remove(id);
        }
        // The backend works on, and nobody waits for it any more.
        let ticket = self.jobs.get_mut(job).and_then(|job| {
            job.request = NOBODY;
            job.ticket.take()
        });
        self.settle(thread, job, ticket, Outcome::Failure);
        self.end(id, Ending::TimedOut);
        self.serve_waiting();
    }

    /// Puts a request into the queue, if it is worth while and there is room.
    fn join(&mut self, id: u32, thread: usize) -> bool {
        let Some(wait) = self.front.wait(thread, self.queue.len(), self.now_ns) else { return false };
        let (Some(place), Some(request)) = (self.queue.join(id), self.requests.get_mut(id)) else {
            return false;
        };
        request.place = Some(place);
        self.patience.push_back((self.now_ns + wait.as_nanos() as u64, id, place));
        true
    }

    /// The oldest waiting request has waited for long enough, unless it has gone.
    pub(super) fn waited(&mut self) {
        let Some((_, id, place)) = self.patience.pop_front() else { return };
        if self.requests.get(id).is_some_and(|request| request.place == Some(place)) {
            self.end(id, Ending::Refused);
        }
    }

    /// Gives waiting requests to backends that have room now.
    pub(super) fn serve_waiting(&mut self) {
        if self.oracle.is_some() {
            return self.consult_oracle();
        }
        while let Some((place, id)) = self.queue.first() {
            let Some(request) = self.requests.get_mut(id) else { return };
            let Some(ticket) = self.front.pick(request.thread as usize, &[], self.now_ns) else { return };
            request.place = None;
            self.queue.leave(place);
            self.dispatch(id, ticket.backend(), Some(ticket));
        }
    }

    fn consult_oracle(&mut self) {
        loop {
            let doors = &self.doors;
            let usable = |index: usize| {
                let door = &doors[index];
                door.fails_share == 0.0 && !door.black_hole && !door.refuses
            };
            let Some(oracle) = &mut self.oracle else { return };
            let Some((id, backend)) = oracle.next(&self.machines, usable, self.now_ns) else { return };
            self.dispatch(id, backend, None);
        }
    }

    fn tell_others(&mut self, thread: usize, news: News) {
        let Some(late_ns) = self.late_ns else { return };
        for other in (0..self.scenario.threads.count).filter(|&other| other != thread) {
            self.agenda.add(self.now_ns + late_ns, Event::Hear { thread: other, news });
        }
    }
}
