//! The Rhai engine: explicit limits, imports confined to the recipes folder, everything that a host cannot interrupt
//! switched off.
//!
//! It runs on a thread of its own (`runner`); it decides nothing about labs.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rhai::{
    AST, Engine, EvalAltResult, Module, ModuleResolver, OptimizationLevel, Position, Scope, Shared,
    packages::{Package as _, StandardPackage},
};

use crate::{Error, recipe::Recipe, script};

/// Bounds of a recipe. Rhai's defaults differ between debug and release builds, so all are set here. Operations are
/// not bounded: a closure's do not count against its caller, and the time limit bounds all of it.
mod limits {
    pub(super) const CALL_LEVELS: usize = 48;
    pub(super) const EXPRESSION_DEPTH: usize = 64;
    pub(super) const VARIABLES: usize = 500;
    pub(super) const FUNCTIONS: usize = 500;
    pub(super) const MODULES: usize = 64;
    pub(super) const STRING_BYTES: usize = 16 << 20;
    pub(super) const ARRAY_ITEMS: usize = 100_000;
    /// With what is inside; a comparison in 100 rounds of many backends has a million.
    pub(super) const MAP_ITEMS: usize = 2_000_000;
}

/// An engine for this recipe, which can check but not yet run it.
#[must_use]
pub fn build(recipe: Arc<Recipe>) -> Engine {
    let mut engine = Engine::new_raw();
    engine
        .set_max_operations(0)
        .set_max_call_levels(limits::CALL_LEVELS)
        .set_max_expr_depths(limits::EXPRESSION_DEPTH, limits::EXPRESSION_DEPTH)
        .set_max_variables(limits::VARIABLES)
        .set_max_functions(limits::FUNCTIONS)
        .set_max_modules(limits::MODULES)
        .set_max_string_size(limits::STRING_BYTES)
        .set_max_array_size(limits::ARRAY_ITEMS)
        .set_max_map_size(limits::MAP_ITEMS)
        .set_strict_variables(true)
        .set_fail_on_invalid_map_property(true)
        // The checker reads map literals where they stand, so nothing may be folded away.
        .set_optimization_level(OptimizationLevel::None)
        .disable_symbol("eval")
        .set_module_resolver(Resolver { recipe, modules: Mutex::default(), loading: Mutex::default() });
    StandardPackage::new().register_into_engine(&mut engine);
    script::register(&mut engine);
    engine
}

/// Compiles one file of the recipe; its source is the name that messages show.
pub fn compile(engine: &Engine, recipe: &Recipe, file: &Path) -> Result<AST, Box<EvalAltResult>> {
    let text = recipe.read(file)?;
    let mut ast = engine.compile(text)?;
    ast.set_source(recipe.shown(file));
    Ok(ast)
}

/// Loads imported recipes, each once.
struct Resolver {
    recipe: Arc<Recipe>,
    modules: Mutex<HashMap<PathBuf, Shared<Module>>>,
    /// Files being loaded right now, for finding circles.
    loading: Mutex<Vec<PathBuf>>,
}

impl Resolver {
    fn load(&self, engine: &Engine, file: &Path) -> Result<Shared<Module>, Box<EvalAltResult>> {
        if let Some(module) = lock(&self.modules).get(file) {
            return Ok(Shared::clone(module));
        }
        if lock(&self.loading).iter().any(|loading| loading == file) {
            let shown = self.recipe.shown(file);
            return Err(Error::new(
                crate::Kind::Compile,
                format!("{shown} imports itself, directly or through others"),
            )
            .into());
        }
        lock(&self.loading).push(file.to_owned());
        let loaded = compile(engine, &self.recipe, file)
            .and_then(|ast| Module::eval_ast_as_new(Scope::new(), &ast, engine))
            .map(Shared::new);
        lock(&self.loading).pop();
        let module = loaded?;
        lock(&self.modules).insert(file.to_owned(), Shared::clone(&module));
        Ok(module)
    }
}

impl ModuleResolver for Resolver {
    fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let importer = source.map_or_else(|| self.recipe.file.clone(), |shown| self.recipe.path_of(shown));
        let file = self.recipe.import(path, &importer).map_err(|error| {
            let mut error: Box<EvalAltResult> = error.into();
            error.set_position(position);
            error
        })?;
        self.load(engine, &file).map_err(|cause| {
            if matches!(*cause, EvalAltResult::ErrorTerminated(..)) {
                return cause;
            }
            Box::new(EvalAltResult::ErrorInModule(self.recipe.shown(&file), cause, position))
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<(), Box<EvalAltResult>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.rhai");
        std::fs::write(&file, text).unwrap();
        let recipe = Arc::new(Recipe::locate(file.to_str().unwrap()).unwrap());
        let engine = build(Arc::clone(&recipe));
        let ast = compile(&engine, &recipe, &recipe.file)?;
        engine.run_ast(&ast)
    }

    #[test]
    fn hostile_scripts_end_at_a_limit() {
        for text in [
            "fn f(n) { f(n + 1) } f(0);",
            "let s = \"x\"; loop { s += s; }",
            "let a = [0]; loop { a += a; }",
            "eval(\"1\");",
            "let x = \"y\"; x.undefined_method();",
            "import \"/etc/passwd\" as p;",
            "print(undefined);",
        ] {
            assert!(run(text).is_err(), "{text}");
        }
    }

    #[test]
    fn error_reaches_the_script_as_a_map() {
        run(r#"
            try { ec2::list(); throw "reached"; }
            catch (e) { if e.kind != "internal" { throw `kind is ${e}`; } }
        "#)
        .unwrap();
    }

    #[test]
    fn circular_import_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.rhai"), "import \"b\" as b;").unwrap();
        std::fs::write(dir.path().join("b.rhai"), "import \"a\" as a;").unwrap();
        let recipe = Arc::new(Recipe::locate(dir.path().join("a.rhai").to_str().unwrap()).unwrap());
        let engine = build(Arc::clone(&recipe));
        let ast = compile(&engine, &recipe, &recipe.file).unwrap();
        assert!(engine.run_ast(&ast).unwrap_err().to_string().contains("imports itself"));
    }
}
