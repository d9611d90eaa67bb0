//! Says whether a run's figures may be relied on, in words.
//!
//! Pure. Knows nothing of service level objectives, see [`super::slo`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::report::{Little, WarmedUp};

/// What a run's figures are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The figures describe the target.
    Valid,
    /// A burst: the figures describe how the target starts, not a rate that it can keep.
    Transient,
    /// This machine was the limit; the target may be better than the figures.
    ClientLimited,
    /// The target did not keep up with an open loop: its latencies depend on how long the run was.
    Overloaded,
    /// Too few answers, or too short a time, for the percentiles: also when latencies swing more slowly than that.
    TooShort,
    /// Latencies drifted, or more requests were in flight than their rate and latency make: another length of the run
    /// would give other figures.
    NotStationary,
    /// No request was answered with 2xx.
    Failed,
}

impl Verdict {
    /// The word in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Transient => "transient",
            Self::ClientLimited => "client_limited",
            Self::Overloaded => "overloaded",
            Self::TooShort => "too_short",
            Self::NotStationary => "not_stationary",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) is_burst: bool,
    pub(super) ok: u64,
    pub(super) errors: u64,
    pub(super) unsent: u64,
    /// Errors for want of something that this machine should have.
    pub(super) client_errors: u64,
    pub(super) window: Duration,
    pub(super) steadiness: Steadiness,
    pub(super) warmup: WarmedUp,
    /// The share of the time that the busiest thread of the generator was on a CPU (0..1).
    pub(super) busy: f64,
    /// The share of the time that one thread was on a CPU or waited for one, the largest of all threads (0..1).
    pub(super) occupied: f64,
    pub(super) connect_max: Duration,
    pub(super) open: Option<OpenFacts>,
}

/// Whether the measured part was like itself throughout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steadiness {
    /// The correlation of the latencies of neighbouring batches (-1..1); 0 when there are none.
    pub(super) dependence: f64,
    /// See [`super::steady::drift`].
    pub(super) drift: Option<f64>,
    pub(super) little: Option<Little>,
}

/// What is known of an open loop besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenFacts {
    /// In the whole run, and in the measured part of it, of which the timeouts are.
    pub(super) scheduled: u64,
    pub(super) measured: u64,
    pub(super) timeouts: u64,
    /// Due and not ended when half of the time was over, and at its end.
    pub(super) unfinished: [u64; 2],
    /// How late the generator was by itself.
    pub(super) lag_p99: Duration,
    /// Of all requests.
    pub(super) latency_p99: Duration,
    pub(super) connections_max: u64,
    /// Requests that found all connections busy, and how late the last of them was sent.
    pub(super) queued: u64,
    pub(super) queued_max: Duration,
}

/// A thread that is busier than this has no time to notice an answer at once.
const BUSY_MAX: f64 = 0.8;
/// With fewer samples, fewer than ten lie above p99.
pub(super) const OK_MIN: u64 = 1000;
/// Independent batches look more dependent than this in one run of a hundred.
const DEPENDENCE_MAX: f64 = 0.5;
/// Little's law is exact in the long run; more than this is a backlog at the beginning or the end.
const LITTLE_MAX: f64 = 0.02;
/// Shorter runs are mostly connecting and first answers.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Linux repeats a lost SYN after one second: a slower connect has lost at least one.
const SYN_REPEATED: Duration = Duration::from_millis(990);

/// Where the generator's own lateness is more than this part of the latencies at the same quantile, they are its own.
const LAG_SHARE_MAX: f64 = 0.2;
/// What a timer and a thread's waking cost on any machine.
const LAG_MIN: Duration = Duration::from_micros(100);
/// A target that leaves more than this part of the requests behind does not keep up with them.
const BEHIND_SHARE_MAX: f64 = 0.02;
/// Chance alone leaves a few behind: so many standard deviations of a Poisson count.
const BEHIND_SIGMAS: f64 = 3.0;

impl Facts {
    /// What contradicts Little's law. Requests in flight at the ends of the window count only in part, and as much as
    /// is due to them is no contradiction.
    fn unbalance(&self) -> Option<Little> {
        let latency_s = |little: &Little| {
            let count = (self.ok + self.errors).max(1) as f64;
            little.rate_times_latency * self.window.as_secs_f64() / count
        };
        let ends = |little: &Little| 2.0 * latency_s(little) / self.window.as_secs_f64().max(1e-9);
        self.steadiness.little.filter(|little| little.difference.abs() > LITTLE_MAX + ends(little))
    }

