//! Builds the workspace's programs for the instances: static, so that they run on any Linux of this architecture.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tokio::process::Command;

use crate::{Error, Kind, error::Context as _};

/// Programs built beforehand are taken from here instead of being built.
pub const PROGRAMS_VARIABLE: &str = "LABHOST_PROGRAMS";

/// The target triple of the programs: this machine's architecture, with glibc linked in.
#[must_use]
pub fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Builds these packages in one go and returns the paths of their programs, in order.
///
/// The workspace is `root` when that has a Cargo.toml, otherwise the one that labhost itself was built from.
/// Dropping the future ends the build.
pub async fn build(root: &Path, names: &[String]) -> Result<Vec<PathBuf>, Error> {
    if let Some(dir) = std::env::var_os(PROGRAMS_VARIABLE) {
        return names.iter().map(|name| prebuilt(Path::new(&dir), name)).collect();
    }
    let workspace = workspace(root)?;
    let output = run_cargo(&workspace, names).await?;
    let built = executables(&output);
    names
        .iter()
        .map(|name| {
            let path = built.iter().find(|(target, _)| target == name).map(|(_, path)| path.clone());
            let path = path.ok_or_else(|| {
                Error::new(Kind::Recipe, format!("build {name}: the package has no program"))
            })?;
            check_static(&path)?;
            Ok(path)
        })
        .collect()
}

/// The commit that programs are built from, with `+` when its files were changed; `None` where that is not known.
pub async fn commit(root: &Path) -> Option<String> {
    if std::env::var_os(PROGRAMS_VARIABLE).is_some() {
        return None;
    }
    let workspace = workspace(root).ok()?;
    let output = Command::new("git")
        .args(["describe", "--always", "--exclude=*", "--dirty=+"])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn prebuilt(dir: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = dir.join(name);
    if !path.is_file() {
        return Err(Error::new(Kind::Recipe, format!("program {name}: {} does not exist", path.display()))
            .with_hint(format!(
                "{PROGRAMS_VARIABLE} names a folder with built programs; unset it to build them."
            )));
    }
    check_static(&path)?;
    Ok(path)
}

fn workspace(root: &Path) -> Result<PathBuf, Error> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    [Some(root), own]
        .into_iter()
        .flatten()
        .find(|dir| dir.join("Cargo.toml").is_file() && dir.join("worker").is_dir())
        .map(Path::to_owned)
        .ok_or_else(|| {
            Error::new(Kind::Recipe, "the sources of the programs are not here".to_owned()).with_hint(format!(
                "Run labhost in a clone of its repository, or set {PROGRAMS_VARIABLE} to a folder with built programs."
            ))
        })
}

async fn run_cargo(workspace: &Path, names: &[String]) -> Result<Vec<u8>, Error> {
    let what = names.join(", ");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target().to_uppercase().replace('-', "_"));
    let mut command = Command::new(&cargo);
    command
        .args([
            "build",
            "--release",
            "--locked",
            "--message-format=json-render-diagnostics",
            "--target",
            &target(),
        ])
        .args(names.iter().flat_map(|name| ["-p", name.as_str()]))
        .current_dir(workspace)
        // Flags in the environment, even empty ones, would override those of the target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(flags, "-C target-feature=+crt-static")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command
        .spawn()
        .context(Kind::Recipe, || format!("build {what}: start {}", cargo.display()))
        .map_err(|error| {
            error.with_hint("`labhost doctor` says what is missing on this machine and how to get it.")
        })?;
    let group = Group(child.id());
    let output = child.wait_with_output().await.context(Kind::Recipe, || format!("build {what}"))?;
    std::mem::forget(group);
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::new(Kind::Recipe, format!("build {what}: cargo ended with {}", output.status))
        .with_detail(String::from_utf8_lossy(&output.stderr))
        .with_hint("`labhost doctor` says whether a compiler or the static C library is missing."))
}

/// Ends cargo and its compilers when a build is abandoned.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::TERM);
        }
    }
}

/// Names and paths of the programs in cargo's JSON messages.
fn executables(messages: &[u8]) -> Vec<(String, PathBuf)> {
    messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// A program with an interpreter needs the C library of the machine that it runs on, which may be older.
fn check_static(path: &Path) -> Result<(), Error> {
    let image = std::fs::read(path).context(Kind::Recipe, || format!("read {}", path.display()))?;
    match has_interpreter(&image) {
        Some(false) => Ok(()),
        Some(true) => Err(Error::new(Kind::Recipe, format!("program {} is not static", path.display())).with_hint(
            "Install the static C library (Fedora: glibc-static), and build with -C target-feature=+crt-static.",
        )),
        None => Err(Error::new(Kind::Recipe, format!("{} is no 64-bit ELF program", path.display()))),
    }
}

/// Whether an ELF image names a dynamic loader (a program header of type `PT_INTERP`); `None` when it is no 64-bit
/// little-endian ELF image.
fn has_interpreter(image: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(image.get(32..40)?.try_into().ok()?) as usize;
    let (size, count) = (half(54)? as usize, half(56)? as usize);
    let is_interpreter = |n: usize| {
        let at = table.checked_add(n * size)?;
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) == PT_INTERP)
    };
    (0..count).map(is_interpreter).collect::<Option<Vec<_>>>().map(|found| found.contains(&true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_program_is_told_from_other_files() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(has_interpreter(&this), Some(true));
        assert_eq!(has_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(has_interpreter(&this[..40]), None);
    }

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let text = br#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"worker"},"executable":"/t/worker"}
not json"#;
        assert_eq!(executables(text), [("worker".to_owned(), PathBuf::from("/t/worker"))]);
    }
}
