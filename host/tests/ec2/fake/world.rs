//! What exists in the fake's account: its ledger.

use std::collections::{BTreeMap, HashMap};

use super::{hosts::Door, query::Filter, xml::Xml};

/// Where everything is.
pub(crate) const VPC: &str = "vpc-0default";
pub(crate) const ACCOUNT: &str = "123456789012";
pub(crate) const IMAGE: &str = "ami-0jammy2";
/// An image whose disks would outlive an instance, and they.
pub(crate) const LASTING_IMAGE: &str = "ami-0lasting";
pub(crate) const LASTING_DISKS: [(&str, u32); 2] = [("/dev/sda1", 8), ("/dev/sdf", 20)];
/// Default subnets, by zone; in an order that is not that of the zones.
pub(crate) const SUBNETS: [(&str, &str); 3] =
    [("subnet-0c", "us-east-1c"), ("subnet-0a", "us-east-1a"), ("subnet-0b", "us-east-1b")];

/// An instance's life as EC2 shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

impl Life {
    pub(crate) fn code_and_name(self) -> (u32, &'static str) {
        match self {
            Self::Pending => (0, "pending"),
            Self::Running => (16, "running"),
            Self::ShuttingDown => (32, "shutting-down"),
            Self::Terminated => (48, "terminated"),
            Self::Stopping => (64, "stopping"),
            Self::Stopped => (80, "stopped"),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) image: String,
    pub(crate) life: Life,
    /// Looks until it is known, and until its state moves on.
    pub(crate) hidden: u32,
    pub(crate) looks: u32,
    /// Calls that change it, and looks that name it, which do not know it although listings show it.
    pub(crate) forgotten_calls: u32,
    pub(crate) forgotten_looks: u32,
    /// It ends while booting.
    pub(crate) is_dying: bool,
    pub(crate) index: usize,
    pub(crate) token: String,
    pub(crate) key: String,
    pub(crate) groups: Vec<String>,
    pub(crate) subnet: String,
    pub(crate) address: String,
    pub(crate) private: String,
    pub(crate) launched_at_s: u64,
    pub(crate) reason: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) volume: String,
    /// Its disk outlives it.
    pub(crate) disk_stays: bool,
    pub(crate) interface: String,
    /// Attempts to delete a group of its interface that still fail after its end.
    pub(crate) lingering: u32,
    pub(crate) user_data: String,
}

impl Machine {
    pub(crate) fn is_living(&self) -> bool {
        !matches!(self.life, Life::Terminated | Life::ShuttingDown)
    }

    /// Whether its network interface is still there.
    pub(crate) fn has_interface(&self) -> bool {
        self.life != Life::Terminated || self.lingering > 0
    }

    pub(crate) fn has_disk(&self) -> bool {
        self.life != Life::Terminated || self.disk_stays
    }

    /// Shutting down, stopping or not: the real instance has ended.
    pub(crate) fn ended(&mut self) {
        self.life = match self.life {
            Life::Pending | Life::Running => {
                self.reason = "Client.InstanceInitiatedShutdown: Instance initiated shutdown".to_owned();
                Life::Terminated
            }
            Life::Stopping => Life::Stopped,
            other => other,
        };
    }

    /// Moves on by one look.
    pub(crate) fn look(&mut self) {
        if self.looks > 0 {
            self.looks -= 1;
            return;
        }
        self.life = match self.life {
            Life::Pending if self.is_dying => {
                self.reason = "Client.InstanceInitiatedShutdown: Instance initiated shutdown".to_owned();
                Life::Terminated
            }
            Life::Pending => Life::Running,
            Life::ShuttingDown => Life::Terminated,
            other => other,
        };
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) protocol: String,
    pub(crate) from: String,
    pub(crate) to: String,
    /// `cidr 1.2.3.4/32` or `group sg-1`.
    pub(crate) source: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) rules: Vec<Rule>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) hidden: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) public: String,
    pub(crate) tags: BTreeMap<String, String>,
}

/// One call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) action: String,
    pub(crate) is_dry: bool,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) machines: Vec<Machine>,
    pub(crate) groups: Vec<Group>,
    pub(crate) keys: Vec<Key>,
    /// Request and instances by client token.
    pub(crate) tokens: HashMap<String, (String, Vec<String>)>,
    pub(crate) calls: Vec<Call>,
    /// The rest of answers whose next page has not been asked for, by token.
    pub(crate) pages: HashMap<String, Vec<Xml>>,
    pub(crate) items_per_page: Option<usize>,
    /// What no client of EC2 may do.
    pub(crate) violations: Vec<String>,
    pub(crate) is_duplicate_forbidden: bool,
    /// Instances that a lab may replace, because its state was lost and nobody can log in to them.
    pub(crate) orphans: Vec<String>,
    last: u64,
}

