//! Faults for experiments: a delay, a slower machine, errors, a stall.
//!
//! Present only when the worker was started with a token, which every call must carry. Does not apply the speed
//! factor (the machine does) and does not answer requests.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use may::sync::SyncFlag;
use serde_json::{Value, json};

use crate::args::span;

/// Slowest and fastest factor: outside of them a request of the longest work would never end, or the emulation
/// would measure its own timer.
const SPEED_MIN: f64 = 0.01;
const SPEED_MAX: f64 = 100.0;

/// What is wrong at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    /// Added to every answer of the cluster, without using a vCPU.
    delay: Duration,
    /// Multiplies the machine's speed.
    pub(crate) speed: f64,
    /// The share (0..1) of requests to the cluster that fail at once, without work.
    error_rate: f64,
    /// Hold every request to the cluster and for health until this ends.
    stall: bool,
}

const HEALTHY: Settings = Settings { delay: Duration::ZERO, speed: 1.0, error_rate: 0.0, stall: false };

impl Settings {
    /// The settings after a query such as `delay=5ms&speed=0.5`: keys that are not named keep their value, `clear`
    /// puts all back first, an empty query changes nothing. The error says which part is wrong.
    fn changed_by(mut self, query: &str) -> Result<Self, String> {
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            self.set(key, value).map_err(|why| format!("{part}: {why}"))?;
        }
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "clear" if value.is_empty() => *self = HEALTHY,
            "delay" => self.delay = span(value)?,
            "speed" => self.speed = number(value, SPEED_MIN, SPEED_MAX)?,
            "error_rate" => self.error_rate = number(value, 0.0, 1.0)?,
            "stall" => self.stall = value.parse().map_err(|_| "write true or false")?,
            _ => {
                return Err("the keys are delay, speed, error_rate, stall and clear (without a value)".into());
            }
        }
        Ok(())
    }

    pub(crate) fn to_json(self) -> Value {
        json!({
            "delay_ms": self.delay.as_secs_f64() * 1e3,
            "speed": self.speed,
            "error_rate": self.error_rate,
            "stall": self.stall,
        })
    }
}

fn number(text: &str, min: f64, max: f64) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("write a number from {min} to {max}"))
}

/// The fault switch.
#[derive(Debug)]
pub(crate) struct Faults {
    token: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    /// Fired when the present stall ends.
    stall_end: Arc<SyncFlag>,
    /// Failures owed: grows by the error rate with each request, so that errors come evenly and repeatably.
    owed: f64,
}

impl Faults {
    pub(crate) fn new(token: String) -> Self {
        let state = State { settings: HEALTHY, stall_end: Arc::new(SyncFlag::new()), owed: 0.0 };
        Self { token, state: Mutex::new(state) }
    }

    /// Whether a call carried the token. Takes the same time for every wrong token of the right length.
    pub(crate) fn allows(&self, token: &[u8]) -> bool {
        let ours = self.token.as_bytes();
        let differing = ours.iter().zip(token).fold(0, |bits, (a, b)| bits | (a ^ b));
        ours.len() == token.len() && std::hint::black_box(differing) == 0
    }

    /// Changes the settings and gives the new ones; after an error they are as before.
    pub(crate) fn change(&self, query: &str) -> Result<Settings, String> {
        let mut state = self.state();
        let settings = state.settings.changed_by(query)?;
        if state.settings.stall && !settings.stall {
            std::mem::take(&mut state.stall_end).fire();
        }
        state.settings = settings;
        Ok(settings)
    }

    pub(crate) fn settings(&self) -> Settings {
        self.state().settings
    }

    /// Returns at once, or when the stall ends. Each held request holds its connection, so that the descriptor
    /// limit bounds them.
    pub(crate) fn wait_for_stall(&self) {
        let stall_end = {
            let state = self.state();
            state.settings.stall.then(|| Arc::clone(&state.stall_end))
        };
        if let Some(stall_end) = stall_end {
            stall_end.wait();
        }
    }

    /// Whether the next request fails.
    pub(crate) fn fails(&self) -> bool {
        let mut state = self.state();
        state.owed += state.settings.error_rate;
        let fails = state.owed >= 1.0;
        if fails {
            state.owed -= 1.0;
        }
        fails
    }

    pub(crate) fn delay(&self) -> Duration {
        self.settings().delay
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the faults")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults() -> Faults {
        Faults::new("a-good-token".to_owned())
    }

    #[test]
    fn only_the_whole_token_is_allowed() {
        let faults = faults();
        assert!(faults.allows(b"a-good-token"));
        for wrong in ["", "a", "a-good-toke", "a-good-tokens", "b-good-token", "a-good-tokeN"] {
            assert!(!faults.allows(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn named_keys_change_and_others_stay() {
        let faults = faults();
        let first = faults.change("delay=5ms&speed=0.5").unwrap();
        assert_eq!(first, Settings { delay: Duration::from_millis(5), speed: 0.5, ..HEALTHY });
        let second = faults.change("error_rate=0.1").unwrap();
        assert_eq!(second, Settings { error_rate: 0.1, ..first });
        assert_eq!(faults.change("").unwrap(), second);
        assert_eq!(faults.change("clear").unwrap(), HEALTHY);
        assert_eq!(faults.change("speed=2&clear&delay=1ms").unwrap().speed, 1.0);
    }

    #[test]
    fn a_wrong_query_is_refused_and_changes_nothing() {
        let faults = faults();
        for query in [
            "dealy=5ms",
            "delay=5",
            "delay",
            "speed=0",
            "speed=-1",
            "speed=nan",
            "speed=101",
            "error_rate=1.1",
            "error_rate=-0.1",
            "stall=yes",
            "clear=1",
            "speed=0.5&oops",
        ] {
            let error = faults.change(query).expect_err(query);
            assert!(error.contains(':'), "{error}");
            assert_eq!(faults.settings(), HEALTHY, "{query}");
        }
    }

    #[test]
    fn errors_come_at_their_rate_and_evenly() {
        let faults = faults();
        assert!((0..100).all(|_| !faults.fails()), "healthy");
        faults.change("error_rate=0.25").unwrap();
        let failures: Vec<_> = (1..=12).filter(|_| faults.fails()).collect();
        assert_eq!(failures, [4, 8, 12]);
        faults.change("error_rate=1").unwrap();
        assert!((0..10).all(|_| faults.fails()));
    }

    #[test]
    fn the_end_of_a_stall_lets_all_go_on() {
        let faults = Arc::new(faults());
        faults.change("stall=true").unwrap();
        let held: Vec<_> = (0..3)
            .map(|_| {
                let faults = Arc::clone(&faults);
                std::thread::spawn(move || faults.wait_for_stall())
            })
            .collect();
        faults.change("stall=false").unwrap();
        for one in held {
            one.join().expect("a held request goes on");
        }
        faults.wait_for_stall();
    }
}
