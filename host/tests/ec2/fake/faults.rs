//! What can be made to go wrong.

use std::{collections::VecDeque, time::Duration};

use rustix::process::{Signal, kill_process};

use super::xml::Refused;

/// When a planned failure happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Nothing is done.
    Instead,
    /// It is done, and the answer is lost: the connection is closed.
    Lost,
}

/// The next calls of an action fail.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) action: String,
    /// Calls that are answered before.
    pub(crate) after: u32,
    pub(crate) times: u32,
    pub(crate) when: When,
    pub(crate) refused: Refused,
}

/// The switches. All counts are of looks, so that no test depends on time.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Looks at a new instance for which it is not known yet.
    pub(crate) hidden_looks: u32,
    /// Looks for which it is pending.
    pub(crate) pending_looks: u32,
    /// Looks for which a terminated one is shutting down.
    pub(crate) shutting_down_looks: u32,
    /// Attempts to delete a group for which an interface of a terminated instance still holds it.
    pub(crate) lingering_interfaces: u32,
    /// Looks for which a new group is not known to other calls than its creation.
    pub(crate) hidden_groups: u32,
    /// A launch makes one less than asked.
    pub(crate) is_launch_partial: bool,
    /// The next launch's first member ends itself while booting.
    pub(crate) dies_at_boot: bool,
    /// How long the SSH servers of the next launch stay closed.
    pub(crate) ssh_late: Option<Duration>,
    /// What GetConsoleOutput shows; nothing when `None`.
    pub(crate) console: Option<String>,
    /// All calls after this many more fail with ExpiredToken.
    pub(crate) expires_after: Option<u32>,
    /// How much an answer shows at most, so that there are more pages.
    pub(crate) items_per_page: Option<usize>,
    pub(crate) planned: VecDeque<Planned>,
    /// Kills a labhost in one of its calls.
    pub(crate) strike: Option<Strike>,
}

/// `kill -9` for a process while one of its calls is on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strike {
    pub(crate) victim: rustix::process::Pid,
    /// The action of the call; any when `None`.
    pub(crate) action: Option<&'static str>,
    /// Such calls that are answered before.
    pub(crate) calls: u32,
    /// Whether the call itself is carried out.
    pub(crate) is_carried_out: bool,
}

impl Strike {
    /// The victim is a child of this very process that has not been waited for.
    pub(crate) fn fall(self) {
        let _ = kill_process(self.victim, Signal::KILL);
    }
}

impl Faults {
    /// Counts a call; the strike, when it is its turn.
    pub(crate) fn next_strike(&mut self, action: &str) -> Option<Strike> {
        let strike = self.strike.as_mut().filter(|it| it.action.is_none_or(|wanted| wanted == action))?;
        if strike.calls == 0 {
            return self.strike.take();
        }
        strike.calls -= 1;
        None
    }

    /// The failure that is planned for this call, if any.
    pub(crate) fn next(&mut self, action: &str) -> Option<(When, Refused)> {
        if let Some(left) = &mut self.expires_after {
            if *left == 0 {
                return Some((
                    When::Instead,
                    super::xml::refused("ExpiredToken", "The provided token has expired."),
                ));
            }
            *left -= 1;
        }
        let planned = self.planned.iter_mut().find(|it| it.action == action && it.times > 0)?;
        if planned.after > 0 {
            planned.after -= 1;
            return None;
        }
        planned.times -= 1;
        Some((planned.when, planned.refused.clone()))
    }
}
