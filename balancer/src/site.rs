//! What is served: the clusters of one configuration, shared by all threads, and each thread's view of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use select::{Backend, Cluster, Health, Limits, Queue, View};

use crate::access::AccessLog;
use crate::bell::Bell;
use crate::clock;
use crate::config::{CATCH_ALL, ClusterConfig, Config};
use crate::driver::Driver;
use crate::insight::Insight;
use crate::listen::Listeners;
use crate::pool::Pool;
use crate::proxy::Waiting;
use crate::stats::{BackendStats, Totals};

/// One backend with what the balancer knows beside the choice. Lives as long as some configuration has it or a
/// request is in flight on it, so that its numbers survive a reload.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) cluster: String,
    pub(crate) backend: Arc<Backend>,
    pub(crate) address: SocketAddr,
    pub(crate) stats: BackendStats,
    /// Whether a probe has ever finished: the first one decides alone.
    pub(crate) probed: AtomicBool,
    /// No configuration has it any more.
    leaving: AtomicBool,
}

impl Member {
    fn is(&self, cluster: &str, id: &str, address: SocketAddr) -> bool {
        self.is_named(cluster, id) && self.address == address
    }

    fn is_named(&self, cluster: &str, id: &str) -> bool {
        self.cluster == cluster && self.backend.id() == id
    }

    /// Whether an operator has drained it, rather than a reload that no longer has it.
    fn is_drained(&self) -> bool {
        !self.leaving.load(Relaxed) && self.backend.health(clock::now()) == Health::Draining
    }
}

/// Cluster and id of a backend that an operator has drained.
pub(crate) type Drained = (String, String);

/// A cluster as all threads share it. `members` are in step with the backends of `view`.
pub(crate) struct Shard {
    pub(crate) config: ClusterConfig,
    pub(crate) view: Arc<View>,
    pub(crate) members: Vec<Arc<Member>>,
    /// Requests that wait for one of them to have room, by the bells of their threads.
    pub(crate) queue: Queue<Arc<Bell>>,
}

/// Everything that follows from one configuration. Immutable; a reload makes the next one.
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) config: Config,
    /// In the order of their names.
    pub(crate) clusters: Vec<Shard>,
    pub(crate) catch_all: Option<usize>,
}

impl Generation {
    /// Builds the clusters of `config`, with the members among `kept` that it still has.
    fn build(number: u64, mut config: Config, kept: &[Arc<Member>], epoch: Instant) -> Self {
        config.clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let clusters: Vec<Shard> =
            config.clusters.iter().map(|cluster| shard(&config, cluster, kept, epoch)).collect();
        let catch_all = clusters.iter().position(|cluster| cluster.config.name == CATCH_ALL);
        Self { number, config, clusters, catch_all }
    }

    /// The cluster for a first path segment.
    pub(crate) fn route(&self, segment: &[u8]) -> Option<usize> {
        let found = self.clusters.binary_search_by(|cluster| cluster.config.name.as_bytes().cmp(segment));
        found.ok().or(self.catch_all)
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.clusters.iter().flat_map(|cluster| &cluster.members)
    }
}

fn shard(config: &Config, cluster: &ClusterConfig, kept: &[Arc<Member>], epoch: Instant) -> Shard {
    let member = |id: &str, address| {
        let found = kept.iter().find(|member| member.is(&cluster.name, id, address));
        found.cloned().unwrap_or_else(|| {
            Arc::new(Member {
                cluster: cluster.name.clone(),
                backend: Arc::new(Backend::new(id, epoch)),
                address,
                stats: BackendStats::default(),
                probed: AtomicBool::new(false),
                leaving: AtomicBool::new(false),
            })
        })
    };
    let members: Vec<_> = cluster.backends.iter().map(|b| member(&b.id, b.address)).collect();
    let backends = members.iter().map(|member| Arc::clone(&member.backend)).collect();
    let timeouts = &config.timeouts;
    let limits = Limits {
        deadline: timeouts.deadline.unwrap_or(timeouts.response),
        learns: timeouts.deadline.is_some(),
        in_flight_max: cluster.in_flight_max,
    };
    let view = Arc::new(View::new(backends, cluster.ejection).limited(limits));
    Shard { config: cluster.clone(), view, members, queue: Queue::new(config.limits.queue) }
}

