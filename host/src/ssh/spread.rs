//! One file to many hosts: sent from here once, and copied from host to host where that is faster than sending it to
//! each of them.
//!
//! The first host that lacks the file gets it over SSH, and that is timed, without what any command to that host takes.
//! When sending it to the others would take longer than [`PAYS_AFTER`] at this rate, the first host serves it at its
//! private address, on [`COPY_PORT`], to whoever names a random token; the others fetch it from there into the same
//! receiver as an upload's, which checks the hash that was computed here. Whatever fails in this ends in an upload
//! from here.
//!
//! Both ends are small programs for python3, which every cloud image has, because cloud-init is written in it; a
//! plain Debian has neither curl nor nc. They are command lines of our SSH sessions: nothing is installed, the server
//! ends with its session at the latest, and the token goes through standard input, where no `ps` shows it. The
//! content is not encrypted on its way, so a file whose mode hides it from other users is never served.
//!
//! This module does not let those that were served serve others: within a data centre one host is enough for tens.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OnceCell, Semaphore, SemaphorePermit, watch},
    time::timeout,
};

use super::{
    Session, Uploaded,
    command::last_lines,
    files::{Source, Target, hash_file, remote_path, script, upload_to},
    quote::quote,
    running::Input,
};
use crate::{Error, Kind};

/// The TCP port at which a host serves others; security groups must let workers reach each other there. Not in the
/// range of ports that systems give out themselves, and not a usual one of any service.
pub const COPY_PORT: u16 = 8222;

/// Copying is begun when sending would take this long: it costs two starts of python3 and some round trips, and a
/// busy laptop whose instances are itself must not take its own slowness for the uplink's.
const PAYS_AFTER: Duration = Duration::from_millis(1500);
/// Uploads at once over an uplink that slow. They take no longer in turn than side by side, and a connection whose
/// share is a few kilobytes per second would be taken for a dead one.
const SLOW_AT_ONCE: usize = 2;
/// For measurements and tests: another value of [`PAYS_AFTER`], in seconds.
const PAYS_AFTER_VARIABLE: &str = "LABHOST_COPY_AFTER";

/// From starting the server to its word; usually 50 ms and a round trip.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// How long the server waits for hosts that have not asked yet, such as those whose login takes its time.
const LINGER: Duration = Duration::from_millis(500);

const SERVE: &str = include_str!("spread/serve.py");
const FETCH: &str = include_str!("spread/fetch.py");

/// One file on its way to a number of hosts.
#[derive(Debug)]
pub struct Spread {
    hosts: usize,
    pays_after: Duration,
    /// Length and hash, computed once.
    content: OnceCell<(u64, String)>,
    state: watch::Sender<State>,
    turns: Semaphore,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Hosts that have begun and not ended.
    busy: usize,
    /// Hosts that have ended.
    settled: usize,
    /// Whether what is sent from here goes in turns.
    is_slow: bool,
}

#[derive(Debug, Clone, Default)]
enum Phase {
    #[default]
    Unsent,
    /// To the first; the others wait.
    Sending,
    Serving(Offer),
    /// Everyone gets it from here.
    Direct,
}

#[derive(Debug, Clone)]
struct Offer {
    host: String,
    address: Ipv4Addr,
    token: String,
}

impl Offer {
    fn new(session: &Session, address: Ipv4Addr) -> Self {
        let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        Self { host: session.host().to_owned(), address, token }
    }
}

