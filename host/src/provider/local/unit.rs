//! PURE: what a service is, and what follows from its exit.
//!
//! This module decides; `service` starts, signals and waits.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::Span;

/// A life shorter than this is a quick failure.
const QUICK: Duration = Duration::from_secs(5);

/// After this many quick failures in a row the service is given up.
pub(super) const QUICK_FAILURES_MAX: u32 = 5;

/// The first wait before a restart; it doubles with each quick failure up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Who orders a stop waits for it; nobody waits for longer.
pub(super) const STOP_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// The longest name; systemd units and file names have room for more.
const NAME_BYTES_MAX: usize = 40;

/// A service as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    /// One command, run by `/bin/sh -c 'exec COMMAND'` in the instance's home.
    pub(super) exec: String,
    /// Added to the instance's environment.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) restart: Restart,
    /// Stands for what the command uses (the program's hash, say): a changed one restarts the service.
    #[serde(default)]
    pub(super) hash: String,
    /// Stands for files that the service reads again at SIGHUP: when only this changed, it is reloaded.
    #[serde(default)]
    pub(super) reload_hash: String,
    /// From SIGTERM to SIGKILL.
    #[serde(default = "stop_timeout")]
    pub(super) stop_timeout: Span,
    /// The program takes over from the one that runs: a restart starts the new process first, and the old one ends
    /// because of that.
    #[serde(default)]
    pub(super) handover: bool,
}

/// What a new definition asks of a service that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Reload,
    /// A restart without a gap.
    HandOver,
    Restart,
}

impl Definition {
    /// What it takes to get from this definition to `next`.
    pub(super) fn change_to(&self, next: &Self) -> Change {
        if self == next {
            return Change::Nothing;
        }
        let same_but_files = Self { reload_hash: next.reload_hash.clone(), ..self.clone() };
        if same_but_files == *next {
            Change::Reload
        } else if self.handover && next.handover {
            Change::HandOver
        } else {
            Change::Restart
        }
    }
}

fn stop_timeout() -> Span {
    Span(Duration::from_secs(10))
}

/// When a service is started again after it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Restart {
    #[default]
    Always,
    /// Not after exit status 0.
    OnFailure,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Running,
    /// Waits to be started again.
    Starting,
    /// Given up.
    Failed,
    Stopped,
}

/// A service as `labhost-service status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) pid: Option<u32>,
    /// Of the last process; 128 and the signal's number for a death by signal.
    pub(super) exit_status: Option<i32>,
    /// How often it was started again by itself since it was last started on request.
    pub(super) restarts: u32,
    /// When it entered this state, in seconds since the epoch.
    pub(super) since_s: u64,
    pub(super) hash: String,
}

/// What to do after a process ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Start it again after this long.
    Wait(Duration),
    Stopped,
    Failed,
}

/// Counts quick failures in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct History {
    quick_failures: u32,
}

impl History {
    /// What follows from an exit with `status` (0 is success) after a life of `lived`.
    pub(super) fn on_exit(&mut self, restart: Restart, status: i32, lived: Duration) -> Next {
        self.quick_failures = if lived < QUICK { self.quick_failures + 1 } else { 0 };
        match restart {
            Restart::No | Restart::OnFailure if status == 0 => Next::Stopped,
            Restart::No => Next::Failed,
            _ if self.quick_failures >= QUICK_FAILURES_MAX => Next::Failed,
            _ => Next::Wait(self.back_off()),
        }
    }

    fn back_off(self) -> Duration {
        let doublings = self.quick_failures.saturating_sub(1).min(16);
        BACK_OFF_MAX.min(BACK_OFF_MIN * (1 << doublings))
    }
}

/// Errors, in words, unless the name is 1 to 40 of `a-z`, `0-9` and `-`, and does not start with `-`.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-') {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    Err(format!("{shown:?} is not a name; use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -"))
}

impl Definition {
    /// Errors, in words, when it cannot be run as it stands.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.exec.trim().is_empty() || self.exec.contains('\0') {
            return Err("`exec` must be a command".to_owned());
        }
        if self.stop_timeout.0 > STOP_TIMEOUT_MAX {
            return Err(format!("`stop_timeout` is over {}", Span(STOP_TIMEOUT_MAX)));
        }
        let wrong = |(name, value): (&String, &String)| {
            name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
        };
        if self.env.iter().any(wrong) {
            return Err("`env` has a name or value that no environment can hold".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_reload_and_a_changed_command_restarts() {
        let of = |text: &str| serde_json::from_str::<Definition>(text).unwrap();
        let old = of(r#"{"exec": "./x", "hash": "1", "reload_hash": "a"}"#);
        let files = of(r#"{"exec": "./x", "hash": "1", "reload_hash": "b"}"#);
        let both = of(r#"{"exec": "./x", "hash": "2", "reload_hash": "b"}"#);
        assert_eq!(old.change_to(&old), Change::Nothing);
        assert_eq!(old.change_to(&files), Change::Reload);
        assert_eq!(old.change_to(&both), Change::Restart);
        let handing = |it: &Definition| Definition { handover: true, ..it.clone() };
        assert_eq!(handing(&old).change_to(&handing(&both)), Change::HandOver);
        assert_eq!(old.change_to(&handing(&both)), Change::Restart, "what runs does not know how");
    }

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    fn millis(next: Next) -> u128 {
        match next {
            Next::Wait(wait) => wait.as_millis(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn waits_double_until_five_quick_failures_end_it() {
        let mut history = History::default();
        let waits: Vec<_> = (0..4).map(|_| millis(history.on_exit(Restart::Always, 1, SHORT))).collect();
        assert_eq!(waits, [100, 200, 400, 800]);
        assert_eq!(history.on_exit(Restart::Always, 1, SHORT), Next::Failed);
    }

    #[test]
    fn a_long_life_forgives_what_was_before() {
        let mut history = History::default();
        for _ in 0..20 {
            assert_eq!(millis(history.on_exit(Restart::Always, 1, SHORT)), 100);
            assert_eq!(millis(history.on_exit(Restart::Always, 1, LONG)), 100);
        }
    }

    #[test]
    fn the_exit_status_decides_when_asked() {
        let next = |restart, status| History::default().on_exit(restart, status, SHORT);
        assert_eq!(next(Restart::OnFailure, 0), Next::Stopped);
        assert_eq!(millis(next(Restart::OnFailure, 3)), 100);
        assert_eq!(next(Restart::No, 0), Next::Stopped);
        assert_eq!(next(Restart::No, 137), Next::Failed);
        assert_eq!(millis(next(Restart::Always, 0)), 100);
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in ["", "-x", "a/b", "..", "A", "a b", "a\n", "ä", &"a".repeat(41)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("web-1").unwrap();
        check_name(&"a".repeat(40)).unwrap();
    }

    #[test]
    fn a_definition_needs_only_its_command() {
        let definition: Definition = serde_json::from_str(r#"{"exec":"./worker"}"#).unwrap();
        assert_eq!(definition.restart, Restart::Always);
        assert_eq!(definition.stop_timeout.0, Duration::from_secs(10));
        definition.check().unwrap();
        assert!(serde_json::from_str::<Definition>(r#"{"exec":"x","usr":"y"}"#).is_err());
        assert!(Definition { exec: " ".into(), ..definition.clone() }.check().is_err());
        assert!(Definition { stop_timeout: Span(LONG * 10), ..definition.clone() }.check().is_err());
        let env = BTreeMap::from([("A=B".to_owned(), "c".to_owned())]);
        assert!(Definition { env, ..definition }.check().is_err());
    }
}