    fn is_too_short(&self) -> bool {
        self.ok < OK_MIN || self.window < WINDOW_MIN || self.steadiness.dependence > DEPENDENCE_MAX
    }

    /// A thread had no time left to be punctual in. Only an open loop needs that: a closed one asks for less then,
    /// and its rate shows it.
    fn is_starved(&self) -> bool {
        self.open.is_some() && self.busy <= BUSY_MAX && self.occupied > BUSY_MAX
    }
}

impl OpenFacts {
    fn is_late(&self) -> bool {
        self.lag_p99 > LAG_MIN.max(self.latency_p99.mul_f64(LAG_SHARE_MAX))
    }

    /// In the second half of the run many more requests came than were finished, or many were not answered in time.
    fn is_behind(&self) -> bool {
        let [half, end] = self.unfinished.map(|count| count as f64);
        let due = self.scheduled as f64 / 2.0;
        end - half > (due * BEHIND_SHARE_MAX).max(due.sqrt() * BEHIND_SIGMAS)
            || self.timeouts as f64 > self.measured as f64 * BEHIND_SHARE_MAX
    }
}

/// The verdict and the reasons for it, the most important first.
pub(super) fn judge(facts: &Facts) -> (Verdict, Vec<String>) {
    let verdict = match facts {
        Facts { ok: 0, .. } => Verdict::Failed,
        facts if facts.client_errors > 0 || (facts.busy > BUSY_MAX && !facts.is_burst) => {
            Verdict::ClientLimited
        }
        Facts { open: Some(open), .. } if open.is_late() || facts.is_starved() => Verdict::ClientLimited,
        Facts { open: Some(open), .. } if open.is_behind() => Verdict::Overloaded,
        Facts { is_burst: true, .. } => Verdict::Transient,
        facts if facts.is_too_short() => Verdict::TooShort,
        facts if facts.steadiness.drift.is_some() || facts.unbalance().is_some() => Verdict::NotStationary,
        _ => Verdict::Valid,
    };
    (verdict, reasons(facts))
}

fn reasons(facts: &Facts) -> Vec<String> {
    let open = facts.open.map(|open| open_reasons(&open)).unwrap_or_default();
    let others = [answers_and_generator(facts), size(facts), steadiness(facts), left_out(facts)];
    open.into_iter().chain(others.into_iter().flatten()).collect()
}

fn answers_and_generator(facts: &Facts) -> Vec<String> {
    let nothing = if facts.ok + facts.errors == 0 && facts.warmup.requests > 0 {
        Some("the run ended in its warm-up".to_owned())
    } else {
        (facts.ok == 0).then(|| "no request was answered with 2xx".to_owned())
    };
    let shortage = (facts.client_errors > 0).then(|| {
        format!("{} requests failed for want of ports or descriptors of this machine", facts.client_errors)
    });
    let percent = |part: f64| format!("{:.0} % of the time", part * 100.0);
    let busy = (facts.busy > BUSY_MAX)
        .then(|| format!("a thread of the generator was busy {}", percent(facts.busy)));
    let starved = facts.is_starved().then(|| {
        format!("a thread of the generator was busy or waited for a CPU {}", percent(facts.occupied))
    });
    [nothing, shortage, busy, starved].into_iter().flatten().collect()
}

fn size(facts: &Facts) -> Vec<String> {
    let burst = (facts.is_burst && facts.ok > 0)
        .then(|| "a burst shows how the target takes a sudden load, not a rate that it can keep".to_owned());
    let short = (!facts.is_burst && facts.window < WINDOW_MIN)
        .then(|| format!("the measured window is only {} ms", facts.window.as_millis()));
    let few = (facts.ok > 0 && facts.ok < OK_MIN)
        .then(|| format!("p99 rests on {} answers, so on fewer than ten above it", facts.ok));
    [burst, short, few].into_iter().flatten().collect()
}

fn steadiness(facts: &Facts) -> Vec<String> {
    let swings = (!facts.is_burst && facts.steadiness.dependence > DEPENDENCE_MAX).then(|| {
        "the latencies swing more slowly than the run is long: neighbouring 24ths of it are alike, and the intervals \
         may be too narrow"
            .to_owned()
    });
    let drift = facts.steadiness.drift.map(|change| {
        format!("the median latency drifted: in the second half it was {change:.2} times that of the first")
    });
    let is_behind = facts.open.is_some_and(|open| open.is_behind());
    let unbalance = facts.unbalance().filter(|_| !is_behind).map(|little| {
        format!(
            "Little's law does not hold: {:.2} requests were in flight, where rate and latency make {:.2}; the run \
             was not steady at its ends",
            little.in_flight, little.rate_times_latency
        )
    });
    [swings, drift, unbalance].into_iter().flatten().collect()
}

