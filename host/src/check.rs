//! Finds mistakes in a recipe before anything is launched: it compiles the recipe and all that it imports, and
//! compares every call with the functions that exist and every options map with the keys that they know.
//!
//! It does not run anything, so it cannot know the types of values.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use rhai::{AST, ASTNode, Engine, EvalAltResult, Expr, FnCallExpr, ParseErrorType, Position, Stmt};

use crate::{
    Error, Kind,
    catalog::Catalog,
    engine,
    failure::Problem,
    nearest::nearest,
    recipe::Recipe,
    script::{self, args::FlagSpec, options},
};

/// What a check found out about a recipe.
#[derive(Debug, Default)]
pub struct Checked {
    /// Mistakes, in the order of their places.
    pub problems: Vec<Problem>,
    /// Flags that the recipe or its imports ask for.
    pub flags: Vec<FlagSpec>,
    /// Arguments that they ask for.
    pub arguments: Arguments,
    /// Every file that belongs to it.
    pub files: Vec<PathBuf>,
}

/// How many arguments a recipe takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Arguments {
    count: usize,
    /// Which ones it asks for is computed while it runs.
    is_open: bool,
}

impl Arguments {
    /// `None` for any number.
    #[must_use]
    pub fn max(self) -> Option<usize> {
        (!self.is_open).then_some(self.count)
    }
}

/// Functions that belong to the language's own syntax and take any arguments.
const SYNTAX: [&str; 9] =
    ["call", "curry", "Fn", "type_of", "print", "debug", "is_def_var", "is_def_fn", "is_shared"];
/// Imports of imports of ... deeper than this are taken for a circle.
const IMPORT_DEPTH_MAX: usize = 16;

/// Checks a recipe and everything that it imports.
#[must_use]
pub fn check(engine: &Engine, recipe: &Recipe) -> Checked {
    let mut checker = Checker {
        engine,
        recipe,
        catalog: Catalog::of(engine),
        known: script::known_options(),
        units: BTreeMap::new(),
        found: Checked::default(),
        flags: BTreeSet::new(),
    };
    checker.file(&recipe.file, 0);
    let mut found = checker.found;
    found.flags = checker.flags.into_iter().collect();
    found
}

/// What a file offers to those that import it.
#[derive(Debug, Default, Clone)]
struct Unit {
    functions: Vec<(String, usize)>,
}

struct Checker<'a> {
    engine: &'a Engine,
    recipe: &'a Recipe,
    catalog: Catalog,
    known: options::Known,
    units: BTreeMap<PathBuf, Unit>,
    found: Checked,
    flags: BTreeSet<FlagSpec>,
}

/// The file that is being looked at.
struct Scope {
    file: PathBuf,
    own: Unit,
    /// By the name that `import ... as NAME` gives.
    imports: BTreeMap<String, Unit>,
    /// Names of imports whose path is computed.
    opaque: BTreeSet<String>,
    /// Keys of maps: any of them may hold a closure, which can be called like a method.
    keys: BTreeSet<String>,
}

