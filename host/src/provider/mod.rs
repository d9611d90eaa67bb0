//! Where instances come from. A provider creates, lists and removes instances; everything that happens *on* an
//! instance goes over SSH (`ssh`) and is the same for all providers.
//!
//! This module does not know Rhai, keeps no journal and opens no SSH connection.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    Error, Kind,
    instance::{Instance, is_running},
    nearest::nearest,
    options_map,
    ssh::Session,
};

#[cfg(feature = "ec2")]
pub mod ec2;
pub mod local;

/// What a provider's operation returns; boxed so that `dyn Provider` works.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// How a provider tells the user what it does or waits for, line by line.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// A request for new members of one fleet: all of them or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// At most 64 ASCII characters. The same token with the same request returns the instances already made.
    pub token: String,
    pub fleet: String,
    pub instance_type: String,
    /// Slots to fill, counted from 1; one instance each.
    pub slots: Vec<u32>,
    pub cluster: Option<String>,
    pub role: Option<String>,
    /// Names of the key pair, security group and image as the recipe ensured them before.
    pub key: String,
    pub group: Option<String>,
    pub image: Option<String>,
    /// Further tags, shown in listings.
    pub tags: BTreeMap<String, String>,
    pub expires_at_s: u64,
}

/// A login key, as the recipe asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginKey {
    pub name: String,
    /// OpenSSH's one-line form.
    pub public: String,
    /// The provider has it under this very name already; it is used and never changed or removed.
    pub adopt: bool,
}

/// What instances cost while they run.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// `None` when the price of a type is not known.
    pub usd_per_hour: Option<f64>,
    /// In words that follow "it ends by itself in 2h; ", with the date of the prices.
    pub note: String,
}

/// One thing that a run would do, for `--plan`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Key(LoginKey),
    Group { name: String, ingress: Vec<Ingress> },
    Launch(Launch),
    Terminate(Vec<Instance>),
}

/// What happens to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Add,
    Change,
    Keep,
    Replace,
    Remove,
}

/// What a step would do to one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub verb: Verb,
    /// The resource in words.
    pub what: String,
}

/// How a call ended that was tried for `labhost doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    Permitted,
    /// A run or a teardown would fail here.
    Refused,
    /// It was tried on what is not there, or something else went wrong.
    Unclear,
}

/// One call that a run or a teardown makes, tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// In the provider's words.
    pub call: &'static str,
    pub permit: Permit,
    pub detail: String,
}

options_map! {
    /// One rule of a security group: who may reach a TCP port.
    #[derive(PartialEq, Eq, Serialize)]
    pub struct Ingress {
        /// The TCP port.
        pub port: u16,
        /// `"me"`, `"any"`, `"group:NAME"` or a CIDR block.
        pub from: String,
    }
}

/// Creates, lists and removes instances. Every call is idempotent: repeating it after a crash is safe.
///
/// Errors are of `Kind::Provider` when the provider refused and `Kind::Host` when it broke.
pub trait Provider: Send + Sync {
    /// `local` or `ec2`.
    fn name(&self) -> &'static str;

    /// Makes the provider ready for mutating calls (the local one starts its agent, EC2 checks credentials).
    fn start(&self) -> Pending<'_, ()>;

    /// Finds out what a plan needs to know; changes nothing.
    fn look_around(&self) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// The most instances that a lab has here unless `--max-instances` says otherwise.
    fn instances_max(&self) -> usize;

    /// Instances outside this lab that count towards the ceiling; known after `start`.
    fn instances_elsewhere(&self) -> usize {
        0
    }

    /// The most instances that the account may have in all, whatever `--max-instances` says; known after `start`.
    fn instances_allowed(&self) -> usize {
        usize::MAX
    }

    /// Errors when a lab must not have this many instances in all, and warns where it should not.
    fn check_total(&self, _total: usize) -> Result<(), Error> {
        Ok(())
    }

    /// Errors unless instances of this type can be launched; names the nearest known type.
    fn check_type<'a>(&'a self, name: &'a str) -> Pending<'a, ()>;

    /// What instances of these types (one entry each) cost together.
    fn cost(&self, types: &[&str]) -> Cost;

    /// Virtual CPUs of a type, if known.
    fn vcpus(&self, instance_type: &str) -> Option<u32>;

    /// Makes it a login key.
    fn ensure_key<'a>(&'a self, key: &'a LoginKey) -> Pending<'a, ()>;

