//! What the user sees while a recipe runs: one line per host that moves on a terminal, plain prefixed lines
//! elsewhere, and one JSON event per line with `--json`.
//!
//! Progress goes to stderr, what the recipe has to say to stdout; with `--json` everything goes to stdout.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant, SystemTime},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

pub mod plan;
pub mod report;
pub mod table;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Terminal,
    Plain,
    Json,
}

/// Where everything for the user goes. Cheap to share; safe to call from several threads.
#[derive(Debug)]
pub struct Ui {
    mode: Mode,
    bars: MultiProgress,
    colour: bool,
}

/// One host's part of a step, shown until it ends.
#[derive(Debug)]
pub struct Task<'a> {
    ui: &'a Ui,
    host: String,
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Ui {
    #[must_use]
    pub fn new(json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let mode = match (json, terminal) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Terminal,
            (false, false) => Mode::Plain,
        };
        let target =
            if mode == Mode::Terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let colour = mode == Mode::Terminal && std::env::var_os("NO_COLOR").is_none();
        Self { mode, bars: MultiProgress::with_draw_target(target), colour }
    }

    /// A new part of the work begins.
    pub fn step(&self, text: &str) {
        self.say("step", text, &format!("{} {text}", self.paint("1;36", "==>")));
    }

    /// Something was done or found out.
    pub fn note(&self, text: &str) {
        self.say("note", text, &format!("    {text}"));
    }

    /// Something that the user should know, though the run goes on.
    pub fn warn(&self, text: &str) {
        self.say("warn", text, &format!("{} {text}", self.paint("1;33", "warning:")));
    }

    /// What the recipe tells its user: a result, not progress.
    pub fn info(&self, text: &str) {
        if self.mode == Mode::Json {
            return self.event(json!({ "event": "info", "text": text }));
        }
        self.stdout(text);
    }

    /// Rows as an aligned table; see [`table::render`].
    pub fn table(&self, rows: &[Value], columns: &[String]) {
        if self.mode == Mode::Json {
            return self.event(json!({ "event": "table", "rows": rows }));
        }
        self.stdout(table::render(rows, columns).trim_end());
    }

    /// A failure, with everything that helps; `text` is already laid out for the terminal.
    pub fn error(&self, text: &str, event: Value) {
        if self.mode == Mode::Json {
            return self.event(event);
        }
        self.stderr(&text.replacen("error:", &self.paint("1;31", "error:"), 1));
    }

    /// Any other event; shown with `--json` only.
    pub fn event(&self, mut event: Value) {
        if self.mode == Mode::Json {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            event["at_ms"] = json!(since.as_millis() as u64);
            self.stdout(&event.to_string());
        }
    }

    /// Begins one host's part of a step.
    pub fn task(&self, host: &str, what: &str) -> Task<'_> {
        let bar = (self.mode == Mode::Terminal).then(|| {
            let bar = self.bars.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("    {spinner} {prefix:<14} {msg} {elapsed:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(host.to_owned());
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        self.event(json!({ "event": "host", "host": host, "task": what, "state": "started" }));
        Task { ui: self, host: host.to_owned(), what: what.to_owned(), started: Instant::now(), bar }
    }

    fn say(&self, event: &str, text: &str, line: &str) {
        if self.mode == Mode::Json {
            return self.event(json!({ "event": event, "text": text }));
        }
        self.stderr(line);
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    // A closed pipe (`labhost ... | head`) must not end a run half way, so failures to print are ignored.
    fn stdout(&self, text: &str) {
        self.bars.suspend(|| {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        });
    }

    fn stderr(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }
}

impl Task<'_> {
    /// Shows how far it is, on a terminal only.
    pub fn tell(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {text}", self.what));
        }
    }

    /// Ends the task well; its line stays unless it moved on a terminal.
    pub fn done(self, text: &str) {
        self.end("done", text);
    }

    /// Ends the task with the reason why it failed; its line stays.
    pub fn fail(self, text: &str) {
        self.end("failed", text);
    }

    fn end(&self, state: &str, text: &str) {
        let (host, what) = (&self.host, &self.what);
        let elapsed = self.started.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        match self.ui.mode {
            Mode::Json => self.ui.event(json!({
                "event": "host", "host": host, "task": what, "state": state, "text": text,
                "ms": elapsed.as_millis() as u64,
            })),
            Mode::Terminal if state == "done" => {}
            _ => self.ui.stderr(&format!("{host:<14} | {what}: {text} ({:.2} s)", elapsed.as_secs_f64())),
        }
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
