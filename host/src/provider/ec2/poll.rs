//! Looking at instances, and waiting until they run or are gone: one call for all of them.

use std::time::SystemTime;

use aws_sdk_ec2::types::{Filter, Instance as Described};
use tokio::time::Instant;

use super::{
    Ec2,
    refusal::Refusal,
    store::Attempt,
    tags,
    view::{self, HostKeys},
};
use crate::{
    Error,
    instance::{Instance, State, is_running},
    units::epoch_s,
};

/// States in which an instance counts as one of the lab's.
const LIVING: [&str; 4] = ["pending", "running", "stopping", "stopped"];

/// For how many seconds a listing may not show what was launched.
const EVENTUAL_S: u64 = 60;

/// What was launched since then, in seconds since the epoch, need not be listed yet.
pub(super) fn young_since_s() -> u64 {
    epoch_s(SystemTime::now()).saturating_sub(EVENTUAL_S)
}

/// How many values AWS takes in one filter.
const FILTER_VALUES_MAX: usize = 200;

/// AWS's code for ids that it does not know, or not yet.
const UNKNOWN_ID: &str = "InvalidInstanceID.NotFound";

impl Ec2 {
    pub(super) async fn describe(&self, filters: &[Filter]) -> Result<Vec<Described>, Error> {
        let call = self.client().await?.ec2.describe_instances().set_filters(Some(filters.to_vec()));
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let found = found.map_err(|cause| Refusal::of("list instances", cause))?;
        Ok(found.into_iter().flat_map(|reservation| reservation.instances.unwrap_or_default()).collect())
    }

