//! Says whether a run's figures may be relied on, in words.
//!
//! Pure. Knows nothing of service level objectives, stationarity or overload; their rules belong here when they come.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    /// Too few answers, or too short a time, for the percentiles.
    TooShort,
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
            Self::TooShort => "too_short",
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
    /// Errors whose side is this machine.
    pub(super) client_errors: u64,
    pub(super) window: Duration,
    /// The share of the time that the busiest thread of the generator was on a CPU (0..1).
    pub(super) busy: f64,
    pub(super) connect_max: Duration,
}

/// A thread that is busier than this has no time to notice an answer at once.
const BUSY_MAX: f64 = 0.8;
/// With fewer samples, fewer than ten lie above p99.
const OK_MIN: u64 = 1000;
/// Shorter runs are mostly connecting and first answers.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Linux repeats a lost SYN after one second: a slower connect has lost at least one.
const SYN_REPEATED: Duration = Duration::from_millis(990);

/// The verdict and the reasons for it, the most important first.
pub(super) fn judge(facts: &Facts) -> (Verdict, Vec<String>) {
    let verdict = match facts {
        Facts { ok: 0, .. } => Verdict::Failed,
        facts if facts.client_errors > 0 || (facts.busy > BUSY_MAX && !facts.is_burst) => {
            Verdict::ClientLimited
        }
        Facts { is_burst: true, .. } => Verdict::Transient,
        facts if facts.ok < OK_MIN || facts.window < WINDOW_MIN => Verdict::TooShort,
        _ => Verdict::Valid,
    };
    (verdict, reasons(facts))
}

fn reasons(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut say = |applies: bool, words: String| {
        if applies {
            reasons.push(words);
        }
    };
    let sent = facts.ok + facts.errors;
    say(facts.ok == 0, "no request was answered with 2xx".to_owned());
    say(
        facts.client_errors > 0,
        format!("{} requests failed for want of ports or descriptors of this machine", facts.client_errors),
    );
    say(
        facts.busy > BUSY_MAX,
        format!("a thread of the generator was busy {:.0} % of the time", facts.busy * 100.0),
    );
    say(
        facts.is_burst && facts.ok > 0,
        "a burst shows how the target takes a sudden load, not a rate that it can keep".to_owned(),
    );
    say(
        !facts.is_burst && facts.window < WINDOW_MIN,
        format!("the measured window is only {} ms", facts.window.as_millis()),
    );
    say(
        facts.ok > 0 && facts.ok < OK_MIN,
        format!("p99 rests on {} answers, so on fewer than ten above it", facts.ok),
    );
    say(
        facts.ok > 0 && facts.errors > 0,
        format!("{} of {sent} requests failed; the latencies of good answers leave them out", facts.errors),
    );
    say(facts.unsent > 0, format!("{} requests were not sent before the duration ended", facts.unsent));
    say(
        facts.connect_max >= SYN_REPEATED,
        "some connections took a second or more: their first SYN was lost, so a listen queue is too small"
            .to_owned(),
    );
    reasons
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
        busy: 0.4,
        connect_max: Duration::from_millis(3),
    };

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
    fn a_burst_is_transient_even_when_the_client_was_busy() {
        check(Facts { is_burst: true, busy: 1.0, ..GOOD }, Verdict::Transient, "100 %");
    }
}
