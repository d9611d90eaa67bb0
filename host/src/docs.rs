//! What recipes can call, and what one recipe takes, as text: `labhost docs` and `labhost RECIPE --help`.
//!
//! The texts are the registered functions' own and the recipe's first comment; this module only lays them out.

use std::{fmt::Write as _, sync::Arc};

use crate::{
    Error,
    catalog::{Catalog, Function},
    engine,
    nearest::nearest,
    options::OptionDoc,
    recipe::Recipe,
    script::{args::FlagSpec, known_options, options::Known},
    ui::Ui,
};

/// `labhost docs [NAME]`: everything in short, or one module or function in full.
pub fn show(name: Option<&str>, ui: &Ui) -> Result<(), Error> {
    let dir = std::env::temp_dir();
    let recipe = Recipe { file: dir.join("docs.rhai"), recipes: dir.clone(), root: dir };
    let catalog = Catalog::of(&engine::build(Arc::new(recipe)));
    let own: Vec<&Function> = catalog
        .functions
        .iter()
        .filter(|function| function.own && !function.name.contains(['=', '$']))
        .collect();
    let text = match name {
        None => overview(&own),
        Some(name) => details(&own, name)?,
    };
    ui.info(text.trim_end());
    Ok(())
}

fn full_name(function: &Function) -> String {
    match &function.module {
        Some(module) => format!("{module}::{}", function.signature),
        None => function.signature.clone(),
    }
}

fn overview(functions: &[&Function]) -> String {
    let mut text = String::new();
    let mut module = None;
    for function in functions {
        if module != Some(&function.module) {
            let title =
                function.module.as_deref().unwrap_or("hosts, lists of hosts, and functions without a module");
            let _ = writeln!(text, "{}{title}", if text.is_empty() { "" } else { "\n" });
            module = Some(&function.module);
        }
        let first = function.docs.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let _ = writeln!(text, "  {}\n      {first}.", full_name(function));
    }
    text.push_str("\n`labhost docs NAME` shows one module or function in full.\n");
    text
}

fn details(functions: &[&Function], name: &str) -> Result<String, Error> {
    let (module, function) =
        name.split_once("::").map_or((None, name), |(module, name)| (Some(module), name));
    let found: Vec<_> = functions
        .iter()
        .filter(|known| known.module.as_deref() == module && known.name == function)
        .chain(functions.iter().filter(|known| module.is_none() && known.module.as_deref() == Some(name)))
        .collect();
    if found.is_empty() {
        return Err(unknown(functions, name));
    }
    let options = known_options();
    let mut text = String::new();
    for function in found {
        let _ = writeln!(text, "{}\n    {}", full_name(function), function.docs);
        if function.signature.contains(": map") {
            describe_options(&mut text, path_of(&full_name(function)), &options);
        }
        text.push('\n');
    }
    Ok(text)
}

/// The options map that the function at `path` takes; what is a map itself is shown with its own options, indented.
fn describe_options(text: &mut String, path: &str, known: &Known) {
    let inner = |option: &OptionDoc| known.get(format!("{path}.{}", option.name).as_str());
    for option in known.get(path).into_iter().flat_map(|options| options.iter()) {
        describe_option(text, 0, option);
        for option in inner(option).into_iter().flat_map(|options| options.iter()) {
            describe_option(text, 2, option);
        }
    }
}

fn describe_option(text: &mut String, indent: usize, option: &OptionDoc) {
    let name = format!("{} ({})", option.name, option.kind_shown());
    let _ = writeln!(text, "      {:indent$}{name:<34} {}", "", option.doc.trim());
}

fn unknown(functions: &[&Function], name: &str) -> Error {
    let names = functions
        .iter()
        .flat_map(|known| [known.module.clone().unwrap_or_default(), path_of(&full_name(known)).to_owned()]);
    let names: Vec<_> = names.collect();
    let hint = nearest(name, names.iter().map(String::as_str)).map_or_else(
        || "`labhost docs` lists everything.".to_owned(),
        |near| format!("did you mean `{near}`?"),
    );
    Error::usage(format!("there is nothing called `{name}`")).with_hint(hint)
}

/// A full name without its parameters.
fn path_of(full_name: &str) -> &str {
    full_name.split('(').next().unwrap_or_default()
}

/// What `labhost RECIPE --help` prints: the comment at the recipe's top and its flags.
#[must_use]
pub fn recipe_help(recipe: &Recipe, flags: &[FlagSpec]) -> String {
    let text = recipe.read(&recipe.file).unwrap_or_default();
    let mut help = String::new();
    for line in text.lines().map_while(|line| line.strip_prefix("//")) {
        let line = line.trim_start_matches('/').trim_start_matches('!');
        let _ = writeln!(help, "{}", line.strip_prefix(' ').unwrap_or(line));
    }
    if !flags.is_empty() {
        let _ = writeln!(help, "\nFlags:");
    }
    for flag in flags {
        let _ = writeln!(help, "  --{}{}", flag.name, if flag.takes_value { " VALUE" } else { "" });
    }
    help.trim_end().to_owned()
}
