//! OpenSSH's own server, started for one test on an address of its own.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use labhost::instance::{Instance, State};
use tempfile::TempDir;

use super::{Server, Target, control_directory, generate, own_address};
use crate::{
    DEADLINE,
    processes::{descendants, kill, name},
};

pub(crate) async fn running() -> Target {
    let mut target = stopped().await;
    target.start();
    target
}

#[expect(clippy::unused_async, reason = "its counterpart for local instances has to wait")]
pub(crate) async fn stopped() -> Target {
    let directory = TempDir::new().unwrap();
    let address = own_address();
    let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    let host_key = generate(&directory.path().join("host_key"));
    let identity = directory.path().join("login_key");
    fs::write(directory.path().join("authorized_keys"), generate(&identity)).unwrap();
    Target {
        server: Box::new(Sshd::new(directory.path(), address, port)),
        instance: instance(address, port, host_key),
        identity,
        programs: directory.path().join("programs"),
        directory,
        control: control_directory(),
    }
}

fn instance(address: Ipv4Addr, port: u16, host_key: String) -> Instance {
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

    fn beside(&self) -> Pin<Box<dyn Future<Output = Target> + Send>> {
        Box::pin(running())
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
