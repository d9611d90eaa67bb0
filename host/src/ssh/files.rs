//! Files to and from a host, over commands that every POSIX system with `sha256sum` has: no SFTP, no scp.
//!
//! This module copies single files; it does not walk directories.

use std::{
    io::{Read, Write as _},
    path::Path,
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{
    Command, Session, Stream, capture::Capture, command::last_lines, quote, running::Input, trailer,
};
use crate::{Error, Kind, error::Context};

/// A copy that is slower than this is given up, so that a stalled disk does not hold a run for ever.
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
const COPY_MIN: Duration = Duration::from_secs(60);

/// Exit statuses by which the scripts below tell what they found.
const DIFFERS: i32 = 10;
const DIRECTORY: i32 = 11;
const INCOMPLETE: i32 = 12;
const MISSING: i32 = 13;

/// What system tools say, and what we say. The scripts run with `LC_ALL=C`.
const REASONS: [(&str, &str); 9] = [
    ("No space left on device", "no space left on device"),
    ("Disk quota exceeded", "disk quota exceeded"),
    ("Permission denied", "permission denied"),
    ("Read-only file system", "read-only file system"),
    ("File size limit exceeded", "larger than the host's file size limit"),
    ("File too large", "larger than the host's file size limit"),
    ("Not a directory", "a part of the path is a file, not a directory"),
    ("File exists", "a part of the path is a file, not a directory"),
    ("sha256sum: not found", "the host has no sha256sum"),
];

/// What [`Session::upload`] and [`Session::write`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// False when the host had the same content already; then nothing was sent.
    pub changed: bool,
    /// Length of the file.
    pub bytes: u64,
    /// Of the content, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The host that it was copied from; `None` when it was sent from here, or not at all.
    pub copied_from: Option<String>,
}

pub(super) enum Source<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

impl Session {
    /// Copies a local file to `remote` (absolute, or relative to the login's home directory) and gives it `mode`.
    /// Missing directories are made.
    ///
    /// The content goes to a temporary name beside the target, is checked there by its hash, and takes the target's
    /// place in one step. So the target is the old file or the whole new one, whatever fails, and a running
    /// program may be replaced. A file whose content the host has already is not sent.
    pub async fn upload(&self, local: &Path, remote: &str, mode: u32) -> Result<Uploaded, Error> {
        let operation = upload_to(self, local);
        let (bytes, sha256) = hash_file(local, &operation).await?;
        let target = Target { path: remote, mode, bytes, sha256 };
        self.put(&operation, Source::File(local), target).await
    }

    /// As [`Session::upload`], with the content given.
    pub async fn write(&self, remote: &str, content: &[u8], mode: u32) -> Result<Uploaded, Error> {
        let operation = format!("write {remote} on {}", self.host());
        let target =
            Target { path: remote, mode, bytes: content.len() as u64, sha256: hex(&Sha256::digest(content)) };
        self.put(&operation, Source::Bytes(content), target).await
    }

    async fn put(&self, operation: &str, source: Source<'_>, target: Target<'_>) -> Result<Uploaded, Error> {
        let changed = !self.holds(operation, &target).await?;
        if changed {
            self.send(operation, source, &target).await?;
        }
        Ok(target.uploaded(changed))
    }

    /// Whether the host has the content already; then it gets the mode as well.
    pub(super) async fn holds(&self, operation: &str, target: &Target<'_>) -> Result<bool, Error> {
        let path = remote_path(target.path, operation)?;
        let probe = script(target.probe(&path), target.patience());
        match self.copy(operation, &probe, Input::Nothing, &mut |_| Ok(())).await? {
            (0, _) => Ok(true),
            (DIFFERS, _) => Ok(false),
            (code, stderr) => Err(failed(operation, target.path, code, &stderr)),
        }
    }

