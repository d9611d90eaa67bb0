//! What recipes can call. These modules translate between Rhai and the rest of the host; they know nothing of how
//! things are done.
//!
//! Every function is found through the engine's tag, which holds the [`Run`]; without one (for `labhost check`
//! and `labhost docs`) nothing can act.

#![expect(unreachable_pub, reason = "Rhai's plugin modules export exactly the functions that are `pub`")]

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rhai::{Engine, NativeCallContext};
use tokio_util::sync::CancellationToken;

use crate::{Error, Kind, error::CallAt, invocation::Invocation, lab::Lab, ui::Ui};

pub mod args;
mod balancer;
mod bench;
mod build;
mod cli;
mod ec2;
mod fleet;
mod host;
pub mod options;
mod service;
mod sessions;
mod sim;
mod state;
mod ui;
mod usage;
mod wrapup;

pub use host::Host;

/// A recipe being run: everything its functions need.
pub struct Run {
    pub lab: Lab,
    pub ui: Arc<Ui>,
    pub args: args::RecipeArgs,
    /// The folder that holds `recipes/` and `artifacts/`; relative paths in recipes start here.
    pub root: PathBuf,
    /// Terminate fleets that the recipe no longer names.
    pub prune: bool,
    /// An invalid benchmark result is a failure.
    pub strict: bool,
    pub cancel: CancellationToken,
    pub runtime: tokio::runtime::Handle,
    sessions: sessions::Sessions,
    pub invocation: Invocation,
    /// What is being waited for, for the message at Ctrl-C.
    waiting: Mutex<Option<&'static str>>,
    /// What benchmark results lack, each in words; the recipe ends with exit code 6 because of it.
    shortfalls: Mutex<Vec<String>>,
}

/// The run as the engine's tag carries it.
#[derive(Clone)]
pub struct Shared(pub Arc<Run>);

/// How long an operation that ignores the interruption may go on before it is abandoned.
const GRACE: Duration = Duration::from_millis(1_000);
/// How long a creation or removal that is under way is awaited after Ctrl-C, so that it is recorded.
const GRACE_CHANGES: Duration = Duration::from_secs(30);

impl Run {
    pub fn new(
        lab: Lab,
        ui: Arc<Ui>,
        args: args::RecipeArgs,
        root: PathBuf,
        cancel: CancellationToken,
        runtime: tokio::runtime::Handle,
        invocation: Invocation,
    ) -> Self {
        let sessions = sessions::Sessions::new(Arc::clone(lab.provider()), lab.dir(), cancel.clone());
        Self {
            lab,
            ui,
            args,
            root,
            prune: false,
            strict: false,
            cancel,
            runtime,
            sessions,
            invocation,
            waiting: Mutex::default(),
            shortfalls: Mutex::default(),
        }
    }

    /// Waits for `work` on the script's thread; after Ctrl-C only for a moment more.
    fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.wait_within(GRACE, work)
    }

    /// As `wait`, for what creates or removes something: `what` is named at Ctrl-C and awaited.
    fn change<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        if self.cancel.is_cancelled() {
            return Err(interrupted());
        }
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
        let result = self.wait_within(GRACE_CHANGES, work);
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
        result
    }

    fn wait_within<T>(
        &self,
        grace: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let overdue = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                result = work => result,
                () = overdue => Err(interrupted()),
            }
        })
    }

    /// What must end before the run can, if anything.
    #[must_use]
    pub fn waiting_for(&self) -> Option<&'static str> {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A result lacks something that was asked of it. The recipe goes on, so that it can show and save the result.
    fn fall_short(&self, words: String) {
        let mut shortfalls = self.shortfalls.lock().unwrap_or_else(PoisonError::into_inner);
        if !shortfalls.contains(&words) {
            shortfalls.push(words);
        }
    }

    /// An error of kind `slo` when a result fell short of what was asked of it.
    pub fn check_results(&self) -> Result<(), Error> {
        let shortfalls = self.shortfalls.lock().unwrap_or_else(PoisonError::into_inner);
        let message = match shortfalls.as_slice() {
            [] => return Ok(()),
            [only] => return Err(Error::new(Kind::Slo, only.clone())),
            several => format!("{} results fell short of what was asked of them", several.len()),
        };
        Err(Error::new(Kind::Slo, message).with_detail(shortfalls.join("\n")))
    }

    /// A path of a recipe: relative ones start at the lab's folder.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(Path::new(path))
    }

    /// A path as messages show it: relative to the lab's folder.
    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Ends what a run leaves open: its SSH connections.
    pub async fn close(&self) {
        self.sessions.close().await;
    }
}

#[must_use]
pub fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted")
}

/// The run that a script function belongs to. While it lives, failures carry the place of the call.
struct Current {
    run: Arc<Run>,
    _call: CallAt,
}

impl Deref for Current {
    type Target = Arc<Run>;

    fn deref(&self) -> &Arc<Run> {
        &self.run
    }
}

/// The run of this call. Every function of a module asks for it first.
fn run(context: &NativeCallContext<'_>) -> Result<Current, Error> {
    let call = CallAt::new(context.call_position());
    let run = context
        .tag()
        .and_then(|tag| tag.read_lock::<Shared>().map(|shared| Arc::clone(&shared.0)))
        .ok_or_else(|| Error::internal("this engine only checks recipes, it cannot run them"))?;
    Ok(Current { run, _call: call })
}

/// Registers all modules and types.
pub fn register(engine: &mut Engine) {
    ec2::register(engine);
    host::register(engine);
    fleet::register(engine);
    build::register(engine);
    balancer::register(engine);
    bench::register(engine);
    sim::register(engine);
    state::register(engine);
    cli::register(engine);
    ui::register(engine);
}

/// The keys of every options map, by function.
#[must_use]
pub fn known_options() -> options::Known {
    let mut known = options::Known::new();
    ec2::known_options(&mut known);
    host::known_options(&mut known);
    balancer::known_options(&mut known);
    bench::known_options(&mut known);
    sim::known_options(&mut known);
    known
}

pub(crate) use balancer::status_of as balancer_status;
pub use wrapup::wrap_up;
