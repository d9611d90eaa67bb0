//! The one place where the balancer reads the clock, so that everything else can be given a time.

use std::time::{Instant, SystemTime};

#[expect(clippy::disallowed_methods, reason = "the only read of the clock; all other code is given the time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What the time is for people: it may be set back, and nothing is measured by it.
pub(crate) fn date() -> SystemTime {
    SystemTime::now()
}
