//! Makes a request cost what it should: held for its emulated time, or burnt as CPU time.
//!
//! Both ways are one first-in-first-out queue across all connections. How long an emulated request takes is decided
//! in `capacity`; this module only reads the clock, waits and burns. Does not know of HTTP.

use std::{
    hint,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use may::{coroutine, sync::SyncFlag};
use rustix::time::{ClockId, clock_gettime};

use crate::capacity::{Fifo, Load, QUEUE_MAX};

/// Rounds of busy work between two looks at the CPU clock: some microseconds, so that the look (a system call)
/// costs little and the overshoot stays small.
const SPINS_PER_LOOK: u32 = 2000;

/// Too many requests wait already.
#[derive(Debug)]
pub(crate) struct QueueFull;

/// What stands behind the requests.
#[derive(Debug)]
pub(crate) enum Machine {
    /// Requests cost nothing.
    Free,
    /// Requests are held as long as the emulated type would need.
    Emulated(Mutex<Fifo>),
    /// Requests burn CPU time of this machine.
    Real(Burner),
}

impl Machine {
    /// Returns when the request has been served; the calling coroutine waits meanwhile, its thread does not.
    pub(crate) fn serve(&self, work: Duration) -> Result<(), QueueFull> {
        match self {
            Self::Free => Ok(()),
            Self::Emulated(fifo) => hold(fifo, work),
            Self::Real(burner) => burner.serve(work),
        }
    }

    pub(crate) fn load(&self) -> Load {
        match self {
            Self::Free => Load { in_service: 0, queued: 0 },
            Self::Emulated(fifo) => lock(fifo).load(Instant::now()),
            Self::Real(burner) => burner.load(),
        }
    }

    /// The CPU credits left, where they are emulated.
    pub(crate) fn credits(&self) -> Option<f64> {
        match self {
            Self::Emulated(fifo) => lock(fifo).credits(Instant::now()),
            Self::Free | Self::Real(_) => None,
        }
    }

    /// Multiplies the speed of requests that come from now on.
    pub(crate) fn set_factor(&self, factor: f64) {
        match self {
            Self::Free => {}
            Self::Emulated(fifo) => lock(fifo).set_factor(factor),
            Self::Real(burner) => burner.factor.store(factor.to_bits(), Relaxed),
        }
    }
}

fn lock(fifo: &Mutex<Fifo>) -> std::sync::MutexGuard<'_, Fifo> {
    fifo.lock().expect("nothing panics while it holds the queue")
}

fn hold(fifo: &Mutex<Fifo>, work: Duration) -> Result<(), QueueFull> {
    let finish = {
        let mut fifo = lock(fifo);
        fifo.admit(work, Instant::now()).ok_or(QueueFull)?
    };
    let left = finish.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        coroutine::sleep(left);
    }
    Ok(())
}

/// One thread per vCPU that burns CPU time, behind one bounded queue.
///
/// The threads are not may's: a scheduler thread that burns would keep every other connection waiting, also those
/// that ask for health or counters.
#[derive(Debug)]
pub(crate) struct Burner {
    queue: SyncSender<Job>,
    counts: Arc<Counts>,
    /// Bits of the f64 speed factor.
    factor: AtomicU64,
}

#[derive(Debug)]
struct Job {
    cpu: Duration,
    done: Arc<SyncFlag>,
}

#[derive(Debug, Default)]
struct Counts {
    taken: AtomicUsize,
    burning: AtomicUsize,
}

impl Burner {
    /// Starts `vcpus` threads; an error is the system's refusal to start one.
    pub(crate) fn start(vcpus: usize) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let counts = Arc::new(Counts::default());
        for vcpu in 0..vcpus {
            let (jobs, counts) = (Arc::clone(&jobs), Arc::clone(&counts));
            thread::Builder::new().name(format!("burner-{vcpu}")).spawn(move || burn_all(&jobs, &counts))?;
        }
        Ok(Self { queue, counts, factor: AtomicU64::new(1f64.to_bits()) })
    }

    fn serve(&self, work: Duration) -> Result<(), QueueFull> {
        let done = Arc::new(SyncFlag::new());
        let cpu = work.div_f64(f64::from_bits(self.factor.load(Relaxed)));
        self.counts.taken.fetch_add(1, Relaxed);
        let sent = self.queue.try_send(Job { cpu, done: Arc::clone(&done) });
        if sent.is_ok() {
            done.wait();
        }
        self.counts.taken.fetch_sub(1, Relaxed);
        sent.map_err(|_| QueueFull)
    }

    fn load(&self) -> Load {
        let in_service = self.counts.burning.load(Relaxed);
        let queued = self.counts.taken.load(Relaxed).saturating_sub(in_service);
        Load { in_service, queued }
    }
}

fn burn_all(jobs: &Mutex<Receiver<Job>>, counts: &Counts) {
    // The lock is held while waiting: the others wait for the lock instead of the channel.
    let next = || jobs.lock().expect("nothing panics while it holds the receiver").recv();
    while let Ok(job) = next() {
        counts.burning.fetch_add(1, Relaxed);
        burn(job.cpu);
        counts.burning.fetch_sub(1, Relaxed);
        job.done.fire();
    }
}

/// Uses `cpu` of this thread's CPU time; time in which the thread does not run does not count.
fn burn(cpu: Duration) {
    let end = cpu_time(ClockId::ThreadCPUTime) + cpu;
    while cpu_time(ClockId::ThreadCPUTime) < end {
        let mut value = 1u64;
        for _ in 0..SPINS_PER_LOOK {
            value = hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// CPU time used by the whole process.
pub(crate) fn process_cpu_time() -> Duration {
    cpu_time(ClockId::ProcessCPUTime)
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burning_uses_at_least_the_cpu_time_asked_for() {
        let before = cpu_time(ClockId::ThreadCPUTime);
        burn(Duration::from_millis(3));
        assert!(cpu_time(ClockId::ThreadCPUTime) - before >= Duration::from_millis(3));
    }

    #[test]
    fn a_burner_serves_every_request_and_is_idle_afterwards() {
        let burner = Arc::new(Burner::start(2).expect("two threads start"));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let burner = Arc::clone(&burner);
                thread::spawn(move || burner.serve(Duration::from_micros(100)))
            })
            .collect();
        for caller in callers {
            caller.join().expect("the caller ends").expect("the queue has room");
        }
        assert_eq!(burner.load(), Load { in_service: 0, queued: 0 });
    }
}