impl Checker<'_> {
    fn file(&mut self, file: &Path, depth: usize) -> Unit {
        if let Some(unit) = self.units.get(file) {
            return unit.clone();
        }
        self.found.files.push(file.to_owned());
        self.units.insert(file.to_owned(), Unit::default());
        let ast = match engine::compile(self.engine, self.recipe, file) {
            Ok(ast) => ast,
            Err(error) => {
                self.not_compiled(file, *error);
                return Unit::default();
            }
        };
        let own =
            Unit { functions: ast.iter_functions().map(|f| (f.name.to_owned(), f.params.len())).collect() };
        let mut scope = Scope {
            file: file.to_owned(),
            own,
            imports: BTreeMap::new(),
            opaque: BTreeSet::new(),
            keys: BTreeSet::new(),
        };
        self.collect(&ast, &mut scope, depth);
        self.calls(&ast, &scope);
        self.units.insert(file.to_owned(), scope.own.clone());
        scope.own
    }

    /// Follows imports and notes map keys.
    fn collect(&mut self, ast: &AST, scope: &mut Scope, depth: usize) {
        let mut imports = Vec::new();
        ast.walk(&mut |path| {
            match path.last() {
                Some(ASTNode::Stmt(Stmt::Import(import, position))) => {
                    match &import.0 {
                        Expr::StringConstant(name, _) => {
                            imports.push((name.to_string(), import.1.name.to_string(), *position));
                        }
                        // What a computed import brings is only known when it runs.
                        _ => scope.opaque.extend([import.1.name.to_string()]),
                    }
                }
                Some(ASTNode::Expr(Expr::Map(map, _))) => {
                    scope.keys.extend(map.0.iter().map(|(key, _)| key.name.to_string()));
                }
                _ => {}
            }
            true
        });
        for (name, alias, position) in imports {
            match self.recipe.import(&name, &scope.file) {
                Ok(file) if depth < IMPORT_DEPTH_MAX => {
                    let unit = self.file(&file, depth + 1);
                    scope.imports.insert(alias, unit);
                }
                Ok(_) => self.report(
                    &scope.file,
                    position,
                    Error::new(Kind::Compile, "imports are nested too deeply"),
                ),
                Err(error) => self.report(&scope.file, position, error),
            }
        }
    }

    fn calls(&mut self, ast: &AST, scope: &Scope) {
        let mut calls: Vec<(FnCallExpr, Position, bool)> = Vec::new();
        ast.walk(&mut |path| {
            match path.last() {
                Some(
                    ASTNode::Expr(Expr::FnCall(call, position)) | ASTNode::Stmt(Stmt::FnCall(call, position)),
                ) => {
                    calls.push(((**call).clone(), *position, false));
                }
                Some(ASTNode::Expr(Expr::MethodCall(call, position))) => {
                    calls.push(((**call).clone(), *position, true));
                }
                _ => {}
            }
            true
        });
        for (call, position, method) in &calls {
            if call.op_token.is_none() {
                self.call(scope, call, *position, *method);
            }
        }
    }

    fn call(&mut self, scope: &Scope, call: &FnCallExpr, position: Position, method: bool) {
        let module = (!call.namespace.is_empty()).then(|| call.namespace.to_string());
        let name = call.name.as_str();
        self.note_flag(module.as_deref(), call);
        if module.is_none() && (SYNTAX.contains(&name) || name.starts_with("anon$")) {
            return;
        }
        if method && module.is_none() && scope.keys.contains(name) {
            return;
        }
        if module.as_ref().is_some_and(|module| scope.opaque.contains(module)) {
            return;
        }
        let arity = call.args.len() + usize::from(method);
        match self.arities(scope, module.as_deref(), name, method) {
            None => {
                let error = self.unknown_module(
                    &scope.imports.keys().map(String::as_str).collect::<Vec<_>>(),
                    module.as_deref().unwrap_or_default(),
                );
                self.report(&scope.file, position, error);
            }
            Some(arities) if arities.is_empty() => {
                let error = self.unknown_function(scope, module.as_deref(), name, method);
                self.report(&scope.file, position, error);
            }
            Some(arities) if !arities.contains(&arity) => {
                let error = self.wrong_count(module.as_deref(), name, &arities, arity, method);
                self.report(&scope.file, position, error);
            }
            Some(_) => self.options(scope, module.as_deref(), call),
        }
    }

    /// How many arguments functions of this name take; `None` when there is no such module.
    fn arities(
        &self,
        scope: &Scope,
        module: Option<&str>,
        name: &str,
        method: bool,
    ) -> Option<BTreeSet<usize>> {
        if let Some(module) = module {
            if let Some(unit) = scope.imports.get(module) {
                return Some(arities_in(unit, name));
            }
            if !self.catalog.modules().contains(&module) {
                return None;
            }
            return Some(self.catalog.named(Some(module), name).map(|function| function.arity).collect());
        }
        let mut arities: BTreeSet<usize> =
            self.catalog.named(None, name).map(|function| function.arity).collect();
        let own = arities_in(&scope.own, name);
        // A recipe's own function called as a method has what stands before the dot as `this`.
        arities.extend(own.iter().map(|arity| arity + usize::from(method)));
        Some(arities)
    }

    fn not_compiled(&mut self, file: &Path, error: EvalAltResult) {
        match error {
            EvalAltResult::ErrorParsing(ParseErrorType::ModuleUndefined(module), position) => {
                let error = self.unknown_module(&[], &module);
                self.report(file, position, error);
            }
            other => self.problem(file, Position::NONE, other),
        }
    }

    fn unknown_module(&self, imports: &[&str], module: &str) -> Error {
        let known = self.catalog.modules().into_iter().chain(imports.iter().copied());
        let hint = nearest(module, known.clone()).map_or_else(
            || format!("Known are {}.", known.clone().collect::<Vec<_>>().join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        Error::new(Kind::Compile, format!("unknown module `{module}`")).with_hint(hint)
    }

    fn unknown_function(&self, scope: &Scope, module: Option<&str>, name: &str, method: bool) -> Error {
        let prefix = module.map_or_else(String::new, |module| format!("{module}::"));
        let own = module.and_then(|module| scope.imports.get(module)).unwrap_or(&scope.own);
        let known: Vec<&str> =
            self.catalog.names(module).chain(own.functions.iter().map(|(name, _)| name.as_str())).collect();
        let kind = if method { "method" } else { "function" };
        let hint = match (nearest(name, known.iter().copied()), module) {
            (Some(near), _) => format!("did you mean `{prefix}{near}`?"),
            (None, Some(module)) => format!("`labhost docs {module}` lists what {module} has."),
            (None, None) => "`labhost docs` lists all functions.".to_owned(),
        };
        Error::new(Kind::Compile, format!("unknown {kind} `{prefix}{name}`")).with_hint(hint)
    }

    fn wrong_count(
        &self,
        module: Option<&str>,
        name: &str,
        arities: &BTreeSet<usize>,
        given: usize,
        method: bool,
    ) -> Error {
        let shown = |arity: usize| arity.saturating_sub(usize::from(method));
        let counts: Vec<_> = arities.iter().map(|arity| shown(*arity).to_string()).collect();
        let prefix = module.map_or_else(String::new, |module| format!("{module}::"));
        let noun = if counts == ["1"] { "argument" } else { "arguments" };
        let message = format!("`{prefix}{name}` takes {} {noun}, not {}", counts.join(" or "), shown(given));
        let forms: Vec<_> = self
            .catalog
            .named(module, name)
            .map(|function| format!("{prefix}{}", function.signature))
            .collect();
        let error = Error::new(Kind::Compile, message);
        if forms.is_empty() { error } else { error.with_hint(format!("It is {}.", forms.join(" or "))) }
    }

    /// Compares the map literal in the last argument with the options that the function knows.
    fn options(&mut self, scope: &Scope, module: Option<&str>, call: &FnCallExpr) {
        if module.is_none() && !arities_in(&scope.own, &call.name).is_empty() {
            return; // The recipe has a function of its own with this name.
        }
        let function =
            module.map_or_else(|| call.name.to_string(), |module| format!("{module}::{}", call.name));
        if let Some(last) = call.args.last() {
            self.keys(scope, &function, last);
        }
    }

    /// Compares the keys of a map literal, or of each one in a list literal, with what is known under `name`; the
    /// options of an option are known under `NAME.KEY`.
    fn keys(&mut self, scope: &Scope, name: &str, value: &Expr) {
        let Some(known) = self.known.get(name).copied() else { return };
        match value {
            Expr::Map(map, _) => {
                for (key, value) in &map.0 {
                    if known.iter().all(|option| option.name != key.name.as_str()) {
                        self.report(&scope.file, key.pos, options::unknown_key(name, &key.name, known));
                    }
                    self.keys(scope, &format!("{name}.{}", key.name), value);
                }
            }
            Expr::Array(items, _) => items.iter().for_each(|item| self.keys(scope, name, item)),
            _ => {}
        }
    }

    fn note_argument(&mut self, index: Option<&Expr>) {
        let arguments = &mut self.found.arguments;
        match index {
            Some(Expr::IntegerConstant(index, _)) => {
                arguments.count = arguments.count.max(usize::try_from(*index).map_or(0, |index| index + 1));
            }
            _ => arguments.is_open = true,
        }
    }

    fn note_flag(&mut self, module: Option<&str>, call: &FnCallExpr) {
        if module == Some("cli") && call.name == "arg" {
            return self.note_argument(call.args.first());
        }
        let name = match (module, call.name.as_str(), call.args.first()) {
            (Some("cli"), "flag", Some(Expr::StringConstant(name, _))) => name.to_string(),
            (Some("ui"), "confirm", _) => "confirm".to_owned(),
            _ => return,
        };
        let takes_value =
            call.name == "flag" && !matches!(call.args.get(1), None | Some(Expr::BoolConstant(..)));
        self.flags.insert(FlagSpec { name, takes_value });
    }

    fn report(&mut self, file: &Path, position: Position, error: Error) {
        self.problem(file, position, *Box::<EvalAltResult>::from(error));
    }

    fn problem(&mut self, file: &Path, position: Position, mut error: EvalAltResult) {
        if !position.is_none() {
            error.set_position(position);
        }
        let problem = Problem::of(&error, self.recipe, &self.recipe.shown(file));
        self.found.problems.push(problem);
    }
}

fn arities_in(unit: &Unit, name: &str) -> BTreeSet<usize> {
    unit.functions.iter().filter(|(own, _)| own == name).map(|(_, arity)| *arity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn checked(text: &str) -> Checked {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.rhai");
        std::fs::write(&file, text).unwrap();
        std::fs::write(dir.path().join("lib.rhai"), "export const N = 1; fn twice(x) { 2 * x }").unwrap();
        let recipe = Arc::new(Recipe::locate(file.to_str().unwrap()).unwrap());
        check(&engine::build(Arc::clone(&recipe)), &recipe)
    }

    #[track_caller]
    fn refused(text: &str, message: &str, place: (usize, usize)) {
        let found = checked(text);
        let problem = found.problems.first().unwrap_or_else(|| panic!("no problem in {text}"));
        let shown = problem.failure.render();
        assert!(shown.contains(message), "{text}\n{shown}");
        let at = problem.failure.place.as_ref().expect("a place");
        assert_eq!((at.line, at.column), place, "{shown}");
        assert_eq!(problem.kind, Kind::Compile);
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        refused("let x = ;", "unexpected", (1, 9));
        refused("ec2::instanses(#{});", "did you mean `ec2::instances`?", (1, 6));
        refused("ecc2::list();", "did you mean `ec2`?", (1, 1));
        refused("let h = ec2::list();\nh.uplod(\"a\", \"b\");", "did you mean `upload`?", (2, 3));
        refused("ec2::wait();", "takes 1 or 2 arguments, not 0", (1, 6));
        refused("ec2::instances(#{\n  name: \"a\",\n  cuont: 4 });", "did you mean `count`?", (3, 3));
        refused(
            "ec2::security_group(#{ name: \"a\", ingress: [#{ port: 1, form: \"me\" }] });",
            "did you mean `from`?",
            (1, 57),
        );
        refused("import \"../x\" as x;", "outside", (1, 1));
        refused("import \"lib\" as l;\nl::thrice(1);", "did you mean `l::twice`?", (2, 4));
        refused("print(undefined);", "undefined", (1, 7));
        refused("fn f(h) { h.exec(); } f(1);", "takes 1 or 2 arguments, not 0", (1, 13));
    }

    #[test]
    fn correct_recipes_pass() {
        for text in [
            "import \"lib\" as l; let y = l::twice(l::N);",
            "let hosts = ec2::list(#{ cluster: \"a\" }); hosts.exec(\"true\"); hosts.par(|h| h.exec(\"x\").stdout);",
            "let m = #{ f: |x| x + 1 }; m.f(2); let g = |a, b| a + b; g.call(1, 2);",
            "fn scale(k) { this * k } let x = 3; x.scale(4); [1, 2].map(|v| v * 2).len();",
            "let s = \"a,b\".split(\",\"); print(s[0].to_upper());",
            "fn service(m) { print(m.colour); } service(#{ colour: \"red\" });",
            "let n = \"lib\"; import n as l; l::twice(1);",
        ] {
            let found = checked(text);
            let shown: Vec<_> = found.problems.iter().map(|problem| problem.failure.render()).collect();
            assert!(shown.is_empty(), "{text}\n{}", shown.join("\n"));
        }
    }

    #[test]
    fn flags_are_read_from_the_recipe() {
        let found = checked("let c = cli::flag(\"confirm\"); let m = cli::flag(\"mode\", \"burst\");");
        let flags: Vec<_> = found.flags.iter().map(|flag| (flag.name.as_str(), flag.takes_value)).collect();
        assert_eq!(flags, [("confirm", false), ("mode", true)]);
    }
}