/// What all threads of the process share.
pub(crate) struct Shared {
    pub(crate) started: Instant,
    /// Where clients connect; known once the port is.
    pub(crate) listen: SocketAddr,
    pub(crate) totals: Totals,
    pub(crate) access: Option<Arc<AccessLog>>,
    pub(crate) insight: Insight,
    /// Set once: stop accepting, close each connection after its next answer.
    draining: AtomicBool,
    /// Set once, before `draining`: a successor accepts.
    handed_over: AtomicBool,
    /// For a successor; none any more once this process drains.
    pub(crate) listeners: Mutex<Option<Listeners>>,
    /// Held while a successor is starting.
    pub(crate) succession: Mutex<()>,
    /// Shared by threads that accept clients; held alone to refuse one with the last descriptor.
    pub(crate) accepting: RwLock<()>,
    /// What each thread runs on.
    pub(crate) drivers: Mutex<Vec<Driver>>,
    generation: Mutex<Arc<Generation>>,
    /// Number of the current generation; read by every request instead of the lock.
    version: AtomicU64,
    leaving: Mutex<Vec<Arc<Member>>>,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        listen: SocketAddr,
        listeners: Listeners,
        access: Option<AccessLog>,
    ) -> Self {
        let started = clock::now();
        Self {
            started,
            listen,
            totals: Totals::default(),
            access: access.map(Arc::new),
            insight: Insight::new(config.threads),
            draining: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            listeners: Mutex::new(Some(listeners)),
            succession: Mutex::default(),
            accepting: RwLock::default(),
            drivers: Mutex::default(),
            generation: Mutex::new(Arc::new(Generation::build(0, config, &[], started))),
            version: AtomicU64::new(0),
            leaving: Mutex::default(),
        }
    }

    pub(crate) fn generation(&self) -> Arc<Generation> {
        Arc::clone(&lock(&self.generation))
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    pub(crate) fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Acquire)
    }

    pub(crate) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Relaxed)
    }

    /// Begins to drain, with nobody to take over.
    pub(crate) fn drain(&self) {
        // The last holder's close counts, and the threads close theirs when their queues are empty.
        lock(&self.listeners).take();
        self.draining.store(true, Release);
    }

    /// Begins to drain, because a successor has the listeners.
    pub(crate) fn hand_over(&self) {
        self.handed_over.store(true, Relaxed);
        self.drain();
    }

    /// Members of no current cluster that still have requests in flight.
    pub(crate) fn leaving(&self) -> Vec<Arc<Member>> {
        let mut leaving = lock(&self.leaving);
        leaving.retain(|member| member.backend.in_flight() > 0);
        leaving.clone()
    }

    /// What an operator has drained of the current configuration.
    pub(crate) fn drained(&self) -> Vec<Drained> {
        let generation = self.generation();
        let drained = generation.members().filter(|member| member.is_drained());
        drained.map(|member| (member.cluster.clone(), member.backend.id().to_owned())).collect()
    }

    /// Drains what an operator has drained elsewhere; what is not there does not matter.
    pub(crate) fn drain_backends(&self, drained: &[Drained]) {
        drain_named(&self.generation(), drained);
    }

    /// Replaces the configuration. Backends that both have keep their numbers and their health; those that are gone
    /// finish what they have. What an operator has drained stays so, also at another address.
    pub(crate) fn replace(&self, config: Config) {
        let drained = self.drained();
        let mut current = lock(&self.generation);
        let mut leaving = lock(&self.leaving);
        let mut kept: Vec<_> = current.members().cloned().collect();
        kept.append(&mut leaving);
        let next = Arc::new(Generation::build(current.number + 1, config, &kept, self.started));
        // Before the old backends drain, so that a request that finds them draining has not begun since: whoever sees
        // the number waits for the lock.
        self.version.store(next.number, Release);
        for member in &kept {
            let stays = next.members().any(|other| Arc::ptr_eq(other, member));
            // One that stays keeps what an operator said of it; one that comes back while leaving is wanted again.
            if !stays {
                member.backend.set_draining(true);
                leaving.push(Arc::clone(member));
            } else if member.leaving.load(Relaxed) {
                member.backend.set_draining(false);
            }
            member.leaving.store(!stays, Relaxed);
        }
        drain_named(&next, &drained);
        *current = next;
    }
}

