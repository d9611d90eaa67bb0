//! Every function that a recipe can call, read from the engine: for `labhost docs`, for the checker, and for
//! suggestions.
//!
//! It does not register functions and does not know their options.

use std::collections::BTreeMap;

use rhai::Engine;
use serde::Deserialize;

/// One function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// `None` for methods and global functions.
    pub module: Option<String>,
    pub name: String,
    /// How many arguments, with the one before the dot.
    pub arity: usize,
    /// `wait(hosts: Array, options: Map)`, in the recipe's words.
    pub signature: String,
    /// Doc comment, without the slashes.
    pub docs: String,
    /// Whether it is labhost's own rather than the language's.
    pub own: bool,
}

/// All functions.
#[derive(Debug, Default)]
pub struct Catalog {
    pub functions: Vec<Function>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    functions: Vec<FunctionMetadata>,
    modules: BTreeMap<String, Self>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FunctionMetadata {
    name: String,
    num_params: usize,
    #[serde(default)]
    params: Vec<Parameter>,
    #[serde(default)]
    doc_comments: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Parameter {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

impl Catalog {
    /// Reads what is registered.
    #[must_use]
    pub fn of(engine: &Engine) -> Self {
        let read = |all: bool| -> Metadata {
            let text = engine.gen_fn_metadata_to_json(all).unwrap_or_default();
            serde_json::from_str(&text).unwrap_or_default()
        };
        let (own, all) = (read(false), read(true));
        let mut functions: Vec<Function> = own.functions.iter().map(|f| function(None, f, true)).collect();
        let is_own = |function: &Function, own: &[Function]| {
            own.iter().any(|known| known.name == function.name && known.signature == function.signature)
        };
        let language: Vec<_> = all
            .functions
            .iter()
            .map(|f| function(None, f, false))
            .filter(|function| !is_own(function, &functions))
            .collect();
        functions.extend(language);
        for (name, module) in &own.modules {
            functions.extend(module.functions.iter().map(|f| function(Some(name), f, true)));
        }
        functions.sort();
        Self { functions }
    }

    /// Functions called `module::name`, or methods and global functions called `name`.
    pub fn named<'a>(&'a self, module: Option<&'a str>, name: &'a str) -> impl Iterator<Item = &'a Function> {
        self.functions
            .iter()
            .filter(move |function| function.module.as_deref() == module && function.name == name)
    }

    /// Names in a module, or of labhost's own methods and all global functions.
    pub fn names<'a>(&'a self, module: Option<&'a str>) -> impl Iterator<Item = &'a str> {
        self.functions
            .iter()
            .filter(move |function| function.module.as_deref() == module)
            .map(|f| f.name.as_str())
    }

    /// Names of the modules, each once, in the functions' order.
    #[must_use]
    pub fn modules(&self) -> Vec<&str> {
        let mut modules: Vec<_> =
            self.functions.iter().filter_map(|function| function.module.as_deref()).collect();
        modules.dedup();
        modules
    }
}

fn function(module: Option<&String>, metadata: &FunctionMetadata, own: bool) -> Function {
    let parameters: Vec<_> = metadata
        .params
        .iter()
        .filter(|parameter| parameter.kind.as_deref() != Some("NativeCallContext"))
        .map(|parameter| {
            let name = parameter.name.as_deref().unwrap_or("_");
            match plain(parameter.kind.as_deref().unwrap_or("?")) {
                "" => name.to_owned(),
                kind => format!("{name}: {kind}"),
            }
        })
        .collect();
    let docs: Vec<_> = metadata
        .doc_comments
        .iter()
        .flat_map(|comment| comment.lines())
        .map(|line| line.trim_start_matches("///").trim())
        .collect();
    Function {
        module: module.cloned(),
        name: metadata.name.clone(),
        arity: metadata.num_params,
        signature: format!("{}({})", metadata.name, parameters.join(", ")),
        docs: docs.join(" "),
        own,
    }
}

/// A Rust type as recipe authors know it.
fn plain(kind: &str) -> &str {
    match kind.trim_start_matches("&mut ").trim_start_matches('&') {
        "str" | "String" | "ImmutableString" | "string" => "string",
        "i64" | "INT" | "int" => "int",
        "f64" | "FLOAT" | "float" => "float",
        "Array" | "array" => "list",
        "Map" | "map" => "map",
        "Dynamic" | "?" => "",
        other => other,
    }
}