/// What the figures leave out.
fn left_out(facts: &Facts) -> Vec<String> {
    let warmup = facts.warmup;
    let cut = (warmup.cut_s > 0.0).then(|| {
        format!(
            "a warm-up of {} s is left out, with {} requests, {} of which failed",
            warmup.cut_s, warmup.requests, warmup.errors
        )
    });
    let sent = facts.ok + facts.errors;
    let failed = (facts.ok > 0 && facts.errors > 0).then(|| {
        format!("{} of {sent} requests failed; the latencies of good answers leave them out", facts.errors)
    });
    let unsent = (facts.unsent > 0)
        .then(|| format!("{} requests were not sent before the duration ended", facts.unsent));
    let lost_syn = (facts.connect_max >= SYN_REPEATED).then(|| {
        "some connections took a second or more: their first SYN was lost, so a listen queue is too small"
            .to_owned()
    });
    [cut, failed, unsent, lost_syn].into_iter().flatten().collect()
}

fn open_reasons(open: &OpenFacts) -> Vec<String> {
    let mut reasons = Vec::new();
    if open.is_late() {
        reasons.push(format!(
            "the generator was {} ms late at p99, where the latency was {} ms",
            millis(open.lag_p99),
            millis(open.latency_p99)
        ));
    }
    if open.is_behind() {
        reasons.push(format!(
            "the target did not keep up: {} requests were unfinished after half of the time and {} at its end, \
             {} of {} timed out; latencies depend on the length of the run",
            open.unfinished[0], open.unfinished[1], open.timeouts, open.measured
        ));
    }
    if open.queued > 0 {
        reasons.push(format!(
            "{} requests found all {} connections busy and waited up to {} ms for one, which their latency includes",
            open.queued,
            open.connections_max,
            millis(open.queued_max)
        ));
    }
    reasons
}

