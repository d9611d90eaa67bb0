//! `cli`: what stands after the recipe's name on the command line.

use rhai::{Dynamic, Engine, EvalAltResult, NativeCallContext, plugin::*};

use super::run;
use crate::{Error, units::Span};

type Raw<T> = Result<T, Box<EvalAltResult>>;

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("cli", rhai::exported_module!(functions).into());
}

/// A flag's text as the kind of value that its default is.
fn like(name: &str, text: &str, default: &Dynamic) -> Result<Dynamic, Error> {
    let wrong = |kind: &str| Error::usage(format!("--{name}={text}: not {kind}"));
    if default.is_bool() {
        return text.parse::<bool>().map(Dynamic::from).map_err(|_| wrong("true or false"));
    }
    if default.is_int() {
        return text.parse::<i64>().map(Dynamic::from).map_err(|_| wrong("a whole number"));
    }
    if default.is_float() {
        return text.parse::<f64>().map(Dynamic::from).map_err(|_| wrong("a number"));
    }
    let is_duration = default.clone().into_string().is_ok_and(|text| text.parse::<Span>().is_ok());
    if is_duration {
        text.parse::<Span>().map_err(Error::usage)?;
    }
    Ok(text.to_owned().into())
}

/// The command line.
#[export_module]
mod functions {
    use super::*;

    /// The argument at `index` (from 0); a missing one is an error that says `what` was expected.
    #[rhai_fn(return_raw)]
    pub fn arg(context: NativeCallContext, index: i64, what: &str) -> Raw<String> {
        let run = run(&context)?;
        let found = usize::try_from(index).ok().and_then(|index| run.args.positional.get(index).cloned());
        let missing = || {
            Error::usage(format!("argument {} is missing: {what}", index + 1))
                .with_hint("Write it after the recipe's name.")
        };
        Ok(found.ok_or_else(missing)?)
    }

    /// The argument at `index` (from 0), or `()`.
    #[rhai_fn(name = "arg", return_raw)]
    pub fn arg_or_unit(context: NativeCallContext, index: i64) -> Raw<Dynamic> {
        let run = run(&context)?;
        let found = usize::try_from(index).ok().and_then(|index| run.args.positional.get(index).cloned());
        Ok(found.map_or(Dynamic::UNIT, Dynamic::from))
    }

    /// How to run another recipe of this folder from where this one was run, for example
    /// `cargo lab recipes/stop.rhai`.
    #[rhai_fn(return_raw)]
    pub fn command(context: NativeCallContext, recipe: &str) -> Raw<String> {
        let run = run(&context)?;
        Ok(run.invocation.of(recipe))
    }

    /// Whether `--name` was given.
    #[rhai_fn(return_raw)]
    pub fn flag(context: NativeCallContext, name: &str) -> Raw<bool> {
        flag_or(context, name, false.into())?
            .as_bool()
            .map_err(|_| Error::usage(format!("--{name} takes no value")).into())
    }

    /// The value of `--name VALUE`, of the same type as `default`, which stands for a missing flag. With a boolean
    /// default the flag is written without a value.
    #[rhai_fn(name = "flag", return_raw)]
    pub fn flag_or(context: NativeCallContext, name: &str, default: Dynamic) -> Raw<Dynamic> {
        let run = run(&context)?;
        Ok(match run.args.flags.get(name) {
            None => default,
            Some(None) => true.into(),
            Some(Some(text)) => like(name, text, &default)?,
        })
    }
}
