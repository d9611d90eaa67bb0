//! Envoy's contributed peak_ewma.

use super::two_choices::draw_two;
use super::{Policy, Sample};
use crate::decision::Belief;
use crate::random::Random;
use crate::view::View;

/// Defaults of its configuration: decay, aggregation, time and penalty of an unknown host, samples kept.
const DECAY_S: f64 = 10.0;
const AGGREGATION_NS: u64 = 100_000_000;
const DEFAULT_RTT_MS: f64 = 10.0;
const PENALTY: f64 = 1e6;
const SAMPLES_MAX: usize = 1000;

/// `peak_ewma` of Envoy's contrib tree (`contrib/peak_ewma/load_balancing_policies/source/{peak_ewma_lb,cost}.cc`):
/// the cheaper of two hosts, where the cost is an average of whole milliseconds times one more than the requests in
/// flight. Samples are folded in every 100 ms with weight 1 - exp(-age/10 s), so within a batch the older ones weigh
/// more; samples of 0 ms are dropped; errors count as answers. There is no peak.
#[derive(Debug)]
pub(crate) struct EnvoyPeakEwma {
    random: Random,
    hosts: Vec<Host>,
    aggregated_ns: u64,
    /// The two that were compared last.
    drawn: [u32; 2],
}

#[derive(Debug)]
struct Host {
    rtt_ms: f64,
    /// Milliseconds and time of samples that are not folded in yet; like Envoy's ring it never grows.
    samples: Vec<(f64, u64)>,
}

/// `Cost::compute`.
fn cost(rtt_ms: f64, in_flight: f64) -> f64 {
    if rtt_ms > 0.0 {
        rtt_ms * (in_flight + 1.0)
    } else if in_flight > 0.0 {
        PENALTY + in_flight
    } else {
        DEFAULT_RTT_MS
    }
}

impl Host {
    fn new() -> Self {
        Self { rtt_ms: 0.0, samples: Vec::with_capacity(SAMPLES_MAX) }
    }

    /// `processHostSamples`.
    fn aggregate(&mut self, now_ns: u64) {
        for (rtt_ms, at_ns) in self.samples.drain(..) {
            let alpha = match now_ns - at_ns {
                0 => 1.0,
                age_ns => 1.0 - (-(age_ns as f64) / 1e9 / DECAY_S).exp(),
            };
            self.rtt_ms =
                if self.rtt_ms == 0.0 { rtt_ms } else { alpha * rtt_ms + (1.0 - alpha) * self.rtt_ms };
        }
    }
}

impl EnvoyPeakEwma {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), hosts: Vec::new(), aggregated_ns: 0, drawn: [0; 2] }
    }

    /// Envoy has a timer; here the first choice after it is due does its work, as at that time.
    fn aggregate(&mut self, now_ns: u64) {
        let due_ns = now_ns - now_ns % AGGREGATION_NS;
        if due_ns > self.aggregated_ns {
            self.aggregated_ns = due_ns;
            self.hosts.iter_mut().for_each(|host| host.aggregate(due_ns.max(now_ns)));
        }
    }
}

impl Policy for EnvoyPeakEwma {
    fn sample(&self, _backends: usize) -> Option<usize> {
        Some(2)
    }

    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize {
        self.hosts.resize_with(view.backends().len(), Host::new);
        self.aggregate(now_ns);
        let (first, second) = draw_two(candidates, &mut self.random);
        self.drawn = [first as u32, second as u32];
        let cost_of =
            |index: usize| cost(self.hosts[index].rtt_ms, f64::from(view.backends()[index].in_flight()));
        let (cost_first, cost_second) = (cost_of(first), cost_of(second));
        if cost_first <= cost_second { first } else { second }
    }

    fn finished(&mut self, sample: &Sample, now_ns: u64) {
        let rtt_ms = (sample.latency_ns / 1_000_000) as f64;
        if let Some(host) = self.hosts.get_mut(sample.backend)
            && rtt_ms > 0.0
            && host.samples.len() < SAMPLES_MAX
        {
            host.samples.push((rtt_ms, now_ns));
        }
    }

    fn compared<'a>(&'a self, _candidates: &'a [u32]) -> &'a [u32] {
        &self.drawn
    }

    fn cost(&self, view: &View, backend: usize, _now_ns: u64) -> Option<f64> {
        let host = self.hosts.get(backend)?;
        Some(cost(host.rtt_ms, view.backends()[backend].in_flight().into()))
    }

    fn believes(&self, _view: &View, backend: usize, _now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        if let Some(host) = self.hosts.get(backend) {
            tell(Belief::new("peak_ewma", "ms", host.rtt_ms));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn busy_host_without_a_time_costs_the_penalty() {
        assert_eq!(cost(0.0, 0.0), 10.0);
        assert_eq!(cost(0.0, 2.0), 1_000_002.0);
        assert_eq!(cost(3.0, 0.0), 3.0);
        assert_eq!(cost(3.0, 2.0), 9.0);
    }

    #[test]
    fn older_sample_of_a_batch_weighs_more() {
        let mut host = Host { rtt_ms: 10.0, samples: vec![(20.0, 0), (30.0, 90_000_000)] };
        host.aggregate(100_000_000);
        // 1 - exp(-0.01) = 0.009950 and 1 - exp(-0.001) = 0.0009995.
        let after_first = 10.0 + 0.009_950_166 * 10.0;
        let expected = after_first + 0.000_999_500 * (30.0 - after_first);
        assert!((host.rtt_ms - expected).abs() < 1e-6, "{}", host.rtt_ms);
        assert!(host.samples.is_empty());
    }
}