    /// Makes the group exist with exactly these rules. Returns its id.
    fn ensure_group<'a>(&'a self, name: &'a str, ingress: &'a [Ingress]) -> Pending<'a, String>;

    /// What is to be done before this machine logs in anywhere: where only it is let in, and its address has changed
    /// since, the new one is let in.
    fn admit_caller(&self) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// The id of the image that instances boot from, found by name. `before` is what an earlier run found.
    fn image<'a>(&'a self, name: &'a str, before: Option<&'a str>) -> Pending<'a, String>;

    /// Launches and returns at once; the instances may still be pending. Order follows `slots`.
    fn launch<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Vec<Instance>>;

    /// Ids of what other launches of this fleet than this one have made and `known` lacks. Waits for as long as
    /// it may be listed late: launching beside it could make a member twice.
    fn latecomers<'a>(&'a self, _launch: &'a Launch, _known: &'a [Instance]) -> Pending<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// All instances of this lab that are neither terminated nor about to be, ordered by fleet and slot. Never
    /// starts anything: a provider that is not running has no instances.
    fn list(&self) -> Pending<'_, Vec<Instance>>;

    /// Waits until all of these run and have an address, and returns them in this order. Errors at the deadline, and
    /// at once when one of them has ended, with the reason.
    fn wait_running<'a>(&'a self, ids: &'a [String], deadline: Instant) -> Pending<'a, Vec<Instance>>;

    /// What is to be done at each login before anything else (EC2 replaces a host key that others could know).
    /// Returns whether the host keys to accept have changed.
    fn welcome<'a>(&'a self, _instance: &'a Instance, _session: &'a Session) -> Pending<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    /// What the instance says about itself when nobody can log in, if anything.
    fn diagnose<'a>(&'a self, _id: &'a str) -> Pending<'a, Option<String>> {
        Box::pin(async { Ok(None) })
    }

    /// Terminates these instances and waits until they are gone; unknown ids are not an error.
    fn terminate<'a>(&'a self, ids: &'a [String]) -> Pending<'a, ()>;

    /// Moves the time at which instances end by themselves.
    fn extend(&self, expires_at_s: u64) -> Pending<'_, ()>;

    /// Whether each instance keeps its time of expiry itself, so that `labhost-service expires` must be run on it.
    fn is_expiry_kept_on_instances(&self) -> bool {
        false
    }

    /// What a step would do, found by reading and by trial calls that change nothing.
    fn rehearse<'a>(&'a self, step: &'a Step) -> Pending<'a, Vec<Change>>;

    /// Tries every call that a run or a teardown makes, and changes nothing; empty when there is nothing to permit.
    fn examine(&self) -> Pending<'_, Vec<Trial>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What [`Provider::destroy`] would remove, in words for the user, one line each; empty when nothing is left.
    fn remains(&self) -> Pending<'_, Vec<String>>;

    /// Removes everything this lab made with this provider, also when its state is lost, and returns what could
    /// not be removed, in words. `keep_bootstrap` keeps the key pair and the groups.
    fn destroy(&self, keep_bootstrap: bool) -> Pending<'_, Vec<String>>;
}

/// [`Provider::wait_running`] for a provider whose `list` is cheap.
pub async fn wait_until_listed(
    provider: &dyn Provider,
    ids: &[String],
    deadline: Instant,
    pause: Duration,
) -> Result<Vec<Instance>, Error> {
    loop {
        let listed = provider.list().await?;
        let running: Vec<Instance> = ids
            .iter()
            .filter_map(|id| listed.iter().find(|instance| instance.id == *id && is_running(instance)))
            .cloned()
            .collect();
        if running.len() == ids.len() {
            return Ok(running);
        }
        if Instant::now() >= deadline {
            return Err(still_not_running(&missing(ids, &listed)));
        }
        tokio::time::sleep(pause).await;
    }
}

/// Names of those that do not run; the id of one that is not listed.
fn missing(ids: &[String], listed: &[Instance]) -> Vec<String> {
    let waiting = |id: &&String| !listed.iter().any(|instance| instance.id == **id && is_running(instance));
    let name = |id: &String| {
        let found = listed.iter().find(|instance| instance.id == *id);
        found.map_or_else(|| id.clone(), |instance| instance.name.clone())
    };
    ids.iter().filter(waiting).map(name).collect()
}

fn still_not_running(names: &[String]) -> Error {
    Error::host(format!("wait for {}: still not running", names.join(", ")))
        .with_hint("Raise `timeout` of ec2::wait, or look at `labhost status`.")
}

/// The error for an instance type that a provider does not know.
fn unknown_type(name: &str, known: &[&str]) -> Error {
    let near = nearest(name, known.iter().copied());
    let near = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    Error::new(Kind::Recipe, format!("unknown instance type `{name}`"))
        .with_hint(format!("{near}Known are {}.", known.join(", ")))
}
