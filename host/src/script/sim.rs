//! `sim`: the simulator of policies on a topology of the recipe's own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rhai::{Array, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};

use super::{Run, options, run};
use crate::{
    Error, Kind,
    error::Context as _,
    files,
    options::Options as _,
    sim::{self, Row, Study, chart, page},
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// How often the number of simulations that have ended is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// Longer names would not fit into a file name with prefix and suffix on every file system.
const NAME_BYTES_MAX: usize = 100;

pub(super) fn known_options(known: &mut options::Known) {
    known.insert("sim::run", sim::Options::OPTIONS);
    known.insert("sim::run.backends", sim::Backend::OPTIONS);
    known.insert("sim::run.work", sim::Work::OPTIONS);
    known.insert("sim::run.events", sim::Event::OPTIONS);
    known.insert("sim::page", page::Page::OPTIONS);
    known.insert("sim::page.sections", page::Section::OPTIONS);
    known.insert("sim::page.sections.figures", chart::Figure::OPTIONS);
    known.insert("sim::page.sections.figures.series", chart::Series::OPTIONS);
    known.insert("sim::page.sections.figures.spans", chart::Shade::OPTIONS);
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("sim", rhai::exported_module!(functions).into());
}

fn play(run: &Run, study: Study) -> Result<Vec<Row>, Error> {
    let runs = study.runs();
    let task = run.ui.task("sim", &format!("{runs} simulations"));
    let (cancel, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let playing = {
        let (cancel, done) = (Arc::clone(&cancel), Arc::clone(&done));
        run.runtime.spawn_blocking(move || study.play(&cancel, &|ended| done.store(ended, Relaxed)))
    };
    let rows = run.wait(async {
        let mut playing = std::pin::pin!(playing);
        loop {
            match tokio::time::timeout(SHOWN_EVERY, &mut playing).await {
                Ok(played) => return played.context(Kind::Internal, || "simulate".to_owned()),
                Err(_) => task.tell(&format!("{} done", done.load(Relaxed))),
            }
        }
    });
    // After Ctrl-C nobody waits for what is still being played.
    cancel.store(true, Relaxed);
    match rows {
        Ok(Some(rows)) => {
            task.done(&format!("{runs} simulations"));
            Ok(rows)
        }
        Ok(None) => Err(super::interrupted()),
        Err(error) => {
            task.fail(&error.message);
            Err(error)
        }
    }
}

/// The simulator of policies.
#[export_module]
mod functions {
    use super::*;

    /// Plays requests on the backends of one cluster, in virtual time: every policy under every load, by the code that
    /// the balancer runs. Returns a list of maps, load by load: `policy`, `load`, `requests_per_second`,
    /// `goodput_per_second`, `failed_percent`, `mean_ms`, `p50_ms`, `p90_ms`, `p99_ms`, `p999_ms`, `mean_ms_range`,
    /// `p99_ms_range` (least and largest of the seeds), `share` (by backend, 0 to 1), and with `every` `over_time`:
    /// `#{ t_s, mean_ms, p99_ms, failed_percent, share }`, lists with one item per step.
    #[rhai_fn(name = "run", return_raw)]
    pub fn play_all(context: NativeCallContext, options: Map) -> Raw<Array> {
        let run = run(&context)?;
        let options: sim::Options = options::decode("sim::run", options)?;
        let rows = play(&run, Study::new(&options)?)?;
        rows.iter().map(rhai::serde::to_dynamic).collect()
    }

    /// Writes a page of figures and tables, artifacts/bench-NAME.html: one file that needs no other and no scripts. Returns
    /// its path.
    #[rhai_fn(return_raw)]
    pub fn page(context: NativeCallContext, page: Map, name: &str) -> Raw<String> {
        let run = run(&context)?;
        let page: page::Page = options::decode("sim::page", page)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(fits) {
            return Err(Error::new(Kind::Recipe, format!("sim::page: {name:?} is no name for a file"))
                .with_hint(format!("Use 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`."))
                .into());
        }
        files::make_dir(run.lab.dir())?;
        let path = run.lab.dir().join(format!("bench-{name}.html"));
        files::write_whole(&path, page::html(&page).as_bytes())?;
        Ok(run.shown(&path))
    }
}