    /// Sends the content from here.
    pub(super) async fn send(
        &self,
        operation: &str,
        source: Source<'_>,
        target: &Target<'_>,
    ) -> Result<(), Error> {
        let input = match source {
            Source::Bytes(bytes) => Input::Bytes(bytes),
            Source::File(path) => {
                Input::File(tokio::fs::File::open(path).await.context(Kind::Recipe, || operation.to_owned())?)
            }
        };
        self.receive(operation, "cat", input, target).await
    }

    /// Puts what `reader`, a command of the host, prints in the target's place, once it is checked to be the whole
    /// content. The input is the reader's.
    pub(super) async fn receive(
        &self,
        operation: &str,
        reader: &str,
        input: Input<'_>,
        target: &Target<'_>,
    ) -> Result<(), Error> {
        let path = remote_path(target.path, operation)?;
        let receive = script(target.receive(&path, reader), target.patience());
        match self.copy(operation, &receive, input, &mut |_| Ok(())).await? {
            (0, _) => Ok(()),
            (code, stderr) => Err(failed(operation, target.path, code, &stderr)),
        }
    }

    /// Copies a file of the host to `local`, which takes its place in one step, with mode 0600, when the whole
    /// content has arrived and has the hash that the host computed before. Returns the length in bytes.
    pub async fn download(&self, remote: &str, local: &Path) -> Result<u64, Error> {
        let operation = format!("download {remote} from {}", self.host());
        let directory =
            local.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)
            .context(Kind::Recipe, || format!("{operation} to {}", local.display()))?;
        let path = quote(&remote_path(remote, &operation)?);
        let line = format!(
            "[ -d {path} ] && exit {DIRECTORY}; [ -e {path} ] || exit {MISSING}; sha256sum <{path} >&2 && exec cat {path}"
        );
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut keep = |piece: &[u8]| {
            hash.update(piece);
            bytes += piece.len() as u64;
            file.write_all(piece)
        };
        let command = Command { env: c_locale(), ..Command::new(line) };
        let (code, stderr) = self.copy(&operation, &command, Input::Nothing, &mut keep).await?;
        if code != 0 {
            return Err(failed(&operation, remote, code, &stderr));
        }
        if !stderr.starts_with(hex(&hash.finalize()).as_bytes()) {
            return Err(Error::host(format!("{operation}: the file changed while it was read"))
                .with_hint("copy it to another name on the host first, or try again"));
        }
        file.persist(local).context(Kind::Recipe, || format!("{operation} to {}", local.display()))?;
        Ok(bytes)
    }

    /// Runs a script, hands its stdout on, and returns its exit status and stderr.
    pub(super) async fn copy(
        &self,
        operation: &str,
        command: &Command,
        input: Input<'_>,
        on_stdout: &mut (dyn FnMut(&[u8]) -> std::io::Result<()> + Send),
    ) -> Result<(i32, Vec<u8>), Error> {
        let mut capture = Capture::default();
        let mut sink = |stream: Stream, bytes: &[u8]| match stream {
            Stream::Stdout => on_stdout(bytes).context(Kind::Internal, || format!("{operation}: write here")),
            Stream::Stderr => capture.push(stream, bytes).map_err(Error::host),
        };
        let (code, _) = self.perform(operation, command, input, &mut sink).await?;
        Ok((code, capture.stderr))
    }
}

