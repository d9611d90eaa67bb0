//! Instances on AWS EC2.
//!
//! | file | what it is about |
//! |---|---|
//! | `client`, `refusal` | credentials, region, retries; what AWS's refusals mean |
//! | `tags`, `machine`, `store` | by what everything is found again; the provider's own files |
//! | `look` | who is calling, what of theirs is there already |
//! | `keys`, `groups`, `rules`, `address`, `image`, `network` | what instances need |
//! | `launch`, `userdata`, `view`, `poll`, `welcome` | instances, from the call to the first login |
//! | `types` | virtual CPUs, architectures, prices |
//! | `rehearse`, `teardown`, `examine` | `--plan`; removing everything; `labhost doctor` |
//! | `pace` | how long is waited; what a fake may change |
//!
//! Tags are the truth: every resource gets them in the call that creates it, and only what has this lab's is listed
//! or removed. No IAM, no spot instances, no networks of its own: nothing that a student's account lacks. Nothing is
//! asked of AWS before the first call that needs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::OnceCell, time::Instant};

use super::{Change, Cost, Ingress, Launch, LoginKey, Pending, Provider, Say, Step, Trial, unknown_type};
use crate::{Error, instance::Instance, ssh::Session};

mod address;
mod client;
mod examine;
mod groups;
mod image;
mod keys;
mod launch;
mod look;
mod machine;
mod network;
mod pace;
mod poll;
mod refusal;
mod rehearse;
mod rules;
mod store;
mod tags;
mod teardown;
mod types;
mod userdata;
mod view;
mod welcome;

use client::Client;
use groups::Group;
use look::{LEARNER_LAB_MAX, Seen};
use machine::Machine;
use network::Network;
use pace::{Pace, Reach};
use refusal::Refusal;
use store::Store;
use types::Arch;
use view::HostKeys;

/// What the user may say about EC2.
#[derive(Clone)]
pub struct Settings {
    pub region: Option<String>,
    /// This machine's public address, for rules from `me`.
    pub my_ip: Option<Ipv4Addr>,
    /// Whose resources these are; by default the caller's identity.
    pub owner: Option<String>,
    /// The lab's tag; by default it follows from the state directory.
    pub lab: Option<String>,
    /// Where progress is told.
    pub say: Say,
}

/// The EC2 provider of one lab.
pub struct Ec2 {
    settings: Settings,
    /// The value of the tag `labhost:lab`.
    lab: String,
    machine: Machine,
    store: Store,
    pace: Pace,
    reach: Reach,
    client: OnceCell<Client>,
    seen: OnceCell<Seen>,
    network: OnceCell<Network>,
    caller: OnceCell<Ipv4Addr>,
    known: Mutex<Known>,
}

/// What this process has found out or made.
#[derive(Debug, Default)]
struct Known {
    /// Name at AWS by the name that recipes use.
    keys: BTreeMap<String, String>,
    groups: Option<Vec<Group>>,
    /// Names of groups that a plan would make.
    planned_groups: BTreeSet<String>,
    /// Login by image id.
    users: BTreeMap<String, String>,
    /// By image id, the disks that would outlive an instance.
    disks: BTreeMap<String, Vec<image::Disk>>,
    /// Client token and launch index by instance id.
    launched: BTreeMap<String, (String, usize)>,
}

/// The longest tag of a lab that `--lab` may name.
const LAB_CHARS_MAX: usize = 40;

impl Ec2 {
    /// Asks AWS nothing yet. Errors when `settings.lab` cannot be a lab's tag.
    pub fn new(state_dir: &Path, settings: Settings) -> Result<Self, Error> {
        let machine = Machine::of(Path::new("/etc/machine-id"), state_dir);
        let lab = settings.lab.clone().unwrap_or_else(|| tags::lab_tag(state_dir, &machine.id));
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if lab.is_empty() || lab.len() > LAB_CHARS_MAX || !lab.chars().all(fits) {
            return Err(Error::usage(format!("--lab {lab:?} cannot be a lab"))
                .with_hint("It is the value of the tag labhost:lab, for example 1a2b3c4d5e6f."));
        }
        Ok(Self {
            settings,
            lab,
            machine,
            store: Store::new(state_dir),
            pace: Pace::from_env(),
            reach: Reach::from_env(),
            client: OnceCell::new(),
            seen: OnceCell::new(),
            network: OnceCell::new(),
            caller: OnceCell::new(),
            known: Mutex::default(),
        })
    }

