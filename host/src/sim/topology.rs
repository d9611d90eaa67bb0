//! What a recipe says of a topology: its backends, how long requests take, and what happens meanwhile.
//!
//! Whether the whole can be simulated is judged by the options that hold these.

use std::time::Duration;

use select::sim::{Change, Credits, Discipline, Spec, What};

use crate::{
    error::{Error, Kind},
    nearest::nearest,
    options_map,
    units::Span,
};

/// Slower and faster backends only make times too long or too short to be told apart.
const SPEED_MIN: f64 = 1e-6;
const SPEED_MAX: f64 = 1e6;
/// Above this a mean of thousands of samples says nothing any more.
const CV_MAX: f64 = 10.0;
const CV_MIN: f64 = 0.01;
/// Used for credits without a limit worth the name.
const CREDITS_MAX: Duration = Duration::from_secs(24 * 3600);

options_map! {
    /// An item of `backends`.
    pub struct Backend {
        /// What it is called in results, with `-1`, `-2`, ... when there are several; by default `"backend"`.
        #[serde(default)]
        pub name: Option<String>,
        /// How many of the kind (default: 1).
        #[serde(default)]
        pub count: Option<u32>,
        /// Requests worked on at once (default: 1).
        #[serde(default)]
        pub slots: Option<u32>,
        /// Work that a slot does per unit of time (default: 1).
        #[serde(default)]
        pub speed: Option<f64>,
        /// What those beyond the slots do: `"share"` them (the default: threads on cores) or wait in a `"queue"` (the
        /// lab's emulated workers).
        #[serde(default)]
        pub order: Option<String>,
        /// CPU time that can be spent before it drops to `baseline`; without it there is no such limit.
        #[serde(default)]
        pub credits: Option<Span>,
        /// Cores' worth that it earns all the time (default: 0.1, a t2.micro).
        #[serde(default)]
        pub baseline: Option<f64>,
    }
}

options_map! {
    /// `work` of `sim::run`: how long a request takes on a slot of speed 1.
    #[derive(Default)]
    pub struct Work {
        /// The mean (default: 5 ms).
        #[serde(default)]
        pub mean: Option<Span>,
        /// `"exponential"` (the default), `"constant"`, `"normal"` (cut at 0), `"log-normal"` or `"bimodal"`.
        #[serde(default)]
        pub distribution: Option<String>,
        /// Standard deviation over the mean, of the normal ones (default: 1).
        #[serde(default)]
        pub cv: Option<f64>,
        /// Bimodal: one request in so many is long (default: 100).
        #[serde(default)]
        pub one_in: Option<u32>,
        /// Bimodal: how many times as long (default: 100).
        #[serde(default)]
        pub ratio: Option<f64>,
    }
}

options_map! {
    /// An item of `events`: something that happens to a backend.
    pub struct Event {
        /// When, from the start of the warm-up on.
        pub at: Span,
        /// The name of a backend, or of all that are named alike.
        pub backend: String,
        /// `"speed"` (with `speed`), `"stall"`, `"fail"` (with `share`), `"delay"` (with `delay`), `"black-hole"`,
        /// `"crash"`, `"heal"` (ends all of these), `"drain"` or `"undrain"`.
        pub what: String,
        /// Of each slot from now on.
        #[serde(default)]
        pub speed: Option<f64>,
        /// Of the requests that fail from now on, 0 to 1 (default: 1).
        #[serde(default)]
        pub share: Option<f64>,
        /// Work of a request that fails, as a share of its whole work (default: 0.1).
        #[serde(default)]
        pub work: Option<f64>,
        /// By how much every answer comes later.
        #[serde(default)]
        pub delay: Option<Span>,
    }
}

impl Backend {
    pub(super) fn spec(&self) -> Result<Spec, Error> {
        let (slots, speed) = (self.slots.unwrap_or(1), self.speed.unwrap_or(1.0));
        if !((1..=10_000).contains(&slots) && (SPEED_MIN..=SPEED_MAX).contains(&speed)) {
            return Err(wrong(
                format!("a backend of {slots} slots and speed {speed}"),
                "slots may be 1 to 10000, speed 0.000001 and more; an event can stall it.",
            ));
        }
        let discipline = match self.order.as_deref() {
            None | Some("share") => Discipline::Shared,
            Some("queue") => Discipline::Queue,
            Some(other) => {
                return Err(wrong(
                    format!("order: there is no `{other}`"),
                    "There are \"share\" and \"queue\".",
                ));
            }
        };
        let earned = self.baseline.unwrap_or(0.1);
        if !(1e-6..=1e6).contains(&earned) {
            return Err(wrong(format!("baseline: {earned} is out of range"), "It must be above 0."));
        }
        let credits = self.credits.map(|span| Credits { balance: span.0, earned, max: CREDITS_MAX });
        Ok(Spec { discipline, credits, ..Spec::shared(slots, speed) })
    }
}

