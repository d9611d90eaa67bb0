//! `--plan`: what a run would do to the lab's resources, found without doing it.
//!
//! Reads are real and mutating calls are trials. A script cannot be planned completely: what it does on hosts is
//! only named, and what it would read from new hosts is empty. Nothing is written to disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::SystemTime,
};

use super::{Fleet, Lab, LaunchOptions, lock, plan::Wish};
use crate::{
    Error,
    instance::{Instance, State},
    keys,
    provider::{Change, Cost, Ingress, Launch, LoginKey, Step, Verb},
    units::epoch_s,
};

/// Addresses of instances that do not exist yet: TEST-NET-1 (RFC 5737), which nobody has.
const PLACEHOLDER_NET: [u8; 3] = [192, 0, 2];

/// What has been found out so far.
#[derive(Debug, Clone, Default)]
pub struct Rehearsal {
    pub changes: Vec<Change>,
    /// The instances that there would be.
    pub instances: Vec<Instance>,
    /// Ids of those that would have gone by now.
    gone: BTreeSet<String>,
}

impl Rehearsal {
    /// Whether a run would change any resource.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.changes.iter().any(|change| change.verb != Verb::Keep)
    }
}

impl Lab {
    /// Makes this lab one that only plans.
    pub fn plan_only(&mut self) {
        self.rehearsal = Some(std::sync::Mutex::default());
    }

    #[must_use]
    pub fn is_planning(&self) -> bool {
        self.rehearsal.is_some()
    }

    /// What a run would do, and what the lab would cost then.
    pub fn rehearsal(&self) -> Option<(Rehearsal, Cost)> {
        let rehearsal = lock(self.rehearsal.as_ref()?).clone();
        let types: Vec<_> = rehearsal.instances.iter().map(|it| it.instance_type.as_str()).collect();
        let cost = self.provider.cost(&types);
        Some((rehearsal, cost))
    }

    fn note(&self, changes: Vec<Change>, instances: &[Instance]) {
        if let Some(rehearsal) = &self.rehearsal {
            let mut rehearsal = lock(rehearsal);
            rehearsal.changes.extend(changes);
            rehearsal.instances.extend_from_slice(instances);
        }
    }

    async fn rehearse(&self, step: Step) -> Result<(), Error> {
        self.prepare().await?;
        let changes = self.provider.rehearse(&step).await?;
        self.note(changes, &[]);
        Ok(())
    }

    pub(super) async fn rehearse_key(&self, key: LoginKey) -> Result<(), Error> {
        self.rehearse(Step::Key(key)).await
    }

    pub(super) async fn rehearse_group(&self, name: &str, ingress: &[Ingress]) -> Result<String, Error> {
        self.rehearse(Step::Group { name: name.to_owned(), ingress: ingress.to_vec() }).await?;
        Ok(name.to_owned())
    }

    /// Plans one fleet; its new members are placeholders.
    pub(super) async fn rehearse_fleet(
        &self,
        wish: &Wish,
        options: LaunchOptions,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Fleet, Error> {
        self.prepare().await?;
        let mut existing = self.provider.list().await?;
        let rehearsal = self.rehearsal().map(|(rehearsal, _)| rehearsal).unwrap_or_default();
        existing.retain(|it| !rehearsal.gone.contains(&it.id));
        existing.extend(rehearsal.instances.into_iter().filter(|it| it.state == State::Pending));
        let mut plan = wish.plan(&existing);
        let first = self.first_to_go(&existing, wish, &plan)?;
        self.make_room(first, &mut existing, &mut plan, say).await?;
        let mut instances = plan.keep;
        let kept = instances.iter().map(|it| Change { verb: Verb::Keep, what: in_words(it) }).collect();
        self.note(kept, &instances);
        let launch = self.trial_launch(wish, plan.launch, options);
        let placeholders = placeholders(&launch, existing.len());
        if !launch.slots.is_empty() {
            self.rehearse(Step::Launch(launch)).await?;
        }
        self.note(Vec::new(), &placeholders);
        let launched = placeholders.iter().map(|it| it.name.clone()).collect();
        instances.extend(placeholders);
        self.note_fleet(wish, None, &plan.retire);
        Ok(Fleet { instances, launched, retiring: plan.retire })
    }

    fn trial_launch(&self, wish: &Wish, slots: Vec<u32>, options: LaunchOptions) -> Launch {
        Launch {
            token: format!("plan-{}", wish.fleet),
            fleet: wish.fleet.clone(),
            instance_type: wish.instance_type.clone(),
            slots,
            cluster: wish.cluster.clone(),
            role: wish.role.clone(),
            key: options.key,
            group: options.group,
            image: options.image,
            tags: BTreeMap::new(),
            expires_at_s: epoch_s(SystemTime::now() + self.limits.ttl.0),
        }
    }

    /// Plans that these go.
    pub(super) async fn rehearse_retirement(&self, instances: &[Instance]) -> Result<(), Error> {
        self.rehearse(Step::Terminate(instances.to_vec())).await?;
        if let Some(rehearsal) = &self.rehearsal {
            lock(rehearsal).gone.extend(instances.iter().map(|it| it.id.clone()));
        }
        Ok(())
    }

    /// Plans that everything goes.
    pub(super) fn rehearse_destruction(&self, remains: Vec<String>) {
        let changes = remains.into_iter().map(|what| Change { verb: Verb::Remove, what }).collect();
        self.note(changes, &[]);
    }

    /// The key pair as it is, or one that is thrown away after the trial.
    pub(super) fn trial_key(&self, name: &str) -> Result<keys::KeyPair, Error> {
        keys::read_or_draw(&self.dir.join("keys"), name)
    }
}

fn in_words(instance: &Instance) -> String {
    format!("instance {} ({}, {})", instance.name, instance.instance_type, instance.id)
}

fn placeholders(launch: &Launch, existing: usize) -> Vec<Instance> {
    let place = |(index, &slot): (usize, &u32)| {
        let [a, b, c] = PLACEHOLDER_NET;
        let address = Some(Ipv4Addr::new(a, b, c, ((existing + index) % 254 + 1) as u8));
        Instance {
            id: format!("i-planned-{}-{slot}", launch.fleet),
            instance_type: launch.instance_type.clone(),
            state: State::Pending,
            public_ip: address,
            private_ip: address,
            cluster: launch.cluster.clone(),
            name: format!("{}-{slot}", launch.fleet),
            fleet: launch.fleet.clone(),
            slot,
            role: launch.role.clone(),
            user: "planned".to_owned(),
            ssh_port: 22,
            http_port: 80,
            host_key: "planned".to_owned(),
            emulated: false,
            launched_at_s: 0,
            expires_at_s: launch.expires_at_s,
        }
    };
    launch.slots.iter().enumerate().map(place).collect()
}