/// What is to be where on the host.
pub(super) struct Target<'a> {
    pub(super) path: &'a str,
    pub(super) mode: u32,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Target<'_> {
    pub(super) fn uploaded(self, changed: bool) -> Uploaded {
        Uploaded { changed, bytes: self.bytes, sha256: self.sha256, copied_from: None }
    }

    /// How long a copy may take.
    pub(super) fn patience(&self) -> Duration {
        COPY_MIN + Duration::from_secs(self.bytes / BYTES_PER_SECOND_MIN)
    }

    /// Exits 0 when the content is there already; then it has the mode as well. A file that cannot be read counts
    /// as different: it is replaced, not opened.
    fn probe(&self, path: &str) -> String {
        let (path, hash, mode) = (quote(path), &self.sha256, self.mode & 0o7777);
        format!(
            "[ -d {path} ] && exit {DIRECTORY}; [ -r {path} ] || exit {DIFFERS}; h=$(sha256sum <{path}) || exit 1; \
             [ \"${{h%% *}}\" = {hash} ] || exit {DIFFERS}; chmod {mode:o} {path}"
        )
    }

    /// Keeps what `reader` prints. The temporary file goes on every exit, and on the signals by which we end a
    /// command; when the connection is cut, the content is short and the hash refuses it.
    fn receive(&self, path: &str, reader: &str) -> String {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let temporary = quote(&format!("{directory}/.{}", trailer::label()));
        let (directory, path) = (quote(&format!("{directory}/")), quote(path));
        let (hash, mode) = (&self.sha256, self.mode & 0o7777);
        format!(
            "n={temporary}; umask 077; mkdir -p {directory} || exit 1; trap 'rm -f \"$n\"' EXIT; \
             trap 'exit 143' HUP INT TERM PIPE; {reader} >\"$n\" || exit 1; h=$(sha256sum <\"$n\") || exit 1; \
             [ \"${{h%% *}}\" = {hash} ] || exit {INCOMPLETE}; chmod {mode:o} \"$n\" || exit 1; \
             sync \"$n\" 2>/dev/null; mv -f \"$n\" {path}"
        )
    }
}

pub(super) fn script(line: String, timeout: Duration) -> Command {
    Command { line, env: c_locale(), timeout: Some(timeout), ..Command::default() }
}

fn c_locale() -> std::collections::BTreeMap<String, String> {
    [("LC_ALL".to_owned(), "C".to_owned())].into()
}

/// An upload in words.
pub(super) fn upload_to(session: &Session, local: &Path) -> String {
    let name =
        local.file_name().map_or_else(|| local.display().to_string(), |name| name.display().to_string());
    format!("upload {name} to {}", session.host())
}

/// The path as no tool can take it for an option.
pub(super) fn remote_path(path: &str, operation: &str) -> Result<String, Error> {
    if path.is_empty() || path.ends_with('/') {
        return Err(Error::new(Kind::Recipe, format!("{operation}: `{path}` names no file"))
            .with_hint("give the file's whole name on the host, not its directory"));
    }
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("./{path}") })
}

fn failed(operation: &str, path: &str, code: i32, stderr: &[u8]) -> Error {
    let text = String::from_utf8_lossy(stderr);
    let reason = REASONS.iter().find(|(said, _)| text.contains(said)).map(|(_, reason)| (*reason).to_owned());
    let what = match (code, reason) {
        (DIRECTORY, _) => format!("`{path}` is a directory there"),
        (MISSING, _) => format!("`{path}` does not exist there"),
        (INCOMPLETE, _) => {
            "what arrived is not the whole file, or the file changed while it was read".to_owned()
        }
        (_, Some(reason)) => reason,
        (_, None) => format!("exit {code}"),
    };
    Error::host(format!("{operation}: {what}")).with_detail(last_lines(stderr))
}

/// Length and hash of a local file, read off the runtime's threads.
pub(super) async fn hash_file(path: &Path, operation: &str) -> Result<(u64, String), Error> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(owned)?;
        let (mut hash, mut buffer, mut bytes) = (Sha256::new(), vec![0; 64 * 1024], 0);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((bytes, hex(&hash.finalize()))),
                read => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
    });
    let result: std::io::Result<(u64, String)> =
        read.await.context(Kind::Internal, || operation.to_owned())?;
    result.map_err(|error| {
        let what = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file".to_owned(),
            std::io::ErrorKind::IsADirectory => "it is a directory; upload takes one file".to_owned(),
            _ => error.to_string(),
        };
        Error::new(Kind::Recipe, format!("{operation}: {}: {what}", path.display()))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + format!("{byte:02x}").as_str())
}
