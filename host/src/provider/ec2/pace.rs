//! How long and how often is waited for AWS, and what a fake of EC2 may change.
//!
//! The SDK's own waiters begin at 15 s, which is too coarse for a lab that is up in one minute.

use std::{env, time::Duration};

use tokio::time::Instant;

/// Multiplies all waits and their limits. For fakes of EC2, which need not be waited for as long as AWS.
const PACE_VARIABLE: &str = "LABHOST_EC2_PACE";
/// The port of SSH and of web services and the login of instances behind a fake, where there is no port 22.
const SSH_PORT_VARIABLE: &str = "LABHOST_EC2_SSH_PORT";
const HTTP_PORT_VARIABLE: &str = "LABHOST_EC2_HTTP_PORT";
const USER_VARIABLE: &str = "LABHOST_EC2_USER";

/// Times of waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Pause after the first look, and the longest that it grows to.
    pub(super) poll_first: Duration,
    pub(super) poll_last: Duration,
    /// How long AWS may take to know what it has just made.
    pub(super) eventual: Duration,
    /// From the call to terminate until all are terminated; minutes when machines shut down slowly.
    pub(super) terminate: Duration,
    /// A group can be deleted when the last network interface is gone, some time after its instance.
    pub(super) groups: Duration,
}

impl Pace {
    pub(super) fn from_env() -> Self {
        let factor = parsed(PACE_VARIABLE).filter(|factor| (0.001..=10.0).contains(factor)).unwrap_or(1.0);
        let seconds = |seconds: f64| Duration::from_secs_f64(seconds * factor);
        Self {
            poll_first: seconds(1.5),
            poll_last: seconds(5.0),
            eventual: seconds(60.0),
            terminate: seconds(360.0),
            groups: seconds(360.0),
        }
    }

    pub(super) fn waiting(self, limit: Duration) -> Waiting {
        Waiting { pace: self, pause: self.poll_first, begun: Instant::now(), limit }
    }
}

/// One wait: looks with growing pauses until a limit.
#[derive(Debug)]
pub(super) struct Waiting {
    pace: Pace,
    pause: Duration,
    begun: Instant,
    limit: Duration,
}

impl Waiting {
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Pauses before the next look; false when the limit has passed.
    pub(super) async fn go_on(&mut self) -> bool {
        if self.elapsed() >= self.limit {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = self.pause.mul_f64(1.5).min(self.pace.poll_last);
        true
    }
}

/// How instances are reached.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    pub(super) ssh_port: u16,
    pub(super) http_port: u16,
    /// Set for fakes only; else it follows from the image.
    pub(super) user: Option<String>,
}

impl Reach {
    pub(super) fn from_env() -> Self {
        Self {
            ssh_port: parsed(SSH_PORT_VARIABLE).unwrap_or(22),
            http_port: parsed(HTTP_PORT_VARIABLE).unwrap_or(80),
            user: env::var(USER_VARIABLE).ok().filter(|user| !user.is_empty()),
        }
    }
}

fn parsed<T: std::str::FromStr>(variable: &str) -> Option<T> {
    env::var(variable).ok()?.parse().ok()
}
