//! Login keys: ed25519, made here, so that the private half never travels.
//!
//! It gives no key to a provider and logs in nowhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey, ssh_key::LineEnding};

use crate::{
    Error, Kind,
    error::Context as _,
    files::{make_dir, write_whole},
};

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
    let private = match read(&path)? {
        Some(private) => private,
        None => create(&path)?,
    };
    pair(path, private.public_key())
}

/// As [`ensure`], but a key pair that is missing is drawn and not kept.
pub fn read_or_draw(dir: &Path, name: &str) -> Result<KeyPair, Error> {
    let path = path(dir, name);
    let private = match read(&path)? {
        Some(private) => private,
        None => draw()?,
    };
    pair(path, private.public_key())
}

/// A key pair that the user has: `path` is its private half, in any form that OpenSSH reads.
pub fn adopt(path: &Path) -> Result<KeyPair, Error> {
    let context = || format!("read the public half of key {}", path.display());
    let output = std::process::Command::new("ssh-keygen")
        .args(["-y", "-P", "", "-f"])
        .arg(path)
        .stdin(std::process::Stdio::null())
        .output()
        .context(Kind::Host, || "start ssh-keygen".to_owned())?;
    if !output.status.success() {
        return Err(Error::usage(context())
            .with_detail(String::from_utf8_lossy(&output.stderr))
            .with_hint("It must be a private key of mode 0600 without a passphrase."));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let public = PublicKey::from_openssh(text.trim()).context(Kind::Usage, context)?;
    pair(path.to_owned(), &public)
}

fn pair(path: PathBuf, public: &PublicKey) -> Result<KeyPair, Error> {
    Ok(KeyPair {
        public: public
            .to_openssh()
            .context(Kind::Internal, || format!("write the public half of key {}", path.display()))?,
        fingerprint: public.fingerprint(HashAlg::Sha256).to_string(),
        path,
    })
}

fn read(path: &Path) -> Result<Option<PrivateKey>, Error> {
    let context = || format!("read key {}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => PrivateKey::from_openssh(&text).context(Kind::Internal, context).map(Some),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::internal(format!("{}: {cause}", context()))),
    }
}

/// A new key, ed25519.
pub fn draw() -> Result<PrivateKey, Error> {
    PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
        .context(Kind::Internal, || "draw a key".to_owned())
}

/// A key's private half in OpenSSH's form.
pub fn secret(key: &PrivateKey) -> Result<String, Error> {
    let text = key.to_openssh(LineEnding::LF).context(Kind::Internal, || "write a key".to_owned())?;
    Ok(text.as_str().to_owned())
}

fn create(path: &Path) -> Result<PrivateKey, Error> {
    let key = draw()?;
    write_whole(path, secret(&key)?.as_bytes())?;
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