impl Spread {
    /// For this number of hosts; each of them calls [`Spread::upload`] once.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        let wished = std::env::var(PAYS_AFTER_VARIABLE).ok().and_then(|text| text.parse().ok());
        let wished = wished.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self::with_threshold(hosts, wished.unwrap_or(PAYS_AFTER))
    }

    /// As [`Spread::new`]; copies when sending to the remaining hosts would take at least `pays_after`.
    #[must_use]
    pub fn with_threshold(hosts: usize, pays_after: Duration) -> Self {
        let (content, state, trouble) = (OnceCell::new(), watch::Sender::default(), Mutex::default());
        Self { hosts, pays_after, content, state, turns: Semaphore::new(SLOW_AT_ONCE), trouble }
    }

    /// As [`Session::upload`] of the same file for every host. `address` is where other hosts reach this one.
    pub async fn upload(
        &self,
        session: &Session,
        address: Option<Ipv4Addr>,
        local: &Path,
        remote: &str,
        mode: u32,
    ) -> Result<Uploaded, Error> {
        let _busy = Busy::new(self);
        let operation = upload_to(session, local);
        let content = self.content.get_or_try_init(|| hash_file(local, &operation)).await;
        let (bytes, sha256) = content?.clone();
        let target = Target { path: remote, mode, bytes, sha256 };
        let asked = Instant::now();
        if session.holds(&operation, &target).await? {
            return Ok(target.uploaded(false));
        }
        let overhead = asked.elapsed();
        if self.is_first() {
            let _sending = Sending(self);
            let begun = Instant::now();
            session.send(&operation, Source::File(local), &target).await?;
            let took = begun.elapsed().saturating_sub(overhead);
            let is_better = self.judge(took, mode);
            if let Some(address) = address.filter(|_| is_better) {
                self.serve(session, address, &target).await?;
            }
            return Ok(target.uploaded(true));
        }
        let copied_from = self.copy(session, &operation, &target).await?;
        if copied_from.is_none() {
            let _turn = self.turn().await;
            session.send(&operation, Source::File(local), &target).await?;
        }
        Ok(Uploaded { copied_from, ..target.uploaded(true) })
    }

    /// Copies from the host that offers it, and names that host; `None` when nobody does or that failed.
    async fn copy(
        &self,
        session: &Session,
        operation: &str,
        target: &Target<'_>,
    ) -> Result<Option<String>, Error> {
        let Some(offer) = self.offer().await else { return Ok(None) };
        match fetch(session, &offer, operation, target).await {
            Ok(()) => Ok(Some(offer.host)),
            Err(error) if error.kind == Kind::Interrupted => Err(error),
            Err(error) => {
                self.note(format!("{}: {}", session.host(), reason(&error)));
                Ok(None)
            }
        }
    }

    /// What went wrong first when hosts were to copy from each other, although everything may be in its place.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, trouble: String) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(trouble);
    }

    fn is_first(&self) -> bool {
        self.state.send_if_modified(|state| {
            let is_first = matches!(state.phase, Phase::Unsent);
            if is_first {
                state.phase = Phase::Sending;
            }
            is_first
        })
    }

    /// What the first host offers, once that is decided.
    async fn offer(&self) -> Option<Offer> {
        let mut seen = self.state.subscribe();
        let state = seen.wait_for(|state| !matches!(state.phase, Phase::Sending)).await.ok()?;
        if let Phase::Serving(offer) = &state.phase { Some(offer.clone()) } else { None }
    }

    /// Whether the others are to copy, by how long the first took. The uplink is shared: sending to several at once
    /// takes as long as to one after the other.
    fn judge(&self, took: Duration, mode: u32) -> bool {
        let others = self.hosts.saturating_sub(self.state.borrow().settled + 1);
        let sending = took.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX));
        self.state.send_modify(|state| state.is_slow = sending >= PAYS_AFTER);
        let is_for_everybody = mode & 0o004 != 0;
        others > 0 && is_for_everybody && sending >= self.pays_after
    }

    /// Waits until this host may be sent to; the turn ends when it is dropped.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let is_slow = self.state.borrow().is_slow;
        // The semaphore is never closed.
        if is_slow { self.turns.acquire().await.ok() } else { None }
    }

    /// Serves until everybody has it. A server that fails is no failure of the upload.
    async fn serve(&self, session: &Session, address: Ipv4Addr, target: &Target<'_>) -> Result<(), Error> {
        let offer = Offer::new(session, address);
        let operation = format!("serve {} on {}", target.path, session.host());
        let path = quote(&remote_path(target.path, &operation)?);
        let limit = target.patience();
        let line = format!("exec {} {address} {COPY_PORT} {path} {}", python(SERVE), limit.as_secs().max(1));
        let token = format!("{}\n", offer.token);
        let input = Input::Held(token.as_bytes(), Box::pin(self.served()));
        let mut on_ready = |_: &[u8]| {
            self.state.send_modify(|state| state.phase = Phase::Serving(offer.clone()));
            Ok(())
        };
        match session.copy(&operation, &script(line, limit), input, &mut on_ready).await {
            Ok((0, _)) if self.state.borrow().busy <= 1 => {}
            Ok((0, _)) => self.note(format!("{operation}: ended too early")),
            Ok((code, stderr)) => self.note(format!("{operation}: exit {code}: {}", last_lines(&stderr))),
            Err(error) if error.kind == Kind::Interrupted => return Err(error),
            Err(error) => self.note(reason(&error)),
        }
        Ok(())
    }

    /// Waits until the server has nothing more to do.
    async fn served(&self) {
        let mut seen = self.state.subscribe();
        let is_serving = |state: &State| matches!(state.phase, Phase::Serving(_));
        if !matches!(timeout(READY_WITHIN, seen.wait_for(is_serving)).await, Ok(Ok(_))) {
            return self.state.send_modify(|state| state.phase = Phase::Direct);
        }
        // One is the server itself.
        let is_idle = |state: &State| state.busy <= 1;
        let is_over = |state: &State| is_idle(state) && state.settled + 1 >= self.hosts;
        while seen.wait_for(is_idle).await.is_ok() {
            let over = timeout(LINGER, seen.wait_for(|state| is_over(state) || !is_idle(state))).await;
            if !matches!(over, Ok(Ok(state)) if !is_over(&state)) {
                return;
            }
        }
    }
}

