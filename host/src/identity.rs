//! What a lab is known by outside its state directory. Everything follows from that directory's path, so that a lab
//! is found again when its state is lost.
//!
//! This module only computes names; it creates nothing.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The environment variable that marks every process of a lab; its value is the [`lab_id`].
pub const MARK: &str = "LABHOST_LAB";

/// Eight hexadecimal digits: the start of the SHA-256 of the state directory's canonical path.
#[must_use]
pub fn lab_id(state_dir: &Path) -> String {
    let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The user that this process acts as, and whose labs it sees.
#[must_use]
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The folder of this user's labs for sockets, whose paths are limited to 108 bytes.
#[must_use]
pub fn runtime_parent() -> PathBuf {
    PathBuf::from(format!("/tmp/labhost-{}", uid()))
}

/// A lab's own folder for sockets.
#[must_use]
pub fn runtime_dir(state_dir: &Path) -> PathBuf {
    runtime_parent().join(lab_id(state_dir))
}
