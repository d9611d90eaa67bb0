//! How a recipe failed: the engine's nested errors become one message with a place in the recipe, the way that led
//! there, and an exit code.
//!
//! It prints nothing.

use rhai::{Dynamic, EvalAltResult, Map, Position};
use serde_json::{Value, json};

use crate::{
    Error, Kind,
    recipe::Recipe,
    ui::report::{Failure, Place},
};

/// A failure and its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub kind: Kind,
    pub failure: Box<Failure>,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let failure =
            Failure { message: error.message, detail: error.detail, hint: error.hint, ..Failure::default() };
        Self { kind: error.kind, failure: Box::new(failure) }
    }
}

impl Problem {
    /// Unwraps an error that the engine raised while it worked on `file` (a shown name).
    #[must_use]
    pub fn of(error: &EvalAltResult, recipe: &Recipe, file: &str) -> Self {
        let mut file = file.to_owned();
        let mut trace = Vec::new();
        let mut error = error;
        loop {
            match error {
                EvalAltResult::ErrorInFunctionCall(name, source, inner, position) => {
                    let name = if name.starts_with("anon$") { "a closure" } else { name };
                    trace.insert(0, called(name, &file, *position));
                    if !source.is_empty() {
                        file.clone_from(source);
                    }
                    error = inner;
                }
                EvalAltResult::ErrorInModule(module, inner, position) => {
                    trace.insert(0, called("import", &file, *position));
                    file.clone_from(module);
                    error = inner;
                }
                _ => break,
            }
        }
        let mut problem = Self::leaf(error);
        problem.failure.place = place(recipe, &file, error.position());
        problem.failure.trace = trace;
        problem
    }

    fn leaf(error: &EvalAltResult) -> Self {
        let plain = |kind, message: String| Self::from(Error::new(kind, message));
        match error {
            EvalAltResult::ErrorRuntime(value, _) => thrown(value),
            EvalAltResult::ErrorTerminated(token, _) => plain(Kind::Interrupted, token.to_string()),
            EvalAltResult::ErrorParsing(what, _) => plain(Kind::Compile, lower_first(&what.to_string())),
            EvalAltResult::ErrorFunctionNotFound(signature, _) => {
                let hint = "Look at the types of its arguments; `labhost docs` lists what exists.";
                Self::from(
                    Error::new(Kind::Compile, format!("there is no function `{signature}`")).with_hint(hint),
                )
            }
            EvalAltResult::ErrorVariableNotFound(name, _) => {
                plain(Kind::Compile, format!("unknown variable `{name}`"))
            }
            EvalAltResult::ErrorModuleNotFound(name, _) => {
                plain(Kind::Compile, format!("unknown module `{name}`"))
            }
            other => {
                let mut other = other.to_string();
                if let Some(at) = other.rfind(" (line ") {
                    other.truncate(at);
                }
                plain(Kind::Recipe, lower_first(&other))
            }
        }
    }

    /// As an event for `--json`.
    #[must_use]
    pub fn event(&self) -> Value {
        let place = self.failure.place.as_ref();
        json!({
            "event": "error",
            "kind": self.kind.name(),
            "exit_code": self.kind.exit_code(),
            "message": self.failure.message,
            "file": place.map(|place| place.file.as_str()),
            "line": place.map(|place| place.line),
            "column": place.map(|place| place.column),
            "detail": self.failure.detail,
            "hint": self.failure.hint,
            "trace": self.failure.trace,
        })
    }
}

/// What a recipe threw: one of our own failures, perhaps caught and thrown again, or anything else.
fn thrown(value: &Dynamic) -> Problem {
    let map: Map = value.clone().try_cast().unwrap_or_default();
    let text = |key: &str| map.get(key).and_then(|value| value.clone().into_string().ok());
    let kind = text("kind").and_then(|kind| Kind::from_name(&kind));
    match (kind, text("message")) {
        (Some(kind), Some(message)) => {
            let failure =
                Failure { message, detail: text("detail"), hint: text("hint"), ..Failure::default() };
            Problem { kind, failure: Box::new(failure) }
        }
        _ => Error::new(Kind::Recipe, value.to_string()).into(),
    }
}

fn called(name: &str, file: &str, position: Position) -> String {
    position.line().map_or_else(|| format!("{name} in {file}"), |line| format!("{name} in {file}:{line}"))
}

fn place(recipe: &Recipe, file: &str, position: Position) -> Option<Place> {
    let (mut line, mut column) = (position.line()?, position.position().unwrap_or(1));
    let whole = recipe.read(&recipe.path_of(file)).unwrap_or_default();
    let mut text = whole.lines().nth(line - 1);
    // What is unfinished is noticed behind the last line; then that line's end is shown.
    if let (None, Some((last, end))) = (text, whole.lines().enumerate().last()) {
        (line, column, text) = (last + 1, end.chars().count() + 1, Some(end));
    }
    Some(Place { file: file.to_owned(), line, column, text: text.map(str::to_owned) })
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;
    use std::sync::Arc;

    fn failed(text: &str) -> Problem {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.rhai");
        std::fs::write(&file, text).unwrap();
        std::fs::write(dir.path().join("lib.rhai"), "fn broken() {\n    fail(\"host\", \"gone\");\n}")
            .unwrap();
        let recipe = Arc::new(Recipe::locate(file.to_str().unwrap()).unwrap());
        let engine = engine::build(Arc::clone(&recipe));
        let ast = engine::compile(&engine, &recipe, &recipe.file).unwrap();
        Problem::of(&engine.run_ast(&ast).unwrap_err(), &recipe, "x.rhai")
    }

    #[test]
    fn failure_in_an_imported_function_points_into_its_file() {
        let problem = failed("import \"lib\" as lib;\nlib::broken();");
        assert_eq!(problem.kind, Kind::Host);
        let place = problem.failure.place.unwrap();
        assert_eq!((place.file.as_str(), place.line), ("lib.rhai", 2));
        assert!(problem.failure.trace[0].contains("x.rhai:2"), "{:?}", problem.failure.trace);
    }

    #[test]
    fn caught_failure_keeps_its_kind_when_thrown_again() {
        let problem = failed("try { fail(\"slo\", \"too slow\"); } catch (e) { throw e; }");
        assert_eq!((problem.kind, problem.failure.message.as_str()), (Kind::Slo, "too slow"));
    }

    #[test]
    fn other_throws_are_the_recipes_own() {
        assert_eq!(failed("throw \"no luck\";").kind, Kind::Recipe);
        assert_eq!(failed("let a = [1]; a[5];").kind, Kind::Recipe);
    }
}
