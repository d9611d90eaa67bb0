//! Machines under systemd-nspawn: a Debian with systemd, cloud-init and sshd, booted from one shared root.
//!
//! As on EC2, each has a private address that it keeps, and a public one that the network translates and that changes
//! when it is stopped and started; it is reached only as its security groups allow, gets its user data at its first
//! boot, and is gone when it powers off. Unlike there, cloud-init reads its seed from a folder.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use labhost::units::epoch_s;

use crate::{
    fake::hosts::{Boot, Booted, Done, Door, Hosts},
    isolate,
};

/// Networks that exist in the test's namespace only: one as in the default VPC, and TEST-NET-3 of RFC 5737.
const PRIVATE: [u8; 3] = [172, 31, 16];
const PUBLIC: [u8; 3] = [203, 0, 113];
/// Both networks' first address is the bridge's.
const FIRST: u8 = 11;
/// What nine machines write stays far below; it lies in memory.
const WRITTEN_MAX: &str = "size=4g";
const CONSOLE_LINES: usize = 80;
/// A machine whose services do not end is killed.
const END_WITHIN: Duration = Duration::from_secs(60);

/// Joins the group in `$1` and runs the rest again whenever the machine reboots, which nspawn says with 133. SIGTERM,
/// which asks it to power off, is passed on.
const RUN: &str = "\
echo 0 >\"$1\"
shift
trap 'kill -TERM $pid' TERM
status=133
while [ $status = 133 ]; do
    \"$@\" &
    pid=$!
    while kill -0 $pid 2>/dev/null; do wait $pid; status=$?; done
done
exit $status";

pub(crate) struct Machines {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    machines: BTreeMap<String, Machine>,
    /// The network's, as they are in force.
    rules: String,
    /// Addresses given so far.
    private: u8,
    public: u8,
}

struct Machine {
    folder: PathBuf,
    private: Ipv4Addr,
    public: Ipv4Addr,
    process: Child,
}

impl Machines {
    /// Makes the network and the place for what machines write.
    pub(crate) fn new() -> Self {
        let folder = PathBuf::from(isolate::FOLDER);
        sh(&format!("mount -t tmpfs -o {WRITTEN_MAX} tmpfs {}", folder.display()));
        sh(isolate::MOUNT_GROUPS);
        // Where systemd-nspawn keeps its locks.
        sh("mkdir -p /run/systemd/nspawn && mount -t tmpfs tmpfs /run/systemd/nspawn");
        // A bridge without a hardware address of its own takes another one when a machine goes.
        sh(
            "ip link set lo up && ip link add ec2 address 02:00:00:00:00:01 type bridge && ip link set ec2 up",
        );
        for net in [PRIVATE, PUBLIC] {
            sh(&format!("ip address add {}/24 dev ec2", address(net, 1)));
        }
        Self { folder, state: Mutex::default() }
    }

    /// Where labhost calls from: the bridge's public address.
    pub(crate) fn caller() -> String {
        address(PUBLIC, 1).to_string()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, boot: &Boot) -> Booted {
        let mut state = self.state();
        let id = format!("i-{:017x}", 0xec2_0000_u64 + u64::from(state.private));
        let private = address(PRIVATE, FIRST + state.private);
        let public = state.next_public();
        state.private += 1;
        let folder = self.folder.join(&id);
        make_disk(&folder);
        seed(&folder.join("root"), &id, private, boot);
        let process = start(&id, &folder, private);
        state.machines.insert(id.clone(), Machine { folder, private, public, process });
        Booted { id, public, private, launched_at_s: epoch_s(SystemTime::now()) }
    }
}

impl State {
    fn next_public(&mut self) -> Ipv4Addr {
        self.public += 1;
        address(PUBLIC, FIRST - 1 + self.public)
    }
}

impl Hosts for Machines {
    fn boot<'a>(&'a self, boot: &'a Boot) -> Done<'a, Vec<Booted>> {
        Box::pin(async { (0..boot.count).map(|_| self.add(boot)).collect() })
    }

    /// Their systemd is asked to power off; nspawn does so on SIGTERM.
    fn terminate<'a>(&'a self, ids: &'a [String]) -> Done<'a, ()> {
        Box::pin(async {
            for machine in
                self.state().machines.iter_mut().filter(|(id, _)| ids.contains(id)).map(|(_, it)| it)
            {
                machine.signal(rustix::process::Signal::TERM);
            }
        })
    }

    fn start(&self, id: &str) -> Option<Ipv4Addr> {
        let mut state = self.state();
        let public = state.next_public();
        let machine = state.machines.get_mut(id).expect("only what was launched is started");
        assert!(machine.is_ended(), "{id} runs");
        machine.public = public;
        machine.process = start(id, &machine.folder, machine.private);
        Some(public)
    }

    fn is_alive(&self, id: &str) -> Option<bool> {
        Some(!self.state().machines.get_mut(id)?.is_ended())
    }

    fn open(&self, doors: Vec<Door>) {
        let mut state = self.state();
        let rules = rules(&state.machines, &doors);
        if state.rules != rules {
            sh(&format!("nft -f - <<'END'\n{rules}END"));
            state.rules = rules;
        }
    }

