//! Active checks: one GET per backend and interval, on a connection of its own, all from one thread.
//!
//! A check over HTTP sees what a connect does not: a process that is stopped still has its kernel accept for it. This
//! module decides between up and down only; how requests fare is the choice's business.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use monoio::{LegacyDriver, RuntimeBuilder};

use crate::clock;
use crate::config::Probe;
use crate::error::is_exhausted;
use crate::http::{self, HeadLimits};
use crate::site::{Member, Shared};

/// How often the prober looks for a new configuration.
const RELOAD_CHECK: Duration = Duration::from_millis(100);
/// A probe's answer must have its head within this.
const HEAD_BYTES: usize = 8 << 10;
/// With interim answers: a backend that never stops to send them must not keep the thread of all probes.
const ANSWER_BYTES_MAX: usize = 8 * HEAD_BYTES;
const HEAD_LIMITS: HeadLimits =
    HeadLimits { head_bytes: HEAD_BYTES, target_bytes: HEAD_BYTES, fields: http::FIELDS_MAX };

/// Nothing follows it, and a probe never asks for it.
const SWITCHED: u16 = 101;
/// What an application that speaks, say, WebSocket alone answers to any GET, whatever its path: that it is there.
const UPGRADE_REQUIRED: u16 = 426;

/// Probes all backends of the current configuration, for ever.
pub(crate) fn run(shared: &Arc<Shared>) -> io::Result<()> {
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    runtime.block_on(async {
        let mut seen = None;
        loop {
            let generation = shared.generation();
            if seen != Some(generation.number) {
                seen = Some(generation.number);
                for shard in &generation.clusters {
                    let probe = Rc::new(shard.config.probe.clone());
                    for member in &shard.members {
                        let prober = watch(
                            Arc::clone(shared),
                            generation.number,
                            Arc::clone(member),
                            Rc::clone(&probe),
                        );
                        monoio::spawn(prober);
                    }
                }
            }
            monoio::time::sleep(RELOAD_CHECK).await;
        }
    });
    Ok(())
}

/// Probes one backend until the configuration changes.
async fn watch(shared: Arc<Shared>, generation: u64, member: Arc<Member>, probe: Rc<Probe>) {
    let mut streak = Streak::default();
    while shared.version() == generation {
        let began = clock::now();
        let result = monoio::time::timeout(probe.interval, check(member.address, &probe.path)).await;
        let failure = match result {
            Ok(Ok(())) => None,
            // Nothing was found out, and to believe every backend down would make it worse.
            Ok(Err(error)) if is_exhausted(&error) => {
                monoio::time::sleep(probe.interval).await;
                continue;
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        let spent = clock::now().saturating_duration_since(began);
        if let Some(error) = &failure {
            let (cluster, backend) = (&member.cluster, member.backend.id());
            tracing::debug!(cluster, backend, error, "probe of {backend} of {cluster}: {error}");
        } else {
            member.backend.probed(spent);
        }
        let first = !member.probed.swap(true, Relaxed);
        if let Some(up) = streak.note(failure.is_none(), first, &probe) {
            change(&member, up, failure.as_deref());
        }
        monoio::time::sleep(probe.interval.saturating_sub(spent)).await;
    }
}

fn change(member: &Member, up: bool, failure: Option<&str>) {
    let was_up = member.backend.health(clock::now()) != select::Health::Down;
    member.backend.set_up(up);
    if was_up != up {
        let (cluster, id) = (&member.cluster, member.backend.id());
        let state = if up { "up" } else { "down" };
        let why = failure.map_or(String::new(), |failure| format!(": {failure}"));
        if up {
            tracing::info!(cluster, backend = id, state, "backend {id} of {cluster} is {state}{why}");
        } else {
            tracing::warn!(
                cluster,
                backend = id,
                state,
                error = failure,
                "backend {id} of {cluster} is {state}{why}"
            );
        }
    }
}

/// Results in a row.
#[derive(Debug, Default)]
struct Streak {
    passes: u32,
    failures: u32,
}

impl Streak {
    /// Notes a result and returns the state it settles, if any. The `first` result ever decides alone.
    fn note(&mut self, passed: bool, first: bool, probe: &Probe) -> Option<bool> {
        if passed {
            *self = Self { passes: self.passes + 1, failures: 0 };
            (first || self.passes >= probe.rise).then_some(true)
        } else {
            *self = Self { passes: 0, failures: self.failures + 1 };
            (first || self.failures >= probe.fall).then_some(false)
        }
    }
}

async fn check(address: SocketAddr, path: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_addr(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: balancer-probe\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.into_bytes()).await.0?;
    let (mut received, mut bytes) = (Vec::new(), 0);
    let mut buffer = vec![0; HEAD_BYTES];
    loop {
        let (count, returned) = stream.read(buffer).await;
        buffer = returned;
        let count = count?;
        if count == 0 {
            return Err(io::Error::other("closed before its answer"));
        }
        bytes += count;
        if bytes > ANSWER_BYTES_MAX {
            return Err(io::Error::other("interim answers without end"));
        }
        received.extend_from_slice(&buffer[..count]);
        if let Some(status) = take_status(&mut received)? {
            let passes = (200..400).contains(&status) || status == UPGRADE_REQUIRED;
            return if passes { Ok(()) } else { Err(io::Error::other(format!("status {status}"))) };
        }
    }
}

/// The status of the answer at the front of `received`, if its head is whole. Interim answers before it are taken out:
/// any client must live with them (RFC 9110, 15.2).
fn take_status(received: &mut Vec<u8>) -> io::Result<Option<u16>> {
    loop {
        let mut space = http::space();
        let response = http::parse_response(received, 0, false, &HEAD_LIMITS, &mut space);
        let Some(response) = response.map_err(io::Error::other)? else { return Ok(None) };
        if !response.is_interim() || response.status == SWITCHED {
            return Ok(Some(response.status));
        }
        let head_bytes = response.head_bytes;
        received.drain(..head_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_changes_after_rise_and_fall_results_in_a_row() {
        let probe = Probe { path: "/".to_owned(), interval: Duration::from_secs(1), rise: 2, fall: 3 };
        let mut streak = Streak::default();
        let results = [true, false, false, true, false, false, false, true, true];
        let states: Vec<_> = results.into_iter().map(|passed| streak.note(passed, false, &probe)).collect();
        let down = Some(false);
        assert_eq!(states, [None, None, None, None, None, None, down, None, Some(true)]);
    }

    #[test]
    fn interim_answers_are_not_the_answer() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
        for (rest, status) in
            [("", None), ("HTTP/1.1 200 OK\r\n\r\n", Some(200)), ("HTTP/1.1 101 X\r\n\r\n", Some(101))]
        {
            let mut received = format!("{interim}{rest}").into_bytes();
            assert_eq!(take_status(&mut received).expect("legal"), status, "{rest}");
        }
    }

    #[test]
    fn first_result_decides_alone() {
        let probe = Probe { path: "/".to_owned(), interval: Duration::from_secs(1), rise: 5, fall: 5 };
        assert_eq!(Streak::default().note(false, true, &probe), Some(false));
    }
}