/// Three decimals: microseconds.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Facts = Facts {
        is_burst: false,
        ok: 50_000,
        errors: 0,
        unsent: 0,
        client_errors: 0,
        window: Duration::from_secs(10),
        steadiness: STEADY,
        warmup: WarmedUp { auto: true, cut_s: 0.0, requests: 0, errors: 0 },
        busy: 0.4,
        occupied: 0.5,
        connect_max: Duration::from_millis(3),
        open: None,
    };

    const STEADY: Steadiness = Steadiness {
        dependence: 0.1,
        drift: None,
        little: Some(Little { in_flight: 10.1, rate_times_latency: 10.0, difference: 0.01 }),
    };

    const KEPT_UP: OpenFacts = OpenFacts {
        scheduled: 50_000,
        measured: 50_000,
        timeouts: 0,
        unfinished: [12, 15],
        lag_p99: Duration::from_micros(150),
        latency_p99: Duration::from_millis(2),
        connections_max: 1024,
        queued: 0,
        queued_max: Duration::ZERO,
    };

    #[track_caller]
    fn check_open(open: OpenFacts, verdict: Verdict, word: &str) {
        check(Facts { open: Some(open), ..GOOD }, verdict, word);
    }

    #[test]
    fn an_open_loop_that_was_kept_up_with_is_valid_without_reasons() {
        assert_eq!(judge(&Facts { open: Some(KEPT_UP), ..GOOD }), (Verdict::Valid, Vec::new()));
        // Long answers leave many unfinished, as many at half of the time as at the end.
        let slow = OpenFacts { unfinished: [9_000, 9_100], ..KEPT_UP };
        assert_eq!(judge(&Facts { open: Some(slow), ..GOOD }).0, Verdict::Valid);
    }

    #[test]
    fn a_late_generator_limits_the_result() {
        let late = OpenFacts { lag_p99: Duration::from_micros(500), ..KEPT_UP };
        check_open(late, Verdict::ClientLimited, "0.5 ms late at p99, where the latency was 2 ms");
        // A lateness that the latencies hide does not matter.
        check_open(OpenFacts { latency_p99: Duration::from_millis(3), ..late }, Verdict::Valid, "");
        // Nor does one that no machine can do without.
        let fast = Duration::from_micros(110);
        let least = OpenFacts { lag_p99: Duration::from_micros(90), latency_p99: fast, ..KEPT_UP };
        check_open(least, Verdict::Valid, "");
    }

    #[test]
    fn a_generator_without_a_cpu_is_not_the_targets_fault() {
        let open = Some(OpenFacts { unfinished: [4_000, 8_000], ..KEPT_UP });
        let starved = Facts { busy: 0.3, occupied: 0.9, open, ..GOOD };
        check(starved, Verdict::ClientLimited, "busy or waited for a CPU 90 %");
        check(Facts { occupied: 0.5, ..starved }, Verdict::Overloaded, "");
        check(Facts { open: None, ..starved }, Verdict::Valid, "");
    }

    #[test]
    fn a_target_that_falls_behind_is_overloaded() {
        let growing = OpenFacts { unfinished: [4_000, 8_000], ..KEPT_UP };
        check_open(
            growing,
            Verdict::Overloaded,
            "4000 requests were unfinished after half of the time and 8000",
        );
        check_open(OpenFacts { timeouts: 1_001, ..KEPT_UP }, Verdict::Overloaded, "1001 of 50000 timed out");
        check_open(OpenFacts { timeouts: 999, ..KEPT_UP }, Verdict::Valid, "");
        // Of 500 that come in half of the time, 60 too many may be chance.
        let few = OpenFacts { scheduled: 1_000, measured: 1_000, unfinished: [0, 60], ..KEPT_UP };
        check_open(few, Verdict::Valid, "");
        check_open(OpenFacts { unfinished: [0, 70], ..few }, Verdict::Overloaded, "70");
    }

    #[test]
    fn waiting_for_connections_is_said() {
        let queued = OpenFacts { queued: 7, queued_max: Duration::from_micros(1_250), ..KEPT_UP };
        check_open(
            queued,
            Verdict::Valid,
            "7 requests found all 1024 connections busy and waited up to 1.25 ms",
        );
    }

    #[track_caller]
    fn check(facts: Facts, verdict: Verdict, word: &str) {
        let (found, reasons) = judge(&facts);
        assert_eq!(found, verdict);
        assert!(reasons.join("; ").contains(word), "{reasons:?}");
    }

    #[test]
    fn a_calm_long_run_is_valid_without_reasons() {
        assert_eq!(judge(&GOOD), (Verdict::Valid, Vec::new()));
    }

    #[test]
    fn each_doubt_is_named() {
        check(Facts { busy: 0.93, ..GOOD }, Verdict::ClientLimited, "93 %");
        check(Facts { client_errors: 2, errors: 2, ..GOOD }, Verdict::ClientLimited, "ports or descriptors");
        check(Facts { ok: 999, ..GOOD }, Verdict::TooShort, "999 answers");
        check(Facts { window: Duration::from_millis(300), ..GOOD }, Verdict::TooShort, "300 ms");
        check(Facts { ok: 0, errors: 7, ..GOOD }, Verdict::Failed, "no request");
        check(Facts { errors: 5, ..GOOD }, Verdict::Valid, "5 of 50005");
        check(Facts { unsent: 5, ..GOOD }, Verdict::Valid, "not sent");
        check(Facts { connect_max: Duration::from_millis(1003), ..GOOD }, Verdict::Valid, "SYN");
    }

    #[test]
    fn a_run_that_was_not_steady_is_not_valid() {
        let check = |steadiness, verdict, word| check(Facts { steadiness, ..GOOD }, verdict, word);
        check(Steadiness { dependence: 0.6, ..STEADY }, Verdict::TooShort, "swing more slowly");
        check(Steadiness { drift: Some(1.3), ..STEADY }, Verdict::NotStationary, "1.30 times");
        let little = |in_flight| {
            let difference = in_flight / 10.0 - 1.0;
            Some(Little { in_flight, rate_times_latency: 10.0, difference })
        };
        check(Steadiness { little: little(10.5), ..STEADY }, Verdict::NotStationary, "10.50 requests");
        check(Steadiness { little: little(9.5), ..STEADY }, Verdict::NotStationary, "Little's law");
        check(Steadiness { little: None, ..STEADY }, Verdict::Valid, "");
    }

    #[test]
    fn a_warm_up_is_said() {
        let warmup = WarmedUp { auto: false, cut_s: 2.5, requests: 2500, errors: 3 };
        check(Facts { warmup, ..GOOD }, Verdict::Valid, "2.5 s is left out, with 2500 requests, 3 of which");
    }

    #[test]
    fn a_burst_is_transient_even_when_the_client_was_busy() {
        check(Facts { is_burst: true, busy: 1.0, ..GOOD }, Verdict::Transient, "100 %");
    }
}