    /// Those of these instances that AWS knows; by a filter, because naming one that it does not know would make it
    /// refuse to show the others.
    async fn describe_ids(&self, ids: &[String]) -> Result<Vec<Described>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(FILTER_VALUES_MAX) {
            let filter = tags::filter("instance-id", ids.iter().map(String::as_str));
            found.extend(self.describe(&[filter]).await?);
        }
        Ok(found)
    }

    /// The lab's instances that are not gone or going.
    pub(super) async fn living(&self) -> Result<Vec<Described>, Error> {
        self.describe(&[tags::of_lab(&self.lab), tags::filter("instance-state-name", LIVING)]).await
    }

    /// As [`Ec2::living`], with what was launched a moment ago: a listing by tags may not show it yet, and it must
    /// not be launched twice.
    pub(super) async fn living_for_sure(&self) -> Result<Vec<Described>, Error> {
        let mut living = self.living().await?;
        let since_s = young_since_s();
        let young = self.store.attempts().into_iter().filter(|it| it.made_at_s >= since_s);
        let listed = |id: &String| living.iter().any(|it| it.instance_id() == Some(id));
        let unlisted: Vec<String> = young.flat_map(|it| it.ids).filter(|id| !listed(id)).collect();
        if unlisted.is_empty() {
            return Ok(living);
        }
        let mut waiting = self.pace.waiting(self.pace.eventual);
        let found = loop {
            let found = self.describe_ids(&unlisted).await?;
            if found.len() == unlisted.len() || !waiting.go_on().await {
                break found;
            }
        };
        let lives = |it: &Described| !matches!(view::state(it), State::Terminated | State::ShuttingDown);
        let is_ours = |it: &Described| tags::map(it.tags()).get(tags::LAB) == Some(&self.lab.as_str());
        living.extend(found.into_iter().filter(|it| lives(it) && is_ours(it)));
        Ok(living)
    }

    /// All instances with the lab's tag, also those that are gone, once everything is listed that these launches may
    /// have made a moment ago.
    pub(super) async fn describe_when_settled(&self, launches: &[Attempt]) -> Result<Vec<Described>, Error> {
        let mut waiting = self.pace.waiting(self.pace.eventual);
        let mut has_said = false;
        loop {
            let listed = self.describe(&[tags::of_lab(&self.lab)]).await?;
            let unseen: Vec<_> = launches.iter().flat_map(|it| it.unseen(young_since_s(), &listed)).collect();
            if unseen.is_empty() {
                return Ok(listed);
            }
            if !has_said {
                has_said = true;
                self.say(&format!(
                    "AWS does not list {} yet, of a moment ago; waiting, {} s at most",
                    unseen.join(", "),
                    waiting.limit().as_secs()
                ));
            }
            if !waiting.go_on().await {
                return Ok(listed);
            }
        }
    }

    /// In labhost's words, ordered by fleet and slot.
    pub(super) fn view(&self, described: &[Described], keys: &HostKeys) -> Vec<Instance> {
        let mut known = self.known();
        for it in described {
            if let (Some(id), Some(token)) = (it.instance_id(), it.client_token()) {
                known.launched.insert(id.to_owned(), (token.to_owned(), view::launch_index(it)));
            }
        }
        drop(known);
        let mut instances: Vec<_> =
            described.iter().filter_map(|it| view::instance(it, keys, &self.reach)).collect();
        instances.sort_by(|one, other| {
            (&one.fleet, one.slot, &one.id).cmp(&(&other.fleet, other.slot, &other.id))
        });
        instances
    }

    pub(super) async fn wait_until_running(
        &self,
        ids: &[String],
        deadline: Instant,
    ) -> Result<Vec<Instance>, Error> {
        let mut waiting = self.pace.waiting(deadline.saturating_duration_since(Instant::now()));
        let mut has_started = false;
        loop {
            let found = self.describe_ids(ids).await?;
            // Launched a moment ago: not every part of AWS knows it yet.
            if waiting.elapsed() >= self.pace.eventual {
                check_known(ids, &found)?;
            }
            check_alive(&found)?;
            let instances = self.view(&found, &HostKeys::of(&self.store));
            let running: Vec<_> = ids
                .iter()
                .filter_map(|id| instances.iter().find(|it| it.id == *id && is_running(it)))
                .cloned()
                .collect();
            if running.len() == ids.len() {
                return Ok(running);
            }
            let stopped: Vec<_> = instances.iter().filter(|it| it.state == State::Stopped).collect();
            if !stopped.is_empty() && !has_started {
                has_started = true;
                self.start_again(&stopped).await?;
            }
            if !waiting.go_on().await {
                return Err(still_waiting(ids, &instances));
            }
        }
    }

    /// A Learner Lab stops instances at the end of a session.
    async fn start_again(&self, stopped: &[&Instance]) -> Result<(), Error> {
        let names: Vec<_> = stopped.iter().map(|it| it.name.as_str()).collect();
        let ids = stopped.iter().map(|it| it.id.clone()).collect();
        self.say(&format!("starting {} again, which were stopped", names.join(", ")));
        let call = self.client().await?.ec2.start_instances().set_instance_ids(Some(ids));
        call.send().await.map_err(|cause| Refusal::of("start instances again", cause))?;
        Ok(())
    }

    /// Terminates and waits until they are terminated. One that AWS does not know counts as gone when it has not
    /// appeared for as long as AWS may take to know what it made; the others are waited for all the same.
    pub(super) async fn terminate_all(&self, ids: &[String]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        self.ask_to_terminate(ids).await?;
        let mut waiting = self.pace.waiting(self.pace.terminate);
        loop {
            let found = self.describe_ids(ids).await?;
            let is_gone = |id: &&String| match found.iter().find(|it| it.instance_id() == Some(id)) {
                Some(it) => view::state(it) == State::Terminated,
                None => waiting.elapsed() >= self.pace.eventual,
            };
            let left: Vec<_> = ids.iter().filter(|id| !is_gone(id)).map(String::as_str).collect();
            if left.is_empty() {
                return Ok(());
            }
            if !waiting.go_on().await {
                let message = format!(
                    "terminate {}: still there after {} s",
                    left.join(", "),
                    waiting.limit().as_secs()
                );
                return Err(
                    Error::host(message).with_hint("AWS goes on by itself; run again to see it through.")
                );
            }
        }
    }

    /// One call for all; when AWS does not know one of them it refuses the whole call, so that each is then asked for
    /// by itself, and those that stay unknown again until AWS must know them.
    async fn ask_to_terminate(&self, ids: &[String]) -> Result<(), Error> {
        match self.terminate_at_once(ids).await {
            Err(refusal) if refusal.is(UNKNOWN_ID) => {}
            done => return done.map_err(Error::from),
        }
        let mut waiting = self.pace.waiting(self.pace.eventual);
        let mut unknown = ids.to_vec();
        loop {
            let (mut still, mut failure) = (Vec::new(), None);
            for id in unknown {
                match self.terminate_at_once(std::slice::from_ref(&id)).await {
                    Err(refusal) if refusal.is(UNKNOWN_ID) => still.push(id),
                    // The others are to be asked for as well.
                    done => failure = failure.or_else(|| done.err()),
                }
            }
            if let Some(refusal) = failure {
                return Err(refusal.into());
            }
            if still.is_empty() || !waiting.go_on().await {
                return Ok(());
            }
            unknown = still;
        }
    }

    async fn terminate_at_once(&self, ids: &[String]) -> Result<(), Refusal> {
        let operation = format!("terminate {}", ids.join(", "));
        let client = self.client().await.map_err(|error| Refusal::before(&operation, error))?;
        let call = client.ec2.terminate_instances().set_instance_ids(Some(ids.to_vec()));
        call.send().await.map(drop).map_err(|cause| Refusal::of(operation, cause))
    }

    /// The end of what the instance printed while booting; AWS has it late or never.
    pub(super) async fn console(&self, id: &str) -> Result<Option<String>, Error> {
        const LINES: usize = 15;
        let answer = self.client().await?.ec2.get_console_output().instance_id(id).send().await;
        let answer = answer.map_err(|cause| Refusal::of(format!("read the console of {id}"), cause))?;
        let bytes =
            answer.output().and_then(|text| aws_smithy_types::base64::decode(text).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        let has_text = !end.trim().is_empty();
        Ok(Some(if has_text {
            format!("console of {id}, its end:\n{end}")
        } else {
            format!("AWS has no console output of {id} yet")
        }))
    }
}

