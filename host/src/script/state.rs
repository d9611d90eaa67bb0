//! `state`: small values that a recipe keeps from one run to the next.

use rhai::{Dynamic, Engine, EvalAltResult, NativeCallContext, plugin::*};

use super::run;
use crate::{Error, Kind, error::Context as _, files};

type Raw<T> = Result<T, Box<EvalAltResult>>;

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("state", rhai::exported_module!(functions).into());
}

fn file(name: &str) -> Result<String, Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=60).contains(&name.len()) && name.chars().all(fits) {
        return Ok(format!("{name}.json"));
    }
    Err(Error::new(Kind::Recipe, format!("state: {name:?} cannot be a name"))
        .with_hint("Use up to 60 letters, digits, `-` and `_`."))
}

/// Values kept under artifacts/state.
#[export_module]
mod functions {
    use super::*;

    /// Keeps a value under a name until the lab is destroyed.
    #[rhai_fn(return_raw)]
    pub fn save(context: NativeCallContext, name: &str, value: Dynamic) -> Raw<()> {
        let run = run(&context)?;
        if run.lab.is_planning() {
            return Ok(());
        }
        run.lab.ledger()?;
        let dir = run.lab.dir().join("state");
        files::make_dir(&dir)?;
        let text = serde_json::to_value(&value).context(Kind::Recipe, || format!("state::save {name}"))?;
        Ok(files::write_json(&dir.join(file(name)?), &text)?)
    }

    /// The value kept under a name, or `()`.
    #[rhai_fn(return_raw)]
    pub fn load(context: NativeCallContext, name: &str) -> Raw<Dynamic> {
        let run = run(&context)?;
        let path = run.lab.dir().join("state").join(file(name)?);
        match std::fs::read(&path) {
            Ok(text) => {
                let value: serde_json::Value = serde_json::from_slice(&text)
                    .context(Kind::Recipe, || format!("read {}", path.display()))?;
                rhai::serde::to_dynamic(value)
            }
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(Dynamic::UNIT),
            Err(cause) => Err(Error::internal(format!("read {}: {cause}", path.display())).into()),
        }
    }
}