impl Work {
    pub(super) fn checked(&self) -> Result<select::sim::Work, Error> {
        use select::sim::Work as W;
        let mean_ns = self.mean.map_or(5e6, |span| span.0.as_secs_f64() * 1e9);
        let (cv, one_in, ratio) =
            (self.cv.unwrap_or(1.0), self.one_in.unwrap_or(100), self.ratio.unwrap_or(100.0));
        if mean_ns < 1e3 || one_in == 0 || !(CV_MIN..=CV_MAX).contains(&cv) || !(1.0..=1e6).contains(&ratio) {
            return Err(wrong(
                "work is out of range",
                "mean may be 1us and more, cv 0.01 to 10, one_in 1 and more, ratio 1 and more.",
            ));
        }
        Ok(match self.distribution.as_deref() {
            None | Some("exponential") => W::Exponential { mean_ns },
            Some("constant") => W::Constant { mean_ns },
            Some("normal") => W::Normal { mean_ns, cv },
            Some("log-normal") => W::LogNormal { mean_ns, cv },
            Some("bimodal") => W::Bimodal { mean_ns, one_in, ratio },
            Some(other) => {
                let known = ["exponential", "constant", "normal", "log-normal", "bimodal"];
                return Err(unknown("work.distribution", other, &known));
            }
        })
    }
}

impl Event {
    pub(super) fn changes(&self, names: &[String]) -> Result<Vec<Change>, Error> {
        let what = self.what()?;
        let is_meant = |name: &str| {
            name == self.backend
                || name.strip_prefix(&self.backend).and_then(|rest| rest.strip_prefix('-')).is_some_and(
                    |number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()),
                )
        };
        let meant = names.iter().enumerate().filter(|(_, name)| is_meant(name));
        let changes: Vec<_> = meant.map(|(backend, _)| Change { at: self.at.0, backend, what }).collect();
        if changes.is_empty() {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(unknown("events: backend", &self.backend, &known));
        }
        Ok(changes)
    }

    fn what(&self) -> Result<What, Error> {
        let needs =
            |key: &str| wrong(format!("event \"{}\" needs `{key}`", self.what), format!("Add {key}: VALUE."));
        let share = |key: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(value),
            false => Err(wrong(format!("events: {key}: {value} is out of range"), "It may be 0 to 1.")),
        };
        Ok(match self.what.as_str() {
            "speed" => match self.speed.ok_or_else(|| needs("speed"))? {
                speed if (0.0..=SPEED_MAX).contains(&speed) => What::Speed(speed),
                speed => return Err(wrong(format!("events: speed: {speed} is out of range"), "0 stalls.")),
            },
            "stall" => What::Speed(0.0),
            "fail" => What::Fail {
                share: share("share", self.share.unwrap_or(1.0))?,
                work: share("work", self.work.unwrap_or(0.1))?,
            },
            "delay" => What::Delay(self.delay.ok_or_else(|| needs("delay"))?.0),
            "black-hole" => What::BlackHole,
            "crash" => What::Crash,
            "heal" => What::Restart,
            "drain" => What::Drain(true),
            "undrain" => What::Drain(false),
            other => {
                let known =
                    ["speed", "stall", "fail", "delay", "black-hole", "crash", "heal", "drain", "undrain"];
                return Err(unknown("events: what", other, &known));
            }
        })
    }
}

/// A name that is none of those known; says which is near.
pub(super) fn unknown(key: &str, name: &str, known: &[&str]) -> Error {
    let near = nearest(name, known.iter().copied())
        .map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    wrong(format!("{key}: there is no `{name}`"), format!("{near}There are {}.", known.join(", ")))
}

/// An option that makes no sense, with what to do.
pub(super) fn wrong(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(Kind::Recipe, format!("sim::run: {}", message.into())).with_hint(hint.into())
}
