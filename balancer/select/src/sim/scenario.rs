//! What is simulated: backends, load, and what happens to them.

use std::time::Duration;

use super::load::Load;
use super::machine::Spec;
use super::work::Work;
use crate::view::Ejection;

/// The live balancer's default for [`Waiting::count_max`].
const WAITING_MAX: usize = 1024;
/// A deadline that no healthy cluster comes near: the live balancer's default for answers.
const DEADLINE: Duration = Duration::from_secs(30);

/// A time long enough to stand for ever in a simulation, short enough to be added to others.
pub const FOREVER: Duration = Duration::from_secs(1 << 32);

/// One experiment: everything but the policy and the seed. The same seed gives the same arrivals and the same work
/// per request to every policy.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub backends: Vec<Spec>,
    pub work: Work,
    pub load: Load,
    /// Requests that arrive before this are served and not reported.
    pub warm_up: Duration,
    /// The last request arrives before this; what is open then is served to its end or its deadline.
    pub until: Duration,
    pub changes: Vec<Change>,
    /// After this a client has no use for an answer any more. The backend works on.
    pub deadline: Duration,
    pub retry: Retry,
    pub waiting: Option<Waiting>,
    pub probe: Option<Probe>,
    pub threads: Threads,
    pub ejection: Ejection,
}

/// Something that happens to a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    pub at: Duration,
    pub backend: usize,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// The speed of each slot from now on. 0 stalls: it accepts and never answers.
    Speed(f64),
    /// From now on this share of new requests fails after this fraction of its work.
    Fail { share: f64, work: f64 },
    /// Its caches are empty: the next request is this many times its work, and each of so many that follow is less,
    /// evenly, down to its own work.
    Cold { times: f64, requests: u32 },
    /// From now on every answer comes so much later, without work.
    Delay(Duration),
    /// Connection attempts get no answer; what was sent before gets none either.
    BlackHole,
    /// Loses all requests and refuses connections.
    Crash,
    /// Takes requests again after a crash or a black hole, at the speed of its specification.
    Restart,
    /// An operator takes it out (`true`) or brings it in: [`crate::Backend::set_draining`].
    Drain(bool),
}

/// What the balancer does about attempts that fail before an answer begins, as the live one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts per request, the first included.
    pub attempts_max: u32,
    /// How long a connection attempt is waited for.
    pub timeout_connect: Duration,
    /// How long a refused connection takes to be refused.
    pub refused_after: Duration,
}

/// Backends have limits, and requests that find every one at its limit wait in the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Requests that wait, all threads together. More are refused.
    pub count_max: usize,
    /// [`crate::Limits::deadline`]: what the balancer takes for it.
    pub deadline: Duration,
}

/// Active checks of each backend, spread over the interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    pub interval: Duration,
    pub timeout: Duration,
    /// Work of a probe, in nanoseconds at speed 1.
    pub work_ns: f64,
    pub rise: u32,
    pub fall: u32,
}

/// The balancer's threads; a request comes to one of them by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    pub count: usize,
    pub sharing: Sharing,
}

/// What the threads know of each other's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Everything at once: one view.
    Shared,
    /// Nothing.
    Private,
    /// Everything, but so much later.
    Late(Duration),
}

impl Scenario {
    /// A minute of `load` on `backends`, the first five seconds of which do not count, and nothing else happens:
    /// no failures, no clients that leave, one thread.
    #[must_use]
    pub fn steady(backends: Vec<Spec>, work: Work, load: Load) -> Self {
        Self {
            backends,
            work,
            load,
            warm_up: Duration::from_secs(5),
            until: Duration::from_secs(60),
            changes: Vec::new(),
            deadline: FOREVER,
            retry: Retry::default(),
            waiting: Some(Waiting { count_max: WAITING_MAX, deadline: DEADLINE }),
            probe: None,
            threads: Threads { count: 1, sharing: Sharing::Shared },
            ejection: Ejection::default(),
        }
    }

    /// Clients have no use for an answer after `deadline`, and the balancer knows.
    pub fn due_within(&mut self, deadline: Duration) {
        self.deadline = deadline;
        self.waiting = Some(Waiting { count_max: WAITING_MAX, deadline });
    }

    /// Requests per second that all backends together can serve at full speed.
    #[must_use]
    pub fn capacity_per_second(&self) -> f64 {
        let speed: f64 = self.backends.iter().map(Spec::capacity).sum();
        speed * 1e9 / self.work.mean_ns()
    }
}

impl Default for Retry {
    /// The live balancer's defaults on a network where a refusal takes a tenth of a millisecond.
    fn default() -> Self {
        Self {
            attempts_max: 3,
            timeout_connect: Duration::from_secs(1),
            refused_after: Duration::from_micros(100),
        }
    }
}