impl World {
    /// A new number, for ids.
    pub(crate) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Notes members of a fleet that are there twice.
    pub(crate) fn check_members(&mut self) {
        if !self.is_duplicate_forbidden {
            return;
        }
        let mut seen: BTreeMap<(&str, &str, &str), &str> = BTreeMap::new();
        for it in self.machines.iter().filter(|it| it.is_living() && !self.orphans.contains(&it.id)) {
            let tag = |key: &str| it.tags.get(key).map_or("", String::as_str);
            let slot = tag("labhost:slots").split(',').nth(it.index).unwrap_or("");
            let member = (tag("labhost:lab"), tag("labhost:fleet"), slot);
            if let Some(other) = seen.insert(member, &it.id) {
                self.violations.push(format!("{member:?} is there twice: {other} and {}", it.id));
            }
        }
    }

    pub(crate) fn group(&mut self, id: &str) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| group.id == id)
    }

    /// What the rules of groups mean for the instances that there are.
    pub(crate) fn doors(&self) -> Vec<Door> {
        let mut doors = Vec::new();
        for it in self.machines.iter().filter(|it| it.is_living()) {
            for rule in
                self.groups.iter().filter(|group| it.groups.contains(&group.id)).flat_map(|it| &it.rules)
            {
                doors.extend(self.sources(rule).into_iter().map(|source| Door {
                    id: it.id.clone(),
                    source,
                    port_first: rule.from.clone(),
                    port_last: rule.to.clone(),
                }));
            }
        }
        doors
    }

    /// As blocks of addresses; a group stands for the private addresses of its members.
    fn sources(&self, rule: &Rule) -> Vec<String> {
        match rule.source.split_once(' ') {
            Some(("group", id)) => {
                let members =
                    self.machines.iter().filter(|it| it.is_living() && it.groups.iter().any(|of| of == id));
                members.map(|it| format!("{}/32", it.private)).collect()
            }
            Some((_, block)) => vec![block.to_owned()],
            None => Vec::new(),
        }
    }

    /// Everything that a lab could have left, in words: all but what is foreign, terminated or part of the account.
    pub(crate) fn left(&self) -> Vec<String> {
        let foreign = |tags: &BTreeMap<String, String>| tags.contains_key("foreign");
        let mut left = Vec::new();
        for it in self.machines.iter().filter(|it| !foreign(&it.tags)) {
            if it.life != Life::Terminated {
                left.push(format!("instance {} ({:?})", it.id, it.life));
            }
            if it.has_disk() {
                left.push(format!("volume {}", it.volume));
            }
            if it.has_interface() {
                left.push(format!("network interface {}", it.interface));
            }
        }
        left.extend(
            self.groups.iter().filter(|it| !foreign(&it.tags)).map(|it| format!("group {}", it.name)),
        );
        left.extend(self.keys.iter().filter(|it| !foreign(&it.tags)).map(|it| format!("key {}", it.name)));
        left
    }

    /// Every tagged resource: type, id, tags. As at AWS, tags outlive what they were on: those of disks are still
    /// there after their instances.
    pub(crate) fn tagged(&self) -> Vec<(&'static str, String, BTreeMap<String, String>)> {
        let mut all = Vec::new();
        for it in &self.machines {
            all.push(("instance", it.id.clone(), it.tags.clone()));
            all.push(("volume", it.volume.clone(), it.tags.clone()));
            if it.has_interface() {
                all.push(("network-interface", it.interface.clone(), it.tags.clone()));
            }
        }
        all.extend(self.groups.iter().map(|it| ("security-group", it.id.clone(), it.tags.clone())));
        all.extend(self.keys.iter().map(|it| ("key-pair", it.id.clone(), it.tags.clone())));
        all
    }

    /// Whether a thing passes all filters. `property` gives the values of a property that filters may name, or
    /// `None` for one that EC2 does not know, which is a violation.
    pub(crate) fn passes(
        &mut self,
        filters: &[Filter],
        tags: &BTreeMap<String, String>,
        property: impl Fn(&str) -> Option<Vec<String>>,
    ) -> bool {
        filters.iter().all(|filter| {
            let values = match filter.name.strip_prefix("tag:") {
                Some(key) => tags.get(key).cloned().into_iter().collect(),
                None => property(&filter.name).unwrap_or_else(|| {
                    self.violations.push(format!("unknown filter {}", filter.name));
                    Vec::new()
                }),
            };
            values.iter().any(|value| filter.values.iter().any(|wanted| matches(wanted, value)))
        })
    }
}

/// Counts one down; whether there was one.
pub(crate) fn take_one(count: &mut u32) -> bool {
    let is_there = *count > 0;
    *count = count.saturating_sub(1);
    is_there
}

/// EC2's filters know `*`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
        }),
    }
}