    async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| Client::connect(self.settings.region.as_deref())).await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, text: &str) {
        (self.settings.say)(text);
    }

    fn arch(&self) -> Result<Arch, Error> {
        Arch::of_this_build().ok_or_else(|| {
            Error::provider(format!(
                "EC2 has no instances of this machine's architecture, {}",
                std::env::consts::ARCH
            ))
        })
    }

    /// Errors unless AWS has the type and it is of this build's architecture.
    async fn judge_type(&self, name: &str) -> Result<(), Error> {
        let arch = self.arch()?;
        let fits = match types::find(name) {
            Some(kind) => kind.arch == arch,
            None => self.ask_type(name).await?.contains(&arch),
        };
        if fits {
            return Ok(());
        }
        let message = format!("instance type {name} is not for {}", arch.ec2_name());
        Err(Error::provider(message).with_hint(format!(
            "The programs are built for this machine's architecture. Types that fit are {}.",
            types::names(Some(arch)).join(", ")
        )))
    }

    /// The architectures of a type that is not in our table.
    async fn ask_type(&self, name: &str) -> Result<Vec<Arch>, Error> {
        let call = self.client().await?.ec2.describe_instance_types();
        let call = call.instance_types(aws_sdk_ec2::types::InstanceType::from(name));
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        match found.map_err(|cause| Refusal::of(format!("look at instance type {name}"), cause)) {
            Ok(found) => {
                let processors = found.iter().filter_map(|it| it.processor_info());
                let names = processors.flat_map(|it| it.supported_architectures());
                Ok(names.filter_map(|arch| Arch::from_name(arch.as_str())).collect())
            }
            Err(refusal) if refusal.is("InvalidInstanceType") => Err(unknown_type(name, &types::names(None))),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn move_expiry(&self, expires_at_s: u64) -> Result<(), Error> {
        let living = self.living_for_sure().await?;
        let ids: Vec<_> = living.iter().filter_map(|it| it.instance_id().map(str::to_owned)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let call =
            self.client().await?.ec2.create_tags().set_resources(Some(ids)).tags(tags::expires(expires_at_s));
        call.send().await.map_err(|cause| Refusal::of("write the new time of expiry", cause))?;
        Ok(())
    }
}

impl Provider for Ec2 {
    fn name(&self) -> &'static str {
        "ec2"
    }

    fn start(&self) -> Pending<'_, ()> {
        Box::pin(async {
            self.seen().await?;
            // Before anything has the tag that follows from it.
            if self.settings.lab.is_none() { self.machine.keep() } else { Ok(()) }
        })
    }

    fn look_around(&self) -> Pending<'_, ()> {
        Box::pin(async { self.seen().await.map(drop) })
    }

    fn instances_max(&self) -> usize {
        LEARNER_LAB_MAX
    }

    fn instances_elsewhere(&self) -> usize {
        self.seen.get().map_or(0, |seen| seen.elsewhere)
    }

    fn instances_allowed(&self) -> usize {
        let is_learner_lab = self.seen.get().is_some_and(|seen| seen.is_learner_lab);
        if is_learner_lab { LEARNER_LAB_MAX } else { usize::MAX }
    }

    fn check_total(&self, total: usize) -> Result<(), Error> {
        self.judge_total(total)
    }

    fn check_type<'a>(&'a self, name: &'a str) -> Pending<'a, ()> {
        Box::pin(self.judge_type(name))
    }

    fn cost(&self, types: &[&str]) -> Cost {
        let region = self.client.get().map(|client| client.region.as_str());
        types::cost(types, region.or(self.settings.region.as_deref()).unwrap_or("us-east-1"))
    }

    fn vcpus(&self, instance_type: &str) -> Option<u32> {
        types::find(instance_type).map(|kind| kind.vcpus)
    }

    fn ensure_key<'a>(&'a self, key: &'a LoginKey) -> Pending<'a, ()> {
        Box::pin(self.settle_key(key))
    }

    fn ensure_group<'a>(&'a self, name: &'a str, ingress: &'a [Ingress]) -> Pending<'a, String> {
        Box::pin(self.settle_group(name, ingress))
    }

    fn admit_caller(&self) -> Pending<'_, ()> {
        Box::pin(self.follow_caller())
    }

    fn image<'a>(&'a self, name: &'a str, before: Option<&'a str>) -> Pending<'a, String> {
        Box::pin(self.find_image(name, before))
    }

    fn launch<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Vec<Instance>> {
        Box::pin(self.launch_fleet(launch))
    }

    fn latecomers<'a>(&'a self, launch: &'a Launch, known: &'a [Instance]) -> Pending<'a, Vec<String>> {
        Box::pin(self.await_other_launches(launch, known))
    }

    fn list(&self) -> Pending<'_, Vec<Instance>> {
        Box::pin(async { Ok(self.view(&self.living_for_sure().await?, &HostKeys::of(&self.store))) })
    }

    fn wait_running<'a>(&'a self, ids: &'a [String], deadline: Instant) -> Pending<'a, Vec<Instance>> {
        Box::pin(self.wait_until_running(ids, deadline))
    }

    fn welcome<'a>(&'a self, instance: &'a Instance, session: &'a Session) -> Pending<'a, bool> {
        Box::pin(self.replace_host_key(instance, session))
    }

    fn diagnose<'a>(&'a self, id: &'a str) -> Pending<'a, Option<String>> {
        Box::pin(self.console(id))
    }

    fn terminate<'a>(&'a self, ids: &'a [String]) -> Pending<'a, ()> {
        Box::pin(self.terminate_all(ids))
    }

    fn extend(&self, expires_at_s: u64) -> Pending<'_, ()> {
        Box::pin(self.move_expiry(expires_at_s))
    }

    fn is_expiry_kept_on_instances(&self) -> bool {
        true
    }

    fn rehearse<'a>(&'a self, step: &'a Step) -> Pending<'a, Vec<Change>> {
        Box::pin(self.rehearse_step(step))
    }

    fn examine(&self) -> Pending<'_, Vec<Trial>> {
        Box::pin(self.examine_account())
    }

    fn remains(&self) -> Pending<'_, Vec<String>> {
        Box::pin(self.what_remains())
    }

    fn destroy(&self, keep_bootstrap: bool) -> Pending<'_, Vec<String>> {
        Box::pin(self.remove_all(keep_bootstrap))
    }
}
