//! Login keys: ed25519, made here, so that the private half never travels.

use std::{
    fs,
    path::{Path, PathBuf},
};

use russh::keys::{Algorithm, HashAlg, PrivateKey, ssh_key::LineEnding};

use super::views::{make_dir, write_whole};
use crate::{Error, Kind, error::Context as _};

/// A key pair on disk.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// Of the private key, mode 0600, in a directory of mode 0700.
    pub path: PathBuf,
    /// OpenSSH's one-line form.
    pub public: String,
    /// `SHA256:...`
    pub fingerprint: String,
}

/// Where the private key called `name` lies.
#[must_use]
pub fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

/// Reads the key pair `name` in `dir`, or makes it.
pub fn ensure(dir: &Path, name: &str) -> Result<KeyPair, Error> {
    make_dir(dir)?;
    let path = path(dir, name);
    let context = || format!("read key {}", path.display());
    let private = match fs::read_to_string(&path) {
        Ok(text) => PrivateKey::from_openssh(&text).context(Kind::Internal, context)?,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => create(&path)?,
        Err(cause) => return Err(Error::internal(format!("{}: {cause}", context()))),
    };
    let public = private.public_key();
    Ok(KeyPair {
        public: public.to_openssh().context(Kind::Internal, context)?,
        fingerprint: public.fingerprint(HashAlg::Sha256).to_string(),
        path,
    })
}

fn create(path: &Path) -> Result<PrivateKey, Error> {
    let context = || format!("make key {}", path.display());
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).context(Kind::Internal, context)?;
    let text = key.to_openssh(LineEnding::LF).context(Kind::Internal, context)?;
    write_whole(path, text.as_bytes())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn key_is_private_and_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let first = ensure(&keys, "lab").unwrap();
        assert_eq!(ensure(&keys, "lab").unwrap().public, first.public);
        assert_eq!(fs::metadata(&first.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
