//! Who is calling, and what of theirs is there already: looked at once per run, before anything is changed.

use std::time::SystemTime;

use aws_sdk_ec2::types::Instance as Described;

use super::{
    Ec2,
    refusal::Refusal,
    tags::{self, Mine},
    view,
};
use crate::{Error, instance::State, units::epoch_s};

/// What the look found.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) mine: Mine,
    /// Instances of the same owner (in a Learner Lab: of the account) that are not of this lab.
    pub(super) elsewhere: usize,
    pub(super) is_learner_lab: bool,
}

/// A Learner Lab allows nine running instances in a region and deactivates an account at twenty.
pub(super) const LEARNER_LAB_MAX: usize = 9;
pub(super) const DANGER_FROM: usize = 20;

/// The role behind a Learner Lab's credentials.
fn is_learner_lab(arn: &str) -> bool {
    arn.contains(":assumed-role/voclabs/")
}

impl Ec2 {
    pub(super) async fn seen(&self) -> Result<&Seen, Error> {
        self.seen.get_or_try_init(|| self.look()).await
    }

    pub(super) async fn mine(&self) -> Result<&Mine, Error> {
        Ok(&self.seen().await?.mine)
    }

    async fn look(&self) -> Result<Seen, Error> {
        let (seen, _) = self.identify().await?;
        let elsewhere = self.look_elsewhere(&seen.mine, seen.is_learner_lab).await?;
        Ok(Seen { elsewhere, ..seen })
    }

    /// Who is calling, without a look at what is theirs, and the name that AWS has for them.
    pub(super) async fn identify(&self) -> Result<(Seen, String), Error> {
        let client = self.client().await?;
        let caller = client.sts.get_caller_identity().send().await;
        let caller = caller.map_err(|cause| Refusal::of("ask AWS who is calling", cause))?;
        let arn = caller.arn().unwrap_or_default().to_owned();
        let is_learner_lab = is_learner_lab(&arn);
        let owner = tags::value(self.settings.owner.as_deref().unwrap_or(&arn));
        self.say(&format!(
            "ec2: region {}, account {}, owner {owner}, lab {}{}{}",
            client.region,
            caller.account().unwrap_or("unknown"),
            self.lab,
            if is_learner_lab { " (Learner Lab)" } else { "" },
            client.expiry.as_ref().map_or_else(String::new, |expiry| format!("; {expiry}")),
        ));
        if let Some(warning) = self.machine.warning().filter(|_| self.settings.lab.is_none()) {
            self.say(&format!("{warning} --lab {}", self.lab));
        }
        let mine = Mine { lab: self.lab.clone(), owner };
        Ok((Seen { mine, elsewhere: 0, is_learner_lab }, arn))
    }

    /// Counts the owner's instances outside this lab, and names those whose time is over.
    async fn look_elsewhere(&self, mine: &Mine, is_learner_lab: bool) -> Result<usize, Error> {
        let mut filters =
            vec![tags::filter("instance-state-name", ["pending", "running", "stopping", "stopped"])];
        if !is_learner_lab {
            filters.push(tags::filter(&format!("tag:{}", tags::OWNER), [mine.owner.as_str()]));
        }
        let all = self.describe(&filters).await?;
        for line in expired(&all, epoch_s(SystemTime::now())) {
            self.say(&line);
        }
        let runs = |it: &&Described| matches!(view::state(it), State::Pending | State::Running);
        let others = |it: &&Described| tags::map(it.tags()).get(tags::LAB) != Some(&mine.lab.as_str());
        Ok(all.iter().filter(others).filter(runs).count())
    }

    /// Refuses what would cost a Learner Lab's account, and warns others.
    pub(super) fn judge_total(&self, total: usize) -> Result<(), Error> {
        let is_learner_lab = self.seen.get().is_some_and(|seen| seen.is_learner_lab);
        if is_learner_lab && total > LEARNER_LAB_MAX {
            return Err(Error::provider(format!(
                "there would be {total} instances, and a Learner Lab allows {LEARNER_LAB_MAX} in a region"
            ))
            .with_hint("Others would be terminated, and from 20 on the account is deactivated. Make the topology smaller."));
        }
        if total >= DANGER_FROM {
            self.say(&format!(
                "there will be {total} instances; an AWS Academy account with {DANGER_FROM} or more is deactivated"
            ));
        }
        Ok(())
    }
}

/// One line for each lab with instances whose time is over.
fn expired(all: &[Described], now_s: u64) -> Vec<String> {
    let mut labs: Vec<(&str, Vec<&str>)> = Vec::new();
    for it in all {
        let tags = tags::map(it.tags());
        let (Some(lab), Some(id)) = (tags.get(tags::LAB), it.instance_id()) else { continue };
        let ends = tags.get(tags::EXPIRES).and_then(|at| at.parse::<u64>().ok());
        if ends.is_none_or(|at| at > now_s) {
            continue;
        }
        match labs.iter_mut().find(|(known, _)| known == lab) {
            Some((_, ids)) => ids.push(id),
            None => labs.push((lab, vec![id])),
        }
    }
    let line = |(lab, ids): (&str, Vec<&str>)| {
        format!(
            "leftovers: {} of lab {lab} should have ended by themselves and cost money; remove them with: labhost \
             --provider ec2 recipes/stop.rhai --confirm --lab {lab}",
            ids.join(", ")
        )
    };
    labs.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::Tag;

    use super::*;

    fn tagged(id: &str, lab: &str, expires: &str) -> Described {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        Described::builder()
            .instance_id(id)
            .tags(tag(tags::LAB, lab))
            .tags(tag(tags::EXPIRES, expires))
            .build()
    }

    #[test]
    fn expired_leftovers_are_named_by_lab() {
        let all = [
            tagged("i-1", "a", "10"),
            tagged("i-2", "a", "99"),
            tagged("i-3", "b", "20"),
            tagged("i-4", "a", "9"),
        ];
        let lines = expired(&all, 50);
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].starts_with("leftovers: i-1, i-4 of lab a ") && lines[0].ends_with("--lab a"),
            "{lines:?}"
        );
    }

    #[test]
    fn learner_lab_is_known_by_its_role() {
        assert!(is_learner_lab("arn:aws:sts::1:assumed-role/voclabs/user1=A_B"));
        assert!(!is_learner_lab("arn:aws:iam::1:user/voclabs"));
    }
}
