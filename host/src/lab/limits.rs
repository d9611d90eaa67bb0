//! What a lab may cost, in instances and in money, judged before anything is launched.

use std::time::SystemTime;

use super::{Lab, plan::Wish};
use crate::{
    Error,
    instance::Instance,
    provider::Cost,
    units::{Span, epoch_s},
};

/// What a run may cost: how long instances live and how many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub ttl: Span,
    /// The most that `ttl`, or an extension, may be.
    pub ttl_max: Span,
    /// `None` stands for the provider's own ceiling.
    pub instances_max: Option<usize>,
    /// In US dollars, for all instances of the lab together.
    pub hourly_max: Option<f64>,
}

impl Limits {
    /// Errors when a lifetime from now is longer than allowed: a mistyped one costs days.
    pub fn check_ttl(&self, ttl: Span) -> Result<(), Error> {
        if ttl <= self.ttl_max {
            return Ok(());
        }
        Err(Error::usage(format!("a lab may live for {} at most, and {ttl} was asked for", self.ttl_max))
            .with_hint(format!("Raise it with --max-ttl {ttl} if that is meant.")))
    }
}

impl Lab {
    /// Refuses a launch that would make the lab too large or too dear.
    pub(super) fn check_limits(
        &self,
        existing: &[Instance],
        wish: &Wish,
        launch: &[u32],
    ) -> Result<(), Error> {
        if launch.is_empty() {
            return Ok(());
        }
        self.check_ceiling(existing.len(), launch.len())?;
        let Some(max) = self.limits.hourly_max else { return Ok(()) };
        let new = launch.iter().map(|_| wish.instance_type.as_str());
        let types: Vec<_> = existing.iter().map(|it| it.instance_type.as_str()).chain(new).collect();
        let cost = self.provider.cost(&types);
        match cost.usd_per_hour {
            Some(usd) if usd <= max => Ok(()),
            Some(usd) => Err(Error::provider(format!(
                "launch {}: the lab would cost {usd:.3} dollars per hour, and the limit is {max}",
                wish.fleet
            ))
            .with_hint("Raise it with --max-hourly if that is meant.")),
            None => Err(Error::provider(format!("launch {}: {}", wish.fleet, cost.note))
                .with_hint("With --max-hourly only types of known price can be launched.")),
        }
    }

    fn ceiling(&self) -> usize {
        self.limits.instances_max.unwrap_or_else(|| self.provider.instances_max())
    }

    /// How many of `going` must go before `launch` new ones fit under the ceiling: all of them where even that is not
    /// enough room, because then the launch is refused, and none where nothing is launched.
    pub(super) fn surplus(&self, existing: usize, launch: usize, going: usize) -> usize {
        let max = self.ceiling().min(self.provider.instances_allowed());
        let total = existing + self.provider.instances_elsewhere() + launch;
        if launch == 0 { 0 } else { total.saturating_sub(max).min(going) }
    }

    fn check_ceiling(&self, existing: usize, launch: usize) -> Result<(), Error> {
        let elsewhere = self.provider.instances_elsewhere();
        let total = existing + elsewhere + launch;
        let max = self.ceiling();
        // What the account does not allow is not to be raised.
        if total <= max || total > self.provider.instances_allowed() {
            return self.provider.check_total(total);
        }
        let others =
            if elsewhere == 0 { String::new() } else { format!(" here and {elsewhere} outside this lab") };
        let message = format!(
            "launch {launch} instances: with the {existing} that stay{others} there would be {total}, and the ceiling is \
             {max}"
        );
        Err(Error::provider(message)
            .with_hint(format!("Raise it with --max-instances {total} if that is meant.")))
    }

    /// All members of a lab end together, so a later launch takes the time of the first.
    pub(super) fn expiry(&self, existing: &[Instance]) -> u64 {
        let fresh = epoch_s(SystemTime::now() + self.limits.ttl.0);
        existing.iter().map(|instance| instance.expires_at_s).max().unwrap_or(fresh)
    }

    /// How many instances there are, and what they cost; when planning, how many there would be.
    pub async fn cost(&self) -> Result<(usize, Cost), Error> {
        if let Some((rehearsal, cost)) = self.rehearsal() {
            return Ok((rehearsal.instances.len(), cost));
        }
        let instances = self.last_seen().await?;
        let types: Vec<_> = instances.iter().map(|it| it.instance_type.as_str()).collect();
        Ok((instances.len(), self.provider.cost(&types)))
    }
}