/// One host that is being seen to.
struct Busy<'a>(&'a Spread);

impl<'a> Busy<'a> {
    fn new(spread: &'a Spread) -> Self {
        spread.state.send_modify(|state| state.busy += 1);
        Self(spread)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| {
            state.busy -= 1;
            state.settled += 1;
        });
    }
}

/// The first host's turn. When it ends, however it does, nobody waits for that host any more.
struct Sending<'a>(&'a Spread);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.phase = Phase::Direct);
    }
}

async fn fetch(session: &Session, offer: &Offer, operation: &str, target: &Target<'_>) -> Result<(), Error> {
    let reader = format!("{} {} {COPY_PORT} {}", python(FETCH), offer.address, target.bytes);
    let token = format!("{}\n", offer.token);
    session.receive(operation, &reader, Input::Bytes(token.as_bytes()), target).await
}

/// Runs a program text. Isolated: modules come from the system alone, not from the home directory.
fn python(text: &str) -> String {
    format!("python3 -I -c {}", quote(text))
}

fn reason(error: &Error) -> String {
    let detail = error.detail.as_deref().and_then(|detail| detail.lines().last());
    detail.map_or_else(|| error.message.clone(), |detail| format!("{} ({detail})", error.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether eight others copy, and whether they take turns otherwise.
    fn judged(took_ms: u64, mode: u32) -> (bool, bool) {
        let spread = Spread::with_threshold(9, PAYS_AFTER);
        let copies = spread.judge(Duration::from_millis(took_ms), mode);
        let is_slow = spread.state.borrow().is_slow;
        (copies, is_slow)
    }

    #[test]
    fn a_slow_uplink_is_used_once_or_in_turns() {
        assert_eq!(judged(20, 0o755), (false, false));
        assert_eq!(judged(187, 0o755), (false, false));
        assert_eq!(judged(188, 0o755), (true, true));
        assert_eq!(judged(188, 0o700), (false, true));
        assert_eq!(judged(u64::MAX, 0o644), (true, true));
    }

    #[test]
    fn the_last_host_has_nobody_to_copy_for() {
        let spread = Spread::with_threshold(2, Duration::ZERO);
        drop(Busy::new(&spread));
        assert!(!spread.judge(Duration::MAX, 0o755));
        assert!(!Spread::with_threshold(1, Duration::ZERO).judge(Duration::MAX, 0o755));
    }

    #[tokio::test]
    async fn two_at_a_time_over_a_slow_uplink() {
        let spread = Spread::with_threshold(9, Duration::MAX);
        assert!(spread.turn().await.is_none(), "nobody waits where it is fast");
        spread.judge(Duration::from_secs(9), 0o755);
        let turns = (spread.turn().await, spread.turn().await);
        assert!(timeout(Duration::from_millis(20), spread.turn()).await.is_err());
        drop(turns);
        assert!(spread.turn().await.is_some());
    }
}
