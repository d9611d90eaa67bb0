//! `ui`: what a recipe says to its user; and the few functions that have no module.

use std::time::Duration;

use rhai::{Array, Dynamic, Engine, EvalAltResult, NativeCallContext, plugin::*};

use super::{interrupted, run};
use crate::{Error, Kind, error::Context as _, units::Span};

type Raw<T> = Result<T, Box<EvalAltResult>>;

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("ui", rhai::exported_module!(functions).into());
    engine.register_global_module(rhai::exported_module!(globals).into());
}

fn show(context: &NativeCallContext<'_>, rows: &Array, columns: &[String]) -> Result<(), Error> {
    let rows: Vec<_> = rows
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()
        .context(Kind::Recipe, || "ui::table".to_owned())?;
    run(context)?.ui.table(&rows, columns);
    Ok(())
}

fn pause(context: &NativeCallContext<'_>, duration: Duration) -> Result<(), Error> {
    let run = run(context)?;
    run.runtime.block_on(async {
        tokio::select! {
            () = run.cancel.cancelled() => Err(interrupted()),
            () = tokio::time::sleep(duration) => Ok(()),
        }
    })
}

/// What the user sees.
#[export_module]
mod functions {
    use super::*;

    /// Announces the next part of the work.
    #[rhai_fn(return_raw)]
    pub fn step(context: NativeCallContext, text: &str) -> Raw<()> {
        run(&context)?.ui.step(text);
        Ok(())
    }

    /// Prints a result on standard output.
    #[rhai_fn(return_raw)]
    pub fn info(context: NativeCallContext, text: &str) -> Raw<()> {
        run(&context)?.ui.info(text);
        Ok(())
    }

    /// Prints a warning on standard error.
    #[rhai_fn(return_raw)]
    pub fn warn(context: NativeCallContext, text: &str) -> Raw<()> {
        run(&context)?.ui.warn(text);
        Ok(())
    }

    /// Prints a list of maps as an aligned table, keys sorted.
    #[rhai_fn(return_raw)]
    pub fn table(context: NativeCallContext, rows: Array) -> Raw<()> {
        Ok(show(&context, &rows, &[])?)
    }

    /// Prints a list of maps as an aligned table with these columns in this order.
    #[rhai_fn(name = "table", return_raw)]
    pub fn table_with(context: NativeCallContext, rows: Array, columns: Array) -> Raw<()> {
        let columns: Vec<_> = columns.iter().map(ToString::to_string).collect();
        Ok(show(&context, &rows, &columns)?)
    }

    /// Goes on only when the recipe was started with `--confirm`; otherwise the recipe ends with exit code 7 and
    /// `text`.
    #[rhai_fn(return_raw)]
    pub fn confirm(context: NativeCallContext, text: &str) -> Raw<()> {
        if run(&context)?.args.flags.contains_key("confirm") {
            return Ok(());
        }
        Err(Error::new(Kind::Confirm, format!("{text}: --confirm is missing"))
            .with_hint("Run the same command with --confirm.")
            .into())
    }
}

#[export_module]
mod globals {
    use super::*;

    /// Waits, for example `"500ms"`.
    #[rhai_fn(return_raw)]
    pub fn sleep(context: NativeCallContext, duration: &str) -> Raw<()> {
        let duration: Span = duration.parse().map_err(|cause: String| Error::new(Kind::Recipe, cause))?;
        Ok(pause(&context, duration.0)?)
    }

    /// Waits for this many seconds.
    #[rhai_fn(name = "sleep", return_raw)]
    pub fn sleep_s(context: NativeCallContext, seconds: i64) -> Raw<()> {
        sleep_f(context, seconds as f64)
    }

    /// Waits for this many seconds.
    #[rhai_fn(name = "sleep", return_raw)]
    pub fn sleep_f(context: NativeCallContext, seconds: f64) -> Raw<()> {
        let span = Span::from_secs_f64(seconds).map_err(|cause| Error::new(Kind::Recipe, cause))?;
        Ok(pause(&context, span.0)?)
    }

    /// The value as JSON text, on one line.
    #[rhai_fn(return_raw)]
    pub fn to_json(value: Dynamic) -> Raw<String> {
        Ok(serde_json::to_string(&value).context(Kind::Recipe, || "to_json".to_owned())?)
    }

    /// Ends the recipe with an error: `kind` is one of recipe, usage, provider, host, slo.
    #[rhai_fn(return_raw)]
    pub fn fail(kind: &str, message: &str) -> Raw<()> {
        let kind = Kind::from_name(kind).unwrap_or(Kind::Recipe);
        Err(Error::new(kind, message).into())
    }
}
