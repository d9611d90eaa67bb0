//! Runs one recipe: check it, give the engine a thread of its own, and stay here for Ctrl-C and the time limit.
//!
//! It finds no lab (`locate`) and knows no function of a recipe (`script`).

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use rhai::{Dynamic, Engine};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Kind, check,
    cli::Options,
    docs, engine,
    failure::Problem,
    identity,
    instance::ends,
    invocation::Invocation,
    locate,
    recipe::Recipe,
    script::{self, Run, Shared, args::RecipeArgs},
    ui::{self, Ui},
    units::{Span, epoch_s},
};

/// Stack of the engine's thread: deep enough for the allowed call depth in a debug build.
const STACK_BYTES: usize = 64 << 20;
/// After Ctrl-C the engine's thread is waited for this long; a creation under way may take 30 s of it.
const END_WITHIN: Duration = Duration::from_secs(32);

/// How a recipe ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// `--plan` found something that a run would change.
    WouldChange,
}

/// Runs the recipe in `words[0]` with the other words as its arguments.
pub fn run(options: &Options, words: &[String], ui: &Arc<Ui>) -> Result<Outcome, Vec<Problem>> {
    let command = format!("labhost {}", words.join(" "));
    let (name, words) =
        words.split_first().ok_or_else(|| vec![Error::usage("a recipe is missing").into()])?;
    let recipe = Arc::new(Recipe::locate(name).map_err(one)?);
    let mut engine = engine::build(Arc::clone(&recipe));
    let checked = check::check(&engine, &recipe);
    if !checked.problems.is_empty() {
        return Err(checked.problems);
    }
    if words.iter().any(|word| word == "--help" || word == "-h") {
        ui.info(&docs::recipe_help(&recipe, &checked.flags));
        return Ok(Outcome::Done);
    }
    let args = RecipeArgs::parse(words, &checked.flags, checked.arguments.max()).map_err(one)?;
    let state = locate::state_dir(options, Some(&recipe)).map_err(one)?;
    // Every process that this one starts is known by this mark, and `stop` finds it when this one was killed.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var(identity::MARK, identity::lab_id(&state)) };
    let runtime = locate::runtime().map_err(one)?;
    let cancel = CancellationToken::new();
    let mut lab = locate::lab(options, state, command, ui).map_err(one)?;
    if options.plan {
        lab.plan_only();
    }
    let invocation = Invocation::new(name, options.state.as_deref());
    let handle = runtime.handle().clone();
    let mut run = Run::new(lab, Arc::clone(ui), args, recipe.root.clone(), cancel, handle, invocation);
    run.prune = options.prune;
    run.strict = options.strict;
    let run = Arc::new(run);
    attach(&mut engine, &run);
    let mut signals = Signals::watch(&runtime);
    let ended = supervise(&runtime, &mut signals, options, &run, engine, recipe);
    if let Some(result) = &ended {
        runtime.block_on(async {
            tokio::select! {
                () = wind_up(&run, options, result) => {}
                () = signals.next() => {}
            }
        });
    }
    // Whatever still runs in the background is abandoned rather than waited for.
    runtime.shutdown_background();
    let result = ended.unwrap_or_else(interrupted);
    result.map(|()| outcome(&run, options)).map_err(|problem| vec![problem])
}

/// Shows the plan, if this was one.
fn outcome(run: &Run, options: &Options) -> Outcome {
    let Some((rehearsal, cost)) = run.lab.rehearsal() else { return Outcome::Done };
    ui::plan::show(&run.ui, &rehearsal, &cost, options.lifetime(), |kind| run.lab.provider().vcpus(kind));
    if rehearsal.has_changes() { Outcome::WouldChange } else { Outcome::Done }
}

fn interrupted() -> Result<(), Problem> {
    Err(script::interrupted().into())
}

/// What follows the recipe's end, whatever that was.
async fn wind_up(run: &Run, options: &Options, result: &Result<(), Problem>) {
    run.close().await;
    if let (Ok(()), Some(ttl)) = (result, options.ttl) {
        warn_of_other_end(run, ttl).await;
    }
    if result.as_ref().is_err_and(|problem| problem.kind == Kind::Interrupted) {
        say_what_exists(run).await;
    }
}

/// A lab's end is set when it is first launched; a later `--ttl` does not move it.
async fn warn_of_other_end(run: &Run, ttl: Span) {
    /// A run itself takes time between the launch and its end.
    const TOLERANCE_S: u64 = 120;
    let instances = run.lab.last_seen().await.unwrap_or_default();
    let Some(end) = instances.iter().map(|instance| instance.expires_at_s).max() else { return };
    let wished = epoch_s(SystemTime::now() + ttl.0);
    if end.abs_diff(wished) > TOLERANCE_S {
        run.ui.warn(&format!(
            "--ttl is for new labs: the instances {}; `labhost extend {ttl}` moves that",
            ends(end)
        ));
    }
}

