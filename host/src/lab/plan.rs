//! What to do so that a fleet is as the recipe says: pure, from the wish and what exists.
//!
//! It launches and terminates nothing; that is `fleet`.

use crate::instance::{Instance, State};

/// A fleet as a recipe asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub fleet: String,
    pub instance_type: String,
    pub count: u32,
    pub cluster: Option<String>,
    pub role: Option<String>,
}

/// What makes the fleet so. Retired instances go only after their replacements serve, where there is room for both.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FleetPlan {
    /// Members that stay, ordered by slot.
    pub keep: Vec<Instance>,
    /// Slots to launch.
    pub launch: Vec<u32>,
    /// Members to drain and terminate, each with the reason in words.
    pub retire: Vec<(Instance, String)>,
}

impl Wish {
    /// Whether this instance is what the recipe asks for in its slot.
    fn fits(&self, instance: &Instance) -> bool {
        instance.instance_type == self.instance_type
            && instance.cluster == self.cluster
            && instance.role == self.role
            && !instance.host_key.is_empty()
    }

    fn misfit(&self, instance: &Instance) -> String {
        if instance.host_key.is_empty() {
            "its host key was lost with the lab's state, so nobody can log in safely".to_owned()
        } else if instance.instance_type == self.instance_type {
            let was = instance.cluster.as_deref().unwrap_or("none");
            let wanted = self.cluster.as_deref().unwrap_or("none");
            format!("cluster or role changed from {was} to {wanted}")
        } else {
            format!("type changed from {} to {}", instance.instance_type, self.instance_type)
        }
    }

    /// Compares the wish with all instances of the lab; instances of other fleets are ignored.
    #[must_use]
    pub fn plan(&self, existing: &[Instance]) -> FleetPlan {
        let mut plan = FleetPlan::default();
        let mut members: Vec<_> =
            existing.iter().filter(|instance| instance.fleet == self.fleet && is_alive(instance)).collect();
        // The newest first, so that after an interrupted replacement the newer one stays.
        members.sort_by_key(|instance| {
            (instance.slot, std::cmp::Reverse(instance.launched_at_s), instance.id.clone())
        });
        for instance in members {
            let taken = plan.keep.iter().any(|kept| kept.slot == instance.slot);
            let reason = match instance.slot {
                slot if slot > self.count => Some(format!("the recipe asks for {}", self.count)),
                _ if !self.fits(instance) => Some(self.misfit(instance)),
                _ if taken => Some("a newer one has its place".to_owned()),
                _ => None,
            };
            match reason {
                Some(reason) => plan.retire.push((instance.clone(), reason)),
                None => plan.keep.push(instance.clone()),
            }
        }
        plan.launch =
            (1..=self.count).filter(|slot| !plan.keep.iter().any(|kept| kept.slot == *slot)).collect();
        plan
    }
}

impl FleetPlan {
    /// Those to retire, in the order in which they make room: before others those that nobody replaces, and the last.
    pub(super) fn leaving(&self) -> Vec<(Instance, String)> {
        let mut leaving = self.retire.clone();
        leaving.sort_by_key(|(it, _)| (self.launch.contains(&it.slot), std::cmp::Reverse(it.slot)));
        leaving
    }
}

/// Whether it is there or will be.
pub(super) fn is_alive(instance: &Instance) -> bool {
    !matches!(instance.state, State::Terminated | State::ShuttingDown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::testing::instance;

    fn wish(instance_type: &str, count: u32) -> Wish {
        Wish {
            fleet: "micro".into(),
            instance_type: instance_type.into(),
            count,
            cluster: Some("cluster2".into()),
            role: None,
        }
    }

    fn member(slot: u32) -> Instance {
        instance("micro", slot, "t2.micro", Some("cluster2"))
    }

    #[test]
    fn nothing_exists_so_all_slots_are_launched() {
        assert_eq!(wish("t2.micro", 3).plan(&[]).launch, [1, 2, 3]);
    }

    #[test]
    fn second_run_launches_nothing() {
        let plan = wish("t2.micro", 2).plan(&[member(2), member(1)]);
        assert_eq!(plan.keep.iter().map(|i| i.slot).collect::<Vec<_>>(), [1, 2]);
        assert!(plan.launch.is_empty() && plan.retire.is_empty());
    }

    #[test]
    fn dead_member_is_replaced_in_its_slot() {
        let mut dead = member(1);
        dead.state = State::Terminated;
        assert_eq!(wish("t2.micro", 2).plan(&[dead, member(2)]).launch, [1]);
    }

    #[test]
    fn changed_type_launches_anew_and_retires_the_old_one() {
        let plan = wish("t2.small", 1).plan(&[member(1)]);
        assert_eq!(plan.launch, [1]);
        assert!(plan.retire[0].1.contains("t2.micro to t2.small"), "{:?}", plan.retire);
    }

    #[test]
    fn member_whose_host_key_is_lost_is_replaced() {
        let lost = Instance { host_key: String::new(), ..member(1) };
        let plan = wish("t2.micro", 1).plan(&[lost]);
        assert_eq!(plan.launch, [1]);
        assert!(plan.retire[0].1.contains("host key"), "{:?}", plan.retire);
    }

    #[test]
    fn surplus_is_retired_from_the_end() {
        let plan = wish("t2.micro", 1).plan(&[member(1), member(2), member(3)]);
        assert_eq!(plan.retire.iter().map(|(i, _)| i.slot).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn interrupted_replacement_keeps_the_newer_one() {
        let (old, mut new) = (member(1), member(1));
        new.id = "i-new".into();
        new.launched_at_s = old.launched_at_s + 5;
        let plan = wish("t2.micro", 1).plan(&[old.clone(), new.clone()]);
        assert_eq!((plan.keep, plan.retire[0].0.id.clone()), (vec![new], old.id));
    }

    #[test]
    fn room_is_made_by_those_that_nobody_replaces_and_from_the_end() {
        let plan = wish("t2.small", 2).plan(&[member(1), member(2), member(3)]);
        assert_eq!(plan.leaving().iter().map(|(i, _)| i.slot).collect::<Vec<_>>(), [3, 2, 1]);
        let plan = wish("t2.micro", 2).plan(&[
            member(1),
            Instance { host_key: String::new(), ..member(2) },
            member(3),
        ]);
        assert_eq!(plan.leaving().iter().map(|(i, _)| i.slot).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn other_fleets_are_left_alone() {
        let other = instance("large", 1, "t2.large", Some("cluster1"));
        let plan = wish("t2.micro", 0).plan(&[other]);
        assert_eq!(plan, FleetPlan::default());
    }
}
