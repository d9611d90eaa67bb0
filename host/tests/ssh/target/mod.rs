//! Servers to test against. Each is a [`Target`]: an instance, the key to log in with, and what only a server's
//! owner can do to it.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use labhost::{
    Error,
    instance::Instance,
    ssh::{Session, write_config},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::DEADLINE;

pub(crate) mod embedded;
pub(crate) mod openssh;

pub(crate) struct Target {
    /// First, so that it ends before its files go.
    server: Box<dyn Server>,
    pub(crate) instance: Instance,
    pub(crate) identity: PathBuf,
    /// Holds programs that come before the system's own in commands on the host.
    pub(crate) programs: PathBuf,
    /// Holds everything of this target, and room for the test's own files; removed at the end.
    pub(crate) directory: TempDir,
    /// Short, for control sockets.
    pub(crate) control: TempDir,
}

pub(crate) trait Server: Send {
    fn start(&mut self);
    /// Cuts the connections that stand, without a word to the clients.
    fn cut(&mut self);
    /// Another one of the same kind, running, for another instance.
    fn beside(&self) -> Pin<Box<dyn Future<Output = Target> + Send>>;
}

/// Where a test holds the server itself.
struct Taken;

impl Server for Taken {
    fn start(&mut self) {
        unreachable!("the test has it");
    }

    fn cut(&mut self) {
        unreachable!("the test has it");
    }

    fn beside(&self) -> Pin<Box<dyn Future<Output = Target> + Send>> {
        unreachable!("the test has it");
    }
}

impl Target {
    pub(crate) fn start(&mut self) {
        self.server.start();
    }

    pub(crate) fn cut(&mut self) {
        self.server.cut();
    }

    /// Another target with a server of the same kind.
    pub(crate) async fn beside(&self) -> Self {
        self.server.beside().await
    }

    /// For a test that cuts connections while it uses the target; to be dropped before that.
    pub(crate) fn take_server(&mut self) -> Box<dyn Server> {
        std::mem::replace(&mut self.server, Box::new(Taken))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file on the host, which is this machine.
    pub(crate) fn remote(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Puts a script before the system's program of this name in commands on the host.
    pub(crate) fn replace_program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Writes what `ssh` reads, and returns the path of its configuration.
    pub(crate) fn write_config(&self) -> Result<PathBuf, Error> {
        let state = self.path("state");
        write_config(&state, std::slice::from_ref(&self.instance), &self.identity)?;
        Ok(state.join("ssh_config"))
    }

    pub(crate) async fn connect_for(
        &self,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Result<Session, Error> {
        let config = self.write_config()?;
        Session::connect(&self.instance, &config, self.control.path(), deadline, cancel).await
    }

    pub(crate) async fn connect(&self) -> Session {
        self.connect_for(DEADLINE, &CancellationToken::new()).await.unwrap()
    }
}

fn control_directory() -> TempDir {
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("lh-").permissions(private).tempdir_in("/tmp").unwrap()
}

/// An address of 127.0.0.0/8 that no other test process is likely to use.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    Ipv4Addr::new(127, 100 + (process >> 8) as u8 % 100, process as u8, next as u8)
}

/// Makes an ed25519 key pair at this path and returns the public half.
pub(crate) fn generate(path: &Path) -> String {
    let status =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path).status();
    assert!(status.expect("ssh-keygen is missing: apt-get install openssh-client").success());
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}