    /// Those that do not end in time are killed, and named.
    fn remove_all(&self) -> Done<'_, Vec<String>> {
        Box::pin(async {
            let mut state = self.state();
            if std::thread::panicking() {
                state.machines.iter().for_each(|(id, machine)| machine.show_console(id));
            }
            state.machines.values_mut().for_each(|it| it.signal(rustix::process::Signal::TERM));
            let deadline = Instant::now() + END_WITHIN;
            while Instant::now() < deadline && !state.machines.values_mut().all(Machine::is_ended) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut late = Vec::new();
            for (id, machine) in &mut state.machines {
                if !machine.is_ended() {
                    late.push(id.clone());
                    let _ = machine.process.kill();
                    let _ = machine.process.wait();
                }
            }
            late
        })
    }
}

impl Machine {
    fn is_ended(&mut self) -> bool {
        self.process.try_wait().expect("it can be waited for").is_some()
    }

    /// What a failed test wants to know.
    fn show_console(&self, id: &str) {
        let text = fs::read(self.folder.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().count().saturating_sub(CONSOLE_LINES);
        isolate::say(&format!("--- console of {id}"));
        text.lines().skip(last).for_each(isolate::say);
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        if !self.is_ended() {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal);
        }
    }
}

fn address([a, b, c]: [u8; 3], last: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, last)
}

/// What a machine is called on this computer.
fn short(private: Ipv4Addr) -> String {
    format!("ec2-{}", private.octets()[3])
}

/// The network's rules, as nft reads them: public addresses stand for private ones, and the first packet of a
/// connection passes a door or is dropped at the bridge.
fn rules(machines: &BTreeMap<String, Machine>, doors: &[Door]) -> String {
    let mut rules = String::from(
        "flush ruleset\n\
         table ip nat {\nchain out {\ntype nat hook output priority -100; policy accept;\n",
    );
    for machine in machines.values() {
        let _ = writeln!(rules, "ip daddr {} dnat to {}", machine.public, machine.private);
    }
    rules.push_str(
        "}\n}\ntable bridge groups {\nchain in {\ntype filter hook postrouting priority 0; policy accept;\n\
         tcp flags & (syn|ack) != syn accept\n",
    );
    for door in doors {
        if let Some(machine) = machines.get(&door.id) {
            let name = short(machine.private);
            let Door { source, port_first, port_last, .. } = door;
            let _ = writeln!(
                rules,
                "oifname vb-{name} ip saddr {source} tcp dport {port_first}-{port_last} accept"
            );
        }
    }
    rules.push_str("oifname \"vb-ec2-*\" ip protocol tcp drop\n}\n}\n");
    rules
}

/// The shared root with a layer of the machine's own above it.
fn make_disk(folder: &Path) {
    for part in ["upper", "work", "root"] {
        fs::create_dir_all(folder.join(part)).expect("there is room for a machine");
    }
    let at = folder.display();
    let lower = isolate::root();
    sh(&format!(
        "mount -t overlay overlay -o lowerdir={},upperdir={at}/upper,workdir={at}/work {at}/root",
        lower.display()
    ));
}

/// What the metadata service tells an instance.
fn seed(root: &Path, id: &str, private: Ipv4Addr, boot: &Boot) {
    let name = format!("ip-{}", private.to_string().replace('.', "-"));
    let meta =
        format!("instance-id: {id}\nlocal-hostname: {name}\npublic-keys:\n  - {}\n", boot.public_key.trim());
    write(root, "var/lib/cloud/seed/nocloud/meta-data", &meta);
    write(root, "var/lib/cloud/seed/nocloud/user-data", &boot.user_data);
    // At EC2 the network's name server knows the machine.
    write(root, "etc/hosts", &format!("127.0.0.1 localhost\n{private} {name}\n"));
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("a folder can be made");
    fs::write(path, text).expect("a file can be written");
}

/// Boots it. Its console goes to the file `console`.
fn start(id: &str, folder: &Path, private: Ipv4Addr) -> Child {
    let root = folder.join("root");
    let gateway = address(PRIVATE, 1);
    let network = format!(
        "[Match]\nName=host0\n[Network]\nAddress={private}/24\nGateway={gateway}\nDHCP=no\nLinkLocalAddressing=no\n"
    );
    write(&root, "etc/systemd/network/10-ec2.network", &network);
    // The interface's name on the bridge is `vb-` and this, 15 characters at most.
    let short = short(private);
    let group = isolate::machine_group(&short);
    let console =
        fs::File::options().create(true).append(true).open(folder.join("console")).expect("a console");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", RUN, "sh"])
        .arg(group)
        .args(["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--network-bridge=ec2"])
        .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"])
        .args([format!("--machine={short}"), format!("--directory={}", root.display())])
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
        .stdin(Stdio::null())
        .stdout(console.try_clone().expect("a console"))
        .stderr(console);
    command.spawn().unwrap_or_else(|cause| panic!("start {id}: {cause}"))
}

/// Runs a line of shell that must succeed.
fn sh(line: &str) {
    let output = Command::new("/bin/sh").arg("-c").arg(line).output().expect("a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}