/// An instance that has ended will not run any more: no need to wait for the deadline.
fn check_alive(found: &[Described]) -> Result<(), Error> {
    let dead = found.iter().find(|it| matches!(view::state(it), State::Terminated | State::ShuttingDown));
    let Some(dead) = dead else { return Ok(()) };
    let id = dead.instance_id().unwrap_or_default();
    let message = format!("wait for {id}: it has ended: {}", view::reason(dead));
    Err(Error::host(message).with_hint("Run again: it is replaced."))
}

/// An instance that AWS still does not know when it must is not waited for any longer.
fn check_known(ids: &[String], found: &[Described]) -> Result<(), Error> {
    let is_known = |id: &&String| found.iter().any(|it| it.instance_id() == Some(id));
    let unknown: Vec<_> = ids.iter().filter(|id| !is_known(id)).map(String::as_str).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::host(format!("wait for {}: AWS does not know it", unknown.join(", ")))
        .with_hint("It was removed meanwhile: run again to make it anew."))
}

fn still_waiting(ids: &[String], instances: &[Instance]) -> Error {
    let words = |id: &String| match instances.iter().find(|it| it.id == *id) {
        None => Some(format!("{id} (AWS does not know it)")),
        Some(it) if is_running(it) => None,
        Some(it) => Some(format!("{} ({:?})", it.name, it.state).to_lowercase()),
    };
    let waiting: Vec<_> = ids.iter().filter_map(words).collect();
    Error::host(format!("wait for {}: still not running", waiting.join(", ")))
        .with_hint("Raise `timeout` of ec2::wait, or look at `labhost status`.")
}
