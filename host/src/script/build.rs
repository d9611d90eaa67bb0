//! `build`: the workspace's own programs, built for the instances.

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};

use super::{Run, run};
use crate::{Error, Kind, programs};

type Raw<T> = Result<T, Box<EvalAltResult>>;

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("build", rhai::exported_module!(functions).into());
}

fn build(run: &Run, names: &[String]) -> Result<Vec<String>, Error> {
    let what = names.join(", ");
    if run.lab.is_planning() {
        run.ui.note(&format!("would build {what}"));
        return Ok(names.to_vec());
    }
    if std::env::var_os(programs::PROGRAMS_VARIABLE).is_none() {
        run.ui.note(&format!("building {what} (the first time takes about a minute)"));
    }
    let task = run.ui.task("build", &what);
    match run.wait(programs::build(&run.root, names)) {
        Ok(paths) => {
            task.done("done");
            Ok(paths.iter().map(|path| path.display().to_string()).collect())
        }
        Err(error) => {
            task.fail(&error.message);
            Err(error)
        }
    }
}

/// Programs of this workspace, for the instances.
#[export_module]
mod functions {
    use super::*;

    /// Builds the workspace's program `name` for the instances (static) and returns its path. A folder named by
    /// the variable LABHOST_PROGRAMS is used instead when it is set.
    #[rhai_fn(return_raw)]
    pub fn program(context: NativeCallContext, name: &str) -> Raw<String> {
        let run = run(&context)?;
        Ok(build(&run, &[name.to_owned()])?.remove(0))
    }

    /// Builds several programs at once. Returns a map from name to path.
    #[rhai_fn(return_raw)]
    pub fn programs(context: NativeCallContext, names: Array) -> Raw<Map> {
        let run = run(&context)?;
        let names: Vec<String> = names
            .into_iter()
            .map(|name| {
                name.into_string()
                    .map_err(|kind| Error::new(Kind::Recipe, format!("a program's name cannot be a {kind}")))
            })
            .collect::<Result<_, _>>()?;
        let paths = build(&run, &names)?;
        Ok(names.into_iter().zip(paths).map(|(name, path)| (name.into(), path.into())).collect())
    }

    /// The commit that the programs are built from, for example `3833c6c`, with `+` when files have changed since;
    /// `()` when the sources are in no git repository, or the programs were built beforehand.
    #[rhai_fn(return_raw)]
    pub fn commit(context: NativeCallContext) -> Raw<Dynamic> {
        let run = run(&context)?;
        let commit = run.wait(async { Ok(programs::commit(&run.root).await) })?;
        Ok(commit.map_or(Dynamic::UNIT, Dynamic::from))
    }
}
