//! A local instance: a directory with an SSH server and services.
//!
//! ```text
//! STATE/local/ID/instance.json   what it is, and the launch that made it
//! STATE/local/ID/host_key        0600
//! STATE/local/ID/root/           its home
//! STATE/local/ID/services/       definitions
//! STATE/local/ID/logs/           what its services print
//! ```
//! It is no sandbox: its processes are the user's own and can read all that the user can.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

use super::{
    mark::{self, Mark},
    place::Place,
    process::Surroundings,
    record::{InstanceFile, write_atomic},
    service::Supervisor,
    session,
    sshd::{self, Server},
};
use crate::{
    Error, Kind,
    error::Context,
    instance::{Instance, State},
    provider::Launch,
};

/// Where HTTP services listen: ports below 1024 need root.
const HTTP_PORT: u16 = 8080;

/// The system's programs, behind the lab's own.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The lab's login keys by name; shared by all instances, so that a key ensured again opens them at once.
pub(super) type Keys = Arc<RwLock<BTreeMap<String, PublicKey>>>;

/// What an SSH session needs to know about its instance.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) id: String,
    /// The instance's directory; its processes live in `root` below it.
    pub(super) home: PathBuf,
    pub(super) around: Surroundings,
    keys: Keys,
    key_name: String,
}

impl Guest {
    /// Public keys are no secret: a plain comparison will do.
    pub(super) fn admits(&self, key: &PublicKey) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&self.key_name).is_some_and(|known| known.key_data() == key.key_data())
    }
}

/// A booted instance.
#[derive(Debug)]
pub(super) struct Machine {
    guest: Arc<Guest>,
    address: Ipv4Addr,
    server: Mutex<Option<Server>>,
    pub(super) services: Supervisor,
}

impl Machine {
    /// Reads its host key and opens its SSH server, if `with_ssh`; services are started by `services.boot()`.
    pub(super) async fn boot(
        place: &Place,
        instance: &Instance,
        key_name: &str,
        keys: Keys,
        with_ssh: bool,
    ) -> io::Result<Self> {
        let home = place.instance(&instance.id);
        let address = instance.private_ip.ok_or_else(|| io::Error::other("it has no address"))?;
        let around = surroundings(place, instance)?;
        let services = Supervisor::new(&home, around.clone());
        let guest = Guest { id: instance.id.clone(), home, around, keys, key_name: key_name.to_owned() };
        let machine = Self { guest: Arc::new(guest), address, server: Mutex::default(), services };
        if with_ssh {
            machine.open_ssh().await?;
        }
        Ok(machine)
    }

    /// Without effect when it is open.
    pub(super) async fn open_ssh(&self) -> io::Result<()> {
        if self.server().is_some() {
            return Ok(());
        }
        let key = read_host_key(&self.guest.home)?;
        let server = Server::start(self.address, key, self.guest.clone()).await.map_err(|cause| {
            io::Error::new(cause.kind(), format!("listen on {}:{}: {cause}", self.address, sshd::PORT))
        })?;
        *self.server() = Some(server);
        Ok(())
    }

    /// Replaces the host key, on disk and for connections to come.
    pub(super) fn set_host_key(&self, secret: &str) -> Result<(), Error> {
        let failed = || format!("replace the host key of {}", self.guest.id);
        let key = PrivateKey::from_openssh(secret).context(Kind::Usage, failed)?;
        write_atomic(&self.guest.home.join("host_key"), secret.as_bytes()).context(Kind::Host, failed)?;
        if let Some(server) = &*self.server() {
            server.set_key(key);
        }
        Ok(())
    }

    /// Closes the listener and all connections; commands of theirs are ended, services are not.
    pub(super) async fn close_ssh(&self) {
        let server = self.server().take();
        if let Some(server) = server {
            server.stop().await;
        }
    }

    /// Ends everything; see [`Supervisor::shut_down`].
    pub(super) async fn shut_down(&self, grace: Duration) {
        self.close_ssh().await;
        self.services.shut_down(grace).await;
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every process of an instance has.
pub(super) fn mark(place: &Place, id: &str) -> Mark {
    Mark::of_instance(format!("INSTANCE_ID={id}"), place.instance(id))
}

fn surroundings(place: &Place, instance: &Instance) -> io::Result<Surroundings> {
    let home = place.instance(&instance.id);
    let root = home.join("root");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let env = [
        ("HOME", text(&root)),
        ("PATH", format!("{}:{SYSTEM_PATH}", text(&place.bin()))),
        ("USER", session::USER.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("INSTANCE_ID", instance.id.clone()),
        ("CLUSTER_NAME", instance.cluster.clone().unwrap_or_default()),
        ("LABHOST_EMULATE", instance.instance_type.clone()),
        (crate::identity::MARK, place.lab.clone()),
        ("LABHOST_AGENT", text(&place.socket())),
    ];
    Ok(Surroundings {
        root,
        env: env.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        descriptor: Arc::new(mark::descriptor(&home)?),
    })
}

/// Makes the directory of a new instance. After an error its directory may be there in part.
pub(super) fn create(
    place: &Place,
    launch: &Launch,
    slot: u32,
    address: Ipv4Addr,
    now_s: u64,
) -> io::Result<Instance> {
    let id = format!("i-{}", &hex(&random::<9>()?)[..17]);
    let home = place.instance(&id);
    for directory in [home.clone(), home.join("root"), home.join("services"), home.join("logs")] {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&random()?));
    let secret = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    write_atomic(&home.join("host_key"), secret.as_bytes())?;
    let instance = Instance {
        name: format!("{}-{slot}", launch.fleet),
        id,
        instance_type: launch.instance_type.clone(),
        state: State::Running,
        public_ip: Some(address),
        private_ip: Some(address),
        cluster: launch.cluster.clone(),
        fleet: launch.fleet.clone(),
        slot,
        role: launch.role.clone(),
        user: session::USER.to_owned(),
        ssh_port: sshd::PORT,
        http_port: HTTP_PORT,
        host_key: key.public_key().to_openssh().map_err(io::Error::other)?,
        emulated: true,
        launched_at_s: now_s,
        expires_at_s: launch.expires_at_s,
    };
    let file = InstanceFile { launch: launch.clone(), instance };
    write_atomic(&home.join("instance.json"), &serde_json::to_vec_pretty(&file)?)?;
    Ok(file.instance)
}

fn read_host_key(home: &Path) -> io::Result<PrivateKey> {
    let path = home.join("host_key");
    let wrong = |cause: &dyn std::fmt::Display| io::Error::other(format!("read {}: {cause}", path.display()));
    let secret = fs::read(&path).map_err(|cause| wrong(&cause))?;
    PrivateKey::from_openssh(secret).map_err(|cause| wrong(&cause))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    use std::io::Read;
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
