//! Where a recipe lies and what belongs to it: the folder it may import from, and the lab's folder.
//!
//! It does not compile or run a recipe.

use std::path::{Path, PathBuf};

use crate::{Error, Kind, error::Context as _};

/// A recipe file and its surroundings. All paths are absolute, with links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub file: PathBuf,
    /// The nearest folder called `recipes` around the file, or else the file's own: imports are confined to it.
    pub recipes: PathBuf,
    /// The folder that holds `recipes/` and `artifacts/`. Relative paths in recipes start here.
    pub root: PathBuf,
}

/// Larger recipes are taken for a mistake, for example a program named instead of a script.
const RECIPE_BYTES_MAX: u64 = 1 << 20;

impl Recipe {
    /// Errors with `Kind::Usage` when there is no such file.
    pub fn locate(path: &str) -> Result<Self, Error> {
        let file = Path::new(path).canonicalize().map_err(|cause| {
            Error::usage(format!("recipe {path}: {cause}"))
                .with_hint("Give the path of a recipe, for example recipes/run.rhai; `labhost --help` lists the commands.")
        })?;
        if !file.is_file() {
            return Err(Error::usage(format!("recipe {path} is no file")));
        }
        let own = file.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let named =
            file.ancestors().skip(1).find(|dir| dir.file_name().is_some_and(|name| name == "recipes"));
        let (recipes, root) = match named.and_then(|dir| Some((dir, dir.parent()?))) {
            Some((recipes, root)) => (recipes.to_owned(), root.to_owned()),
            None => (own.clone(), own),
        };
        Ok(Self { file, recipes, root })
    }

    /// The lab's folder for commands that run no recipe: the nearest one around `start` with `artifacts/` or
    /// `recipes/` in it.
    #[must_use]
    pub fn root_around(start: &Path) -> Option<PathBuf> {
        start
            .ancestors()
            .find(|dir| dir.join("artifacts").is_dir() || dir.join("recipes").is_dir())
            .map(Path::to_owned)
    }

    /// The file as messages show it: relative to the lab's folder.
    #[must_use]
    pub fn shown(&self, file: &Path) -> String {
        file.strip_prefix(&self.root).unwrap_or(file).display().to_string()
    }

    /// The file that `import "path"` means, or why it may not be imported.
    pub fn import(&self, path: &str, importer: &Path) -> Result<PathBuf, Error> {
        let base =
            if path.starts_with('.') { importer.parent().unwrap_or(&self.recipes) } else { &self.recipes };
        let named = base.join(path);
        let named = if named.extension().is_some_and(|ext| ext == "rhai") {
            named
        } else {
            PathBuf::from(format!("{}.rhai", named.display()))
        };
        let outside = || {
            Error::new(
                Kind::Compile,
                format!("import of \"{path}\": it lies outside {}", self.recipes.display()),
            )
            .with_hint("A recipe may import files of its own recipes folder only.")
        };
        let file = named.canonicalize().map_err(|cause| {
            if path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return outside();
            }
            Error::new(Kind::Compile, format!("import of \"{path}\": {}: {cause}", self.shown(&named)))
                .with_hint("Imports are looked for in the recipes folder; the ending .rhai may be left out.")
        })?;
        if file.starts_with(&self.recipes) { Ok(file) } else { Err(outside()) }
    }

    /// The text of a recipe file, without the byte order mark that editors on Windows put in front. Only regular files
    /// are read: a device may have no end, and a pipe may never begin.
    pub fn read(&self, file: &Path) -> Result<String, Error> {
        let context = || format!("read {}", self.shown(file));
        let found = file.metadata().context(Kind::Usage, context)?;
        if !found.is_file() {
            return Err(Error::usage(format!("{}: it is no regular file", context())));
        }
        if found.len() > RECIPE_BYTES_MAX {
            let length = found.len();
            return Err(Error::usage(format!("{}: {length} bytes are too many for a recipe", context())));
        }
        let text = std::fs::read_to_string(file).context(Kind::Usage, context)?;
        Ok(match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        })
    }

    /// The path of a shown file.
    #[must_use]
    pub fn path_of(&self, shown: &str) -> PathBuf {
        self.root.join(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn lab() -> (tempfile::TempDir, Recipe) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("recipes/lib")).unwrap();
        for name in ["recipes/run.rhai", "recipes/lib/a.rhai", "outside.rhai"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let recipe = Recipe::locate(dir.path().join("recipes/run.rhai").to_str().unwrap()).unwrap();
        (dir, recipe)
    }

    #[test]
    fn artifacts_lie_beside_the_recipes_folder() {
        let (dir, recipe) = lab();
        assert_eq!(recipe.root, dir.path().canonicalize().unwrap());
        assert_eq!(recipe.shown(&recipe.file), "recipes/run.rhai");
        let nested = Recipe::locate(dir.path().join("recipes/lib/a.rhai").to_str().unwrap()).unwrap();
        assert_eq!(nested.root, recipe.root);
    }

    #[test]
    fn byte_order_mark_is_no_part_of_a_recipe() {
        let (_dir, recipe) = lab();
        fs::write(&recipe.file, "\u{feff}print(1);").unwrap();
        assert_eq!(recipe.read(&recipe.file).unwrap(), "print(1);");
    }

    #[test]
    fn what_may_never_begin_or_end_is_not_read() {
        let (dir, recipe) = lab();
        let pipe = dir.path().join("recipes/pipe.rhai");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            assert_eq!(recipe.read(path).unwrap_err().kind, Kind::Usage);
        }
    }

    #[test]
    fn imports_stay_inside_the_recipes_folder() {
        let (dir, recipe) = lab();
        assert!(recipe.import("lib/a", &recipe.file).is_ok());
        assert!(recipe.import("./lib/a.rhai", &recipe.file).is_ok());
        std::os::unix::fs::symlink(dir.path().join("outside.rhai"), dir.path().join("recipes/link.rhai"))
            .unwrap();
        for path in ["../outside", "/etc/passwd", "link", "lib/../../outside", "/etc/nothing"] {
            let error = recipe.import(path, &recipe.file).unwrap_err();
            assert!(error.message.contains("outside"), "{path}: {error}");
        }
        assert!(recipe.import("missing", &recipe.file).unwrap_err().message.contains("recipes/missing.rhai"));
    }
}