fn one(error: Error) -> Vec<Problem> {
    vec![error.into()]
}

fn attach(engine: &mut Engine, run: &Arc<Run>) {
    engine.set_default_tag(Dynamic::from(Shared(Arc::clone(run))));
    let cancel = run.cancel.clone();
    engine.on_progress(move |_| cancel.is_cancelled().then(|| Dynamic::from("interrupted")));
    let ui = Arc::clone(&run.ui);
    engine.on_print(move |text| ui.info(text));
    let ui = Arc::clone(&run.ui);
    engine.on_debug(move |text, source, position| {
        ui.note(&format!("{}:{position}: {text}", source.unwrap_or("")));
    });
}

/// The engine's work, on its own thread.
fn execute(engine: &Engine, recipe: &Recipe, run: &Run) -> Result<(), Problem> {
    let shown = recipe.shown(&recipe.file);
    let problem = |error: Box<rhai::EvalAltResult>| Problem::of(&error, recipe, &shown);
    let ast = engine::compile(engine, recipe, &recipe.file).map_err(problem)?;
    engine.run_ast(&ast).map_err(problem)?;
    script::wrap_up(run).and_then(|()| run.check_results()).map_err(Problem::from)
}

/// Lets the recipe run until it ends, the time is over or a signal comes. `None` when a second signal has come: then
/// nothing may be waited for any more.
fn supervise(
    runtime: &Runtime,
    signals: &mut Signals,
    options: &Options,
    run: &Arc<Run>,
    engine: Engine,
    recipe: Arc<Recipe>,
) -> Option<Result<(), Problem>> {
    let (send, mut ended) = oneshot::channel();
    let worker = Arc::clone(run);
    let thread = std::thread::Builder::new().name("recipe".to_owned()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        let work = std::panic::AssertUnwindSafe(|| execute(&engine, &recipe, &worker));
        let result = std::panic::catch_unwind(work).unwrap_or_else(|_| {
            let error = Error::internal("the recipe's engine failed; this is a bug in labhost");
            Err(error
                .with_hint("What was done is in artifacts/journal.ndjson; running again goes on from there.")
                .into())
        });
        let _ = send.send(result);
    });
    if let Err(cause) = started {
        return Some(Err(Error::internal(format!("start the engine's thread: {cause}")).into()));
    }
    runtime.block_on(async {
        let is_late = tokio::select! {
            result = &mut ended => return Some(result.unwrap_or_else(|_| interrupted())),
            () = signals.next() => false,
            () = tokio::time::sleep(options.time_limit.0) => true,
        };
        if !is_late {
            say_what_is_awaited(run);
        }
        run.cancel.cancel();
        let result = tokio::select! {
            result = tokio::time::timeout(END_WITHIN, &mut ended) => result.ok().and_then(Result::ok),
            () = signals.next() => return None,
        };
        let result = result.unwrap_or_else(interrupted);
        let is_interrupted = result.as_ref().is_err_and(|problem| problem.kind == Kind::Interrupted);
        Some(if is_late && is_interrupted { Err(too_long(options)) } else { result })
    })
}

fn too_long(options: &Options) -> Problem {
    let message = format!("the recipe took longer than its time limit of {}", options.time_limit);
    let hint = "Allow more with --time-limit, for example --time-limit 2h.";
    Error::new(Kind::Interrupted, message).with_hint(hint).into()
}

fn say_what_is_awaited(run: &Run) {
    let waiting = run.waiting_for().map_or_else(
        || "ending remote commands".to_owned(),
        |what| format!("waiting for {what}, at most 30 s, so that it is recorded"),
    );
    run.ui.warn(&format!("interrupted: {waiting}; Ctrl-C again ends at once"));
}

/// SIGINT, SIGTERM and SIGHUP. None that comes while this lives is missed.
struct Signals(Vec<Signal>);

impl Signals {
    fn watch(runtime: &Runtime) -> Self {
        let _inside = runtime.enter();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Self(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
    }

    async fn next(&mut self) {
        std::future::poll_fn(|context| {
            let has_come = self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if has_come { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// After an interruption: what there is, and the two ways to go on.
async fn say_what_exists(run: &Run) {
    let Ok(instances) = run.lab.list().await else { return };
    if instances.is_empty() {
        run.ui.note("no instances exist");
        return;
    }
    let names: Vec<_> = instances.iter().map(|instance| instance.name.as_str()).collect();
    let expires = instances.iter().map(|instance| instance.expires_at_s).max().unwrap_or_default();
    run.ui.note(&format!("{} instances exist: {}", names.len(), names.join(", ")));
    let types: Vec<_> = instances.iter().map(|instance| instance.instance_type.as_str()).collect();
    let cost = run.lab.provider().cost(&types).note;
    run.ui.note(&format!("they {}; {cost}", ends(expires)));
    run.ui.note(&format!(
        "go on: run the same recipe again; remove them: {} --confirm",
        run.invocation.of("stop.rhai")
    ));
}
