//! Fleets: what is missing is launched, once whatever happens in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Lab, Ledger, ids,
    journal::Phase,
    lock, merged,
    plan::{self, FleetPlan, Wish},
};
use crate::{Error, instance::Instance, provider::Launch, units::epoch_s};

/// What became of a fleet.
#[derive(Debug)]
pub struct Fleet {
    /// Its members, ordered by slot.
    pub instances: Vec<Instance>,
    /// Names of those that were launched now.
    pub launched: Vec<String>,
    /// Those that will be drained and terminated when the recipe has ended, with the reason. Others have made room.
    pub retiring: Vec<(Instance, String)>,
}

/// The parts of a launch that are not the wish itself.
#[derive(Debug, Clone, Default)]
pub struct LaunchOptions {
    pub key: String,
    pub group: Option<String>,
    pub image: Option<String>,
    pub tags: BTreeMap<String, String>,
}

impl Lab {
    /// Makes the fleet be as wished, except that members to go only go in [`Lab::retire`]. Where the ceiling leaves no
    /// room for old and new ones together, as many as needed go before, which `say` is told.
    pub async fn ensure_fleet(
        &self,
        wish: &Wish,
        options: LaunchOptions,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Fleet, Error> {
        if self.is_planning() {
            return self.rehearse_fleet(wish, options, say).await;
        }
        let ledger = self.active().await?;
        let (mut all, plan, launch) = self.decide(&ledger, wish, &options, say).await?;
        let mut instances = plan.keep;
        let mut launched = Vec::new();
        if let Some(launch) = launch {
            let made = self.launch(&ledger, launch).await?;
            launched = made.iter().map(|instance| instance.name.clone()).collect();
            all = merged(all, &made);
            instances.extend(made);
            instances.sort_by_key(|instance| instance.slot);
        }
        self.note_fleet(wish, options.group, &plan.retire);
        self.renew_views(&all)?;
        Ok(Fleet { instances, launched, retiring: plan.retire })
    }

    /// Those that must go before what is launched has room, of this fleet or of fleets before it; errors when what is
    /// launched is too much all the same.
    pub(super) fn first_to_go(
        &self,
        all: &[Instance],
        wish: &Wish,
        plan: &FleetPlan,
    ) -> Result<Vec<Instance>, Error> {
        let mut first = lock(&self.session).retiring.clone();
        first.extend(plan.leaving());
        let mut seen = BTreeSet::new();
        first.retain(|(it, _)| seen.insert(it.id.clone()));
        first.truncate(self.surplus(all.len(), plan.launch.len(), first.len()));
        let first: Vec<Instance> = first.into_iter().map(|(it, _)| it).collect();
        let mut staying = all.to_vec();
        staying.retain(|it| first.iter().all(|gone| gone.id != it.id));
        self.check_limits(&staying, wish, &plan.launch)?;
        Ok(first)
    }

    /// Terminates these, which are then neither in `all` nor in the plan.
    pub(super) async fn make_room(
        &self,
        first: Vec<Instance>,
        all: &mut Vec<Instance>,
        plan: &mut FleetPlan,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(), Error> {
        if first.is_empty() {
            return Ok(());
        }
        say(&no_room(&first, plan.launch.len()));
        self.retire(&first).await?;
        let stays = |it: &Instance| first.iter().all(|gone| gone.id != it.id);
        all.retain(stays);
        plan.retire.retain(|(it, _)| stays(it));
        lock(&self.session).retiring.retain(|(it, _)| stays(it));
        Ok(())
    }

    /// What there is, what becomes of it, and what is to be launched, for which there is then room. What an interrupted
    /// run has launched may be listed late; then all is decided again.
    async fn decide(
        &self,
        ledger: &Ledger,
        wish: &Wish,
        options: &LaunchOptions,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(Vec<Instance>, FleetPlan, Option<Launch>), Error> {
        // Each time there is another launch to be asked for; a run that was interrupted leaves one or two.
        const TIMES_MAX: usize = 5;
        let mut late = Vec::new();
        for _ in 0..TIMES_MAX {
            let mut all = self.list().await?;
            let mut plan = wish.plan(&all);
            let first = self.first_to_go(&all, wish, &plan)?;
            if plan.launch.is_empty() {
                return Ok((all, plan, None));
            }
            let slots = plan.launch.clone();
            let launch = launch_of(ledger, wish, slots, options.clone(), self.expiry(&all));
            late = self.provider.latecomers(&launch, &all).await?;
            if late.is_empty() {
                self.make_room(first, &mut all, &mut plan, say).await?;
                return Ok((all, plan, Some(launch)));
            }
        }
        let message =
            format!("launch {}: {} of an interrupted run have appeared", wish.fleet, late.join(", "));
        Err(Error::provider(message).with_hint("Run again: they are taken over."))
    }

    /// Launches, recorded. A token that was used before may stand for instances of which some are gone by now: those,
    /// and only those, are launched with the next one.
    async fn launch(&self, ledger: &Ledger, mut launch: Launch) -> Result<Vec<Instance>, Error> {
        const TOKENS_MAX: u32 = 5;
        let mut alive = Vec::new();
        for _ in 0..TOKENS_MAX {
            let intent = ledger.journal.intend("launch", json!(launch))?;
            let made = intent.end(self.provider.launch(&launch).await, |made| json!({ "ids": ids(made) }))?;
            alive.extend(made.into_iter().filter(plan::is_alive));
            launch.slots.retain(|slot| alive.iter().all(|it: &Instance| it.slot != *slot));
            if launch.slots.is_empty() {
                return Ok(alive);
            }
            launch.token = token(&[&launch.token, "next"]);
        }
        Err(Error::provider(format!(
            "launch of {}: its instances end as soon as they are made",
            launch.fleet
        )))
    }

    pub(super) fn note_fleet(&self, wish: &Wish, group: Option<String>, retire: &[(Instance, String)]) {
        let mut session = lock(&self.session);
        session.fleets.insert(wish.fleet.clone());
        if let Some(group) = group {
            session.run.groups.insert(wish.fleet.clone(), group);
        }
        session.retiring.extend_from_slice(retire);
    }
}

fn no_room(first: &[Instance], launch: usize) -> String {
    let words = |it: &Instance| format!("{} ({}, {})", it.name, it.instance_type, it.id);
    let words: Vec<_> = first.iter().map(words).collect();
    format!(
        "the ceiling leaves no room for {launch} new instances beside the old ones, so these are terminated before they \
         are replaced, and requests to them fail: {}",
        words.join(", ")
    )
}

/// The request for these slots. Its token depends on the launches of this fleet that are known to be done, so a
/// launch whose answer was lost is asked for again with the same token and made only once.
fn launch_of(
    ledger: &Ledger,
    wish: &Wish,
    slots: Vec<u32>,
    options: LaunchOptions,
    expires_at_s: u64,
) -> Launch {
    let records = ledger.journal.records();
    let ours = |of: Option<u64>| {
        records.iter().any(|record| Some(record.line) == of && record.data["fleet"] == wish.fleet.as_str())
    };
    let generation = records
        .iter()
        .filter(|record| record.phase == Phase::Done && record.step == "launch" && ours(record.of))
        .count();
    let (slots_text, generation) = (format!("{slots:?}"), generation.to_string());
    let token = token(&[&ledger.lab, &wish.fleet, &wish.instance_type, &slots_text, &generation]);
    // The same request again must be the same in every part, or the token is refused.
    let asked = records.iter().rev().find(|it| it.step == "launch" && it.data["token"] == token.as_str());
    let asked_s = asked.and_then(|it| it.data["expires_at_s"].as_u64());
    let expires_at_s = asked_s.filter(|at| *at > epoch_s(SystemTime::now())).unwrap_or(expires_at_s);
    Launch {
        token,
        fleet: wish.fleet.clone(),
        instance_type: wish.instance_type.clone(),
        slots,
        cluster: wish.cluster.clone(),
        role: wish.role.clone(),
        key: options.key,
        group: options.group,
        image: options.image,
        tags: options.tags,
        expires_at_s,
    }
}

/// 32 hexadecimal digits that follow from these parts.
fn token(parts: &[&str]) -> String {
    Sha256::digest(parts.join("|")).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
