//! nginx's least_time.

use super::{Policy, Sample};
use crate::decision::Belief;
use crate::view::View;

/// Response times are rounded up to the next multiple, "to allow round-robin for peers with close response times".
const CLUSTER_MS: u64 = 20;
/// Above this all backends are equally bad.
const TIME_MAX_MS: u64 = 5000;
/// After a backend has not been chosen for this long, its time is halved once per such period (`fail_timeout`).
const FAIL_TIMEOUT_S: u64 = 10;
/// Weight of a sample in the average.
const WEIGHT: f64 = 0.05;

/// `least_time last_byte` of nginx 1.31 with equal weights (`ngx_http_upstream_least_time_module.c`): the smallest
/// product of the response time, in clusters of 20 ms, and one more than the requests in flight; equal ones in
/// turn. Failed requests are not learnt from. Below 20 ms it is least-outstanding.
///
/// Times are whole milliseconds and seconds as there; each thread has averages of its own, as without a `zone`.
#[derive(Debug, Default)]
pub(crate) struct LeastTime {
    peers: Vec<Peer>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Peer {
    response_time_ms: u64,
    checked_s: u64,
    /// Position in nginx's smooth round-robin.
    current_weight: i64,
}

impl Peer {
    /// `ngx_http_upstream_least_time_eta`.
    fn eta(&self, in_flight: u32, now_s: u64) -> u64 {
        let mut time_ms = self.response_time_ms;
        let unchecked_s = now_s - self.checked_s;
        if unchecked_s > FAIL_TIMEOUT_S {
            let shift = unchecked_s / (FAIL_TIMEOUT_S + 1);
            time_ms = if shift < 64 { time_ms >> shift } else { 0 };
        }
        let time_ms =
            if time_ms > TIME_MAX_MS { TIME_MAX_MS } else { time_ms + CLUSTER_MS - time_ms % CLUSTER_MS };
        time_ms * (1 + u64::from(in_flight))
    }

    /// `ngx_http_upstream_response_time_avg`: rounds to the nearest millisecond, so that an average stands still
    /// when a sample differs from it by less than 10 ms.
    fn learn(&mut self, time_ms: u64) {
        self.response_time_ms = match self.response_time_ms {
            0 => time_ms,
            old => (0.5 + time_ms as f64 * WEIGHT + old as f64 * (1.0 - WEIGHT)) as u64,
        };
    }
}

impl Policy for LeastTime {
    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize {
        self.peers.resize(view.backends().len(), Peer::default());
        let now_s = now_ns / 1_000_000_000;
        let eta = |peers: &[Peer], index: u32| {
            peers[index as usize].eta(view.backends()[index as usize].in_flight(), now_s)
        };
        let least = candidates.iter().map(|&index| eta(&self.peers, index)).min().unwrap_or(0);
        let mut best = None::<usize>;
        let mut total = 0;
        for &index in candidates {
            if eta(&self.peers, index) != least {
                continue;
            }
            let index = index as usize;
            self.peers[index].current_weight += 1;
            total += 1;
            if best.is_none_or(|best| self.peers[index].current_weight > self.peers[best].current_weight) {
                best = Some(index);
            }
        }
        let best = best.unwrap_or(candidates[0] as usize);
        let peer = &mut self.peers[best];
        peer.current_weight -= total;
        if now_s - peer.checked_s > FAIL_TIMEOUT_S {
            peer.checked_s = now_s;
        }
        best
    }

    fn finished(&mut self, sample: &Sample, _now_ns: u64) {
        if let (false, Some(peer)) = (sample.failed, self.peers.get_mut(sample.backend)) {
            peer.learn(sample.latency_ns / 1_000_000);
        }
    }

    fn cost(&self, view: &View, backend: usize, now_ns: u64) -> Option<f64> {
        let peer = self.peers.get(backend)?;
        Some(peer.eta(view.backends()[backend].in_flight(), now_ns / 1_000_000_000) as f64)
    }

    fn believes(&self, _view: &View, backend: usize, _now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        if let Some(peer) = self.peers.get(backend) {
            tell(Belief::new("response_time", "ms", peer.response_time_ms as f64));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn peer(response_time_ms: u64) -> Peer {
        Peer { response_time_ms, ..Peer::default() }
    }

    #[test]
    fn times_are_counted_in_clusters_of_20_ms_and_multiplied_by_the_requests_there() {
        assert_eq!(peer(0).eta(0, 0), 20);
        assert_eq!(peer(19).eta(2, 0), 60);
        assert_eq!(peer(20).eta(0, 0), 40);
        assert_eq!(peer(5000).eta(0, 0), 5020);
        assert_eq!(peer(9000).eta(1, 0), 10_000);
    }

    #[test]
    fn time_of_a_peer_that_was_not_chosen_is_halved() {
        assert_eq!(peer(400).eta(0, 10), 420);
        assert_eq!(peer(400).eta(0, 11), 220);
        assert_eq!(peer(400).eta(0, 22), 120);
        assert_eq!(peer(400).eta(0, 1000), 20);
    }

    #[test]
    fn average_gives_a_sample_the_weight_of_one_in_twenty() {
        let mut peer = peer(0);
        peer.learn(100);
        peer.learn(300);
        assert_eq!(peer.response_time_ms, 110);
        peer.learn(119);
        assert_eq!(peer.response_time_ms, 110, "0.5 + 5.95 + 104.5");
    }
}
