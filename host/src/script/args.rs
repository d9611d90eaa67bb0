//! The words after the recipe's name: `labhost recipes/bench.rhai 127.77.9.11 --mode closed --confirm`.

use std::collections::BTreeMap;

use crate::{Error, nearest::nearest};

/// A flag that a recipe asks for with `cli::flag`, found by reading the recipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlagSpec {
    pub name: String,
    /// `--name value`, not just `--name`: its default is not a boolean.
    pub takes_value: bool,
}

/// The arguments as the recipe sees them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RecipeArgs {
    pub positional: Vec<String>,
    /// `None` for a flag without a value.
    pub flags: BTreeMap<String, Option<String>>,
}

impl RecipeArgs {
    /// Sorts words into arguments and flags. A flag that the recipe never asks for is an error, because a typing
    /// mistake in `--confirm` must not pass unseen.
    ///
    /// More arguments than the recipe takes are an error as well; `None` for any number.
    pub fn parse(words: &[String], specs: &[FlagSpec], arguments_max: Option<usize>) -> Result<Self, Error> {
        let mut args = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
                match word.as_str() {
                    word if is_short_flag(word) => return Err(unknown(word.trim_start_matches('-'), specs)),
                    "--" => args.positional.extend(words.by_ref().cloned()),
                    _ => args.positional.push(word.clone()),
                }
                continue;
            };
            let (name, value) =
                flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
            let spec = specs.iter().find(|spec| spec.name == name).ok_or_else(|| unknown(name, specs))?;
            let value = match (spec.takes_value, value) {
                (true, None) => Some(words.next().cloned().ok_or_else(|| {
                    Error::usage(format!("--{name} needs a value"))
                        .with_hint(format!("Write --{name}=VALUE."))
                })?),
                (_, value) => value,
            };
            args.flags.insert(name.to_owned(), value);
        }
        match arguments_max.and_then(|max| args.positional.get(max)) {
            None => Ok(args),
            Some(surplus) => {
                Err(Error::usage(format!("`{surplus}` is one argument too many for this recipe"))
                    .with_hint("`labhost RECIPE --help` says what it takes; flags begin with `--`."))
            }
        }
    }
}

/// `-confirm`: one dash in place of two.
fn is_short_flag(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()))
}

fn unknown(name: &str, specs: &[FlagSpec]) -> Error {
    let hint = if specs.is_empty() {
        "This recipe has no flags.".to_owned()
    } else {
        let known: Vec<_> = specs.iter().map(|spec| format!("--{}", spec.name)).collect();
        let near = nearest(name, specs.iter().map(|spec| spec.name.as_str()));
        let suggestion = near.map_or_else(String::new, |near| format!("did you mean --{near}? "));
        format!(
            "{suggestion}This recipe knows {}; `labhost --help` lists the options of labhost.",
            known.join(", ")
        )
    };
    Error::usage(format!("unknown flag --{name}")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<RecipeArgs, Error> {
        let specs = [
            FlagSpec { name: "confirm".into(), takes_value: false },
            FlagSpec { name: "mode".into(), takes_value: true },
        ];
        RecipeArgs::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), &specs, Some(3))
    }

    #[test]
    fn flags_and_arguments_may_be_mixed() {
        let args = parse(&["--confirm", "10.0.0.1", "--mode", "closed", "x", "--", "--y"]).unwrap();
        assert_eq!(args.positional, ["10.0.0.1", "x", "--y"]);
        assert_eq!(args.flags["mode"], Some("closed".into()));
        assert_eq!(args.flags["confirm"], None);
        assert_eq!(parse(&["--mode=open"]).unwrap().flags["mode"], Some("open".into()));
    }

    #[test]
    fn misspelt_flag_is_refused_with_a_suggestion() {
        let error = parse(&["--confrim"]).unwrap_err();
        assert!(error.hint.unwrap().contains("--confirm"));
        assert!(parse(&["--mode"]).is_err());
        assert!(parse(&["-confirm"]).is_err());
        assert!(parse(&["a", "b", "c", "d"]).unwrap_err().message.contains("`d`"));
    }
}
