//! The one place where the balancer reads the clock, so that everything else can be given a time.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the only read of the clock; all other code is given the time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
