//! What the fake's instances really are: local instances of this machine, or whatever else a test brings.

use std::{collections::BTreeMap, net::Ipv4Addr, pin::Pin, sync::Arc};

use labhost::provider::{Launch, LoginKey, Provider as _, local::Local};

pub(crate) type Done<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What one launch asks for.
pub(crate) struct Boot {
    pub(crate) token: String,
    pub(crate) kind: String,
    pub(crate) count: usize,
    pub(crate) cluster: Option<String>,
    /// The login key, in OpenSSH's one-line form.
    pub(crate) public_key: String,
    pub(crate) user_data: String,
}

/// An instance that has been started.
pub(crate) struct Booted {
    pub(crate) id: String,
    pub(crate) public: Ipv4Addr,
    pub(crate) private: Ipv4Addr,
    pub(crate) launched_at_s: u64,
}

/// Who may connect to an instance, by the rules of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) id: String,
    /// A block of addresses.
    pub(crate) source: String,
    pub(crate) port_first: String,
    pub(crate) port_last: String,
}

/// Something that can run instances. What fails is the test's fault, so nothing here returns errors.
pub(crate) trait Hosts: Send + Sync {
    fn boot<'a>(&'a self, boot: &'a Boot) -> Done<'a, Vec<Booted>>;
    /// Begins to end these.
    fn terminate<'a>(&'a self, ids: &'a [String]) -> Done<'a, ()>;
    /// Starts one that had ended but was not terminated; returns its new public address.
    fn start(&self, id: &str) -> Option<Ipv4Addr>;
    /// Whether it has not ended yet, by itself or by [`Hosts::terminate`]; `None` when that is not watched.
    fn is_alive(&self, id: &str) -> Option<bool>;
    /// Lets these in over TCP and nobody else.
    fn open(&self, doors: Vec<Door>);
    /// Removes everything; returns what could not be removed.
    fn remove_all(&self) -> Done<'_, Vec<String>>;
}

/// Local instances with their SSH servers.
pub(crate) struct LocalHosts(pub(crate) Arc<Local>);

impl Hosts for LocalHosts {
    /// With the host key and the deadline that the user data brings.
    fn boot<'a>(&'a self, boot: &'a Boot) -> Done<'a, Vec<Booted>> {
        Box::pin(async {
            let login = LoginKey { name: "lab".to_owned(), public: boot.public_key.clone(), adopt: false };
            self.0.ensure_key(&login).await.expect("the key is taken over");
            let expires = written(&boot.user_data, "/etc/labhost/expires");
            let launch = Launch {
                token: boot.token.clone(),
                fleet: "cloud".to_owned(),
                instance_type: boot.kind.clone(),
                slots: (1..=boot.count as u32).collect(),
                cluster: boot.cluster.clone(),
                role: None,
                key: "lab".to_owned(),
                group: None,
                image: None,
                tags: BTreeMap::new(),
                expires_at_s: expires
                    .and_then(|text| text.trim().parse().ok())
                    .expect("user data has a deadline"),
            };
            let made = self.0.launch(&launch).await.expect("instances on this machine");
            let host_key = host_key(&boot.user_data);
            for instance in &made {
                self.0.set_host_key(&instance.id, &host_key).await.expect("the host key is taken over");
            }
            let booted = made.into_iter().map(|it| Booted {
                public: it.public_ip.expect("an address"),
                private: it.private_ip.expect("an address"),
                id: it.id,
                launched_at_s: it.launched_at_s,
            });
            booted.collect()
        })
    }

    fn terminate<'a>(&'a self, ids: &'a [String]) -> Done<'a, ()> {
        Box::pin(async { self.0.terminate(ids).await.expect("instances on this machine end") })
    }

    /// They do not really stop.
    fn start(&self, _: &str) -> Option<Ipv4Addr> {
        None
    }

    fn is_alive(&self, _: &str) -> Option<bool> {
        None
    }

    /// Nothing on loopback filters connections.
    fn open(&self, _: Vec<Door>) {}

    fn remove_all(&self) -> Done<'_, Vec<String>> {
        Box::pin(async { self.0.destroy(false).await.expect("local instances are removed") })
    }
}

/// The private key of `ssh_keys` in the user data.
fn host_key(user_data: &str) -> String {
    let start = user_data.find("ed25519_private: |\n").expect("user data has a host key");
    let lines = user_data[start..].lines().skip(1);
    lines.map_while(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

/// The content of a file that the user data writes.
fn written(user_data: &str, path: &str) -> Option<String> {
    let start = user_data.find(&format!("  - path: {path}\n"))?;
    let lines = user_data[start..].lines().skip_while(|line| *line != "    content: |").skip(1);
    Some(lines.map_while(|line| line.strip_prefix("      ")).map(|line| format!("{line}\n")).collect())
}