fn drain_named(generation: &Generation, drained: &[Drained]) {
    for (cluster, id) in drained {
        let named = generation.members().filter(|member| member.is_named(cluster, id));
        named.for_each(|member| member.backend.set_draining(true));
    }
}

/// A lock whose holders never leave it half changed, so that a panic elsewhere does not spread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's view of a generation.
pub(crate) struct Site {
    pub(crate) generation: Arc<Generation>,
    pub(crate) pickers: Vec<RefCell<Picker>>,
    bell: Arc<Bell>,
}

/// One thread's choice and idle connections of one cluster.
pub(crate) struct Picker {
    pub(crate) cluster: Cluster,
    pub(crate) pool: Pool,
    /// This thread's requests in the cluster's queue, by their places.
    pub(crate) waiting: BTreeMap<u64, Waiting>,
}

impl Site {
    /// `seed` differs between threads. Idle connections to kept backends are taken over from `previous`.
    pub(crate) fn new(
        generation: Arc<Generation>,
        bell: Arc<Bell>,
        seed: u64,
        previous: Option<&Self>,
    ) -> Self {
        let policy = generation.config.policy;
        let picker = |(index, shard): (usize, &Shard)| {
            let mut pool = Pool::new(shard.members.len());
            if let Some(previous) = previous {
                adopt(&mut pool, shard, previous);
            }
            let seed = seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64);
            let cluster = Cluster::new(Arc::clone(&shard.view), policy, seed);
            RefCell::new(Picker { cluster, pool, waiting: BTreeMap::new() })
        };
        let pickers = generation.clusters.iter().enumerate().map(picker).collect();
        Self { generation, pickers, bell }
    }

    /// Tells the request that is first in a cluster's queue, here or in another thread, that there may be room.
    pub(crate) fn tell_first(&self, cluster: usize) {
        let Some((place, bell)) = self.generation.clusters[cluster].queue.first() else { return };
        if !Arc::ptr_eq(&bell, &self.bell) {
            bell.ring();
        } else if let Some(waiting) = self.pickers[cluster].borrow_mut().waiting.get_mut(&place) {
            waiting.tell();
        }
    }

    /// Closes all idle connections, for when descriptors run out; how many there were.
    pub(crate) fn close_idle(&self) -> usize {
        self.pickers.iter().map(|picker| picker.borrow_mut().pool.clear()).sum()
    }

    /// Closes idle connections that are too old or lead to backends that are not up.
    pub(crate) fn sweep(&self, now_ms: u64, now: Instant) {
        for (picker, shard) in self.pickers.iter().zip(&self.generation.clusters) {
            let up = |index: usize| shard.members[index].backend.health(now) == Health::Up;
            picker.borrow_mut().pool.sweep(now_ms, up);
        }
    }
}

fn adopt(pool: &mut Pool, shard: &Shard, previous: &Site) {
    for (picker, old) in previous.pickers.iter().zip(&previous.generation.clusters) {
        if old.config.name != shard.config.name {
            continue;
        }
        for (index, member) in shard.members.iter().enumerate() {
            if let Some(from) = old.members.iter().position(|other| Arc::ptr_eq(other, member)) {
                pool.adopt(index, &mut picker.borrow_mut().pool, from);
            }
        }
    }
}
