//! Servers to test against. Each is a [`Target`]: an instance, the key to log in with, and what only a server's
//! owner can do to it.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use labhost::{
    Error,
    provider::{Instance, State},
    ssh::{Session, write_config},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Target {
    pub(crate) instance: Instance,
    pub(crate) identity: PathBuf,
    /// Holds everything of this target, and room for the test's own files; removed at the end.
    pub(crate) directory: TempDir,
    /// Short, for control sockets.
    pub(crate) control: TempDir,
    server: Box<dyn Server>,
}

pub(crate) trait Server: Send {
    fn start(&mut self);
    /// Cuts the connections that stand, without a word to the clients.
    fn cut(&mut self);
}

impl Target {
    /// OpenSSH's own server, running.
    pub(crate) fn openssh() -> Self {
        let mut target = Self::openssh_stopped();
        target.start();
        target
    }

    /// OpenSSH's own server, not started yet.
    pub(crate) fn openssh_stopped() -> Self {
        let directory = TempDir::new().unwrap();
        let address = own_address();
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let host_key = generate(&directory.path().join("host_key"));
        let login_key = generate(&directory.path().join("login_key"));
        fs::write(directory.path().join("authorized_keys"), login_key).unwrap();
        let server = Sshd::new(directory.path(), address, port);
        let instance = instance(address, port, host_key);
        let identity = directory.path().join("login_key");
        let private = fs::Permissions::from_mode(0o700);
        let control = tempfile::Builder::new().prefix("lh-").permissions(private).tempdir_in("/tmp").unwrap();
        Self { instance, identity, directory, control, server: Box::new(server) }
    }

    pub(crate) fn start(&mut self) {
        self.server.start();
    }

    pub(crate) fn cut(&mut self) {
        self.server.cut();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file on the host. Both ends of every target are this machine.
    pub(crate) fn remote(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Programs that come before the system's own in commands on the host.
    pub(crate) fn programs(&self) -> PathBuf {
        self.path("programs")
    }

    pub(crate) async fn connect_for(
        &self,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Result<Session, Error> {
        write_config(&self.path("state"), std::slice::from_ref(&self.instance), &self.identity)?;
        let config = self.path("state/ssh_config");
        Session::connect(&self.instance, &config, self.control.path(), deadline, cancel).await
    }

    pub(crate) async fn connect(&self) -> Session {
        self.connect_for(DEADLINE, &CancellationToken::new()).await.unwrap()
    }
}

/// An address of 127.0.0.0/8 that no other test process is likely to use.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    Ipv4Addr::new(127, 100 + (process >> 8) as u8 % 100, process as u8, next as u8)
}

pub(crate) fn instance(address: Ipv4Addr, port: u16, host_key: String) -> Instance {
    Instance {
        id: format!("i-{:017x}", u64::from(u32::from(address)) << 16 | u64::from(port)),
        instance_type: "t2.micro".into(),
        state: State::Running,
        public_ip: Some(address),
        private_ip: Some(address),
        cluster: None,
        name: "app-1".into(),
        fleet: "app".into(),
        slot: 1,
        role: None,
        user: user(),
        ssh_port: port,
        http_port: 8080,
        host_key,
        emulated: true,
        launched_at_s: 0,
        expires_at_s: 0,
    }
}

/// Makes an ed25519 key pair at this path and returns the public half.
pub(crate) fn generate(path: &Path) -> String {
    let status =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path).status();
    assert!(status.expect("ssh-keygen is missing: apt-get install openssh-client").success());
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

struct Sshd {
    config: PathBuf,
    log: PathBuf,
    address: (Ipv4Addr, u16),
    child: Option<Child>,
}

impl Sshd {
    fn new(directory: &Path, address: Ipv4Addr, port: u16) -> Self {
        let shown = directory.display();
        fs::create_dir(directory.join("programs")).unwrap();
        // bash reads the user's own ~/.bashrc when sshd starts it, unless it is a shell within a shell (SHLVL).
        let text = format!(
            "ListenAddress {address}:{port}\nHostKey {shown}/host_key\nAuthorizedKeysFile {shown}/authorized_keys\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nLogLevel VERBOSE\nPrintMotd no\nUseDNS no\n\
             SetEnv SHLVL=2 PATH={shown}/programs:/usr/local/bin:/usr/bin:/bin\n"
        );
        let config = directory.join("sshd_config");
        fs::write(&config, text).unwrap();
        Self { config, log: directory.join("sshd.log"), address: (address, port), child: None }
    }
}

/// sshd insists on an absolute path, because it starts itself anew for each connection.
fn sshd() -> &'static str {
    let places = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
    places.into_iter().find(|path| Path::new(path).exists()).expect(
        "OpenSSH's server is missing. These tests run against it: apt-get install openssh-server (or your \
         system's package with sshd)",
    )
}

impl Server for Sshd {
    fn start(&mut self) {
        if rustix::process::geteuid().is_root() {
            // As root sshd separates its privileges and needs this directory; a package's service would make it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let mut command = Command::new(sshd());
        command.arg("-D").arg("-f").arg(&self.config).arg("-E").arg(&self.log).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let end = Instant::now() + DEADLINE;
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < end, "sshd: {}", fs::read_to_string(&self.log).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn cut(&mut self) {
        // For a user who is not root a connection is two processes, one below the other; commands go on.
        let Some(child) = &self.child else { return };
        let server = |process: &u32| *process != child.id() && name(*process).starts_with("sshd");
        descendants(child.id()).into_iter().filter(server).for_each(kill);
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let mut all = descendants(child.id());
        let _ = child.kill();
        let _ = child.wait();
        all.retain(|process| *process != child.id());
        all.into_iter().for_each(kill);
    }
}

pub(crate) fn kill(process: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(process as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A process and all that it started, directly or not.
pub(crate) fn descendants(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]));
        at += 1;
    }
    all
}

pub(crate) fn children(process: u32) -> Vec<u32> {
    processes().filter(|other| stat(*other).is_some_and(|(_, parent)| parent == process)).collect()
}

/// Whether the process exists and is no zombie.
pub(crate) fn alive(process: u32) -> bool {
    stat(process).is_some_and(|(state, _)| state != 'Z')
}

/// Processes whose command line holds this text.
pub(crate) fn with_argument(text: &str) -> Vec<u32> {
    let holds = |process: &u32| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    processes().filter(holds).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn name(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default()
}

/// State and parent.
fn stat(process: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
