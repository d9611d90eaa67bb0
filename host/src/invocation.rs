//! How the user called labhost, so that the commands that it suggests can be typed as they stand.
//!
//! It parses no arguments; that is `cli`.

use std::path::Path;

/// The words before a recipe's file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    words: String,
    /// The recipes' folder as the user wrote it, with its last slash.
    folder: String,
}

impl Invocation {
    /// From the recipe's path as it was typed and the state directory, if one was given.
    #[must_use]
    pub fn new(recipe: &str, state: Option<&Path>) -> Self {
        let exe = std::env::current_exe().unwrap_or_default();
        Self::of_program(&exe, recipe, state)
    }

    fn of_program(exe: &Path, recipe: &str, state: Option<&Path>) -> Self {
        // The alias `cargo lab` runs the program of the profile `lab`, from a folder of that name.
        let is_alias = exe.parent().is_some_and(|dir| dir.ends_with("target/lab"));
        let program = if is_alias { "cargo lab" } else { "labhost" };
        let state = state.map_or_else(String::new, |dir| format!(" --state {}", dir.display()));
        Self { words: format!("{program}{state}"), folder: folder_of(recipe).to_owned() }
    }

    /// The command that runs `recipe`, a file of the recipes' folder.
    #[must_use]
    pub fn of(&self, recipe: &str) -> String {
        format!("{} {}{recipe}", self.words, self.folder)
    }
}

/// Up to the nearest folder called `recipes`, as [`crate::recipe::Recipe`] finds it, or else the file's own folder.
fn folder_of(recipe: &str) -> &str {
    let own = recipe.rfind('/').map_or("", |end| &recipe[..=end]);
    let inside = own.rfind("/recipes/").map(|at| at + "/recipes/".len());
    let first = own.starts_with("recipes/").then_some("recipes/".len());
    inside.or(first).map_or(own, |end| &own[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggested_command_is_like_the_one_typed() {
        let of = |exe: &str, recipe: &str, state: Option<&str>| {
            Invocation::of_program(Path::new(exe), recipe, state.map(Path::new)).of("stop.rhai")
        };
        assert_eq!(of("/r/target/lab/labhost", "recipes/run.rhai", None), "cargo lab recipes/stop.rhai");
        assert_eq!(of("/bin/labhost", "run.rhai", Some("s2")), "labhost --state s2 stop.rhai");
        for nested in ["recipes/experiments/run.rhai", "recipes/a/b/run.rhai"] {
            assert_eq!(of("/bin/labhost", nested, None), "labhost recipes/stop.rhai");
        }
        assert_eq!(of("/bin/labhost", "/x/recipes/a/run.rhai", None), "labhost /x/recipes/stop.rhai");
        assert_eq!(of("/bin/labhost", "my-recipes/run.rhai", None), "labhost my-recipes/stop.rhai");
    }
}
