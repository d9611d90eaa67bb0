//! The tags by which everything is found again, also when all of a lab's files are lost.
//!
//! PURE. Every resource gets its tags in the call that creates it; what has no tag `labhost:lab` of this lab is
//! never touched.

use std::{collections::BTreeMap, path::Path};

use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};
use sha2::{Digest as _, Sha256};

use crate::provider::Launch;

pub(super) const LAB: &str = "labhost:lab";
pub(super) const OWNER: &str = "labhost:owner";
pub(super) const FLEET: &str = "labhost:fleet";
/// The slots of a whole launch, `1,2,4`: the member with launch index 0 has the first of them. Instances of one
/// launch cannot have tags of their own.
pub(super) const SLOTS: &str = "labhost:slots";
pub(super) const ROLE: &str = "labhost:role";
pub(super) const CLUSTER: &str = "Cluster";
/// Seconds since the epoch.
pub(super) const EXPIRES: &str = "labhost:expires";
pub(super) const VERSION: &str = "labhost:version";
/// The login of the image.
pub(super) const USER: &str = "labhost:user";
/// The name that the recipe uses, of key pairs and groups.
pub(super) const NAME: &str = "labhost:name";

/// AWS's limit for a tag's value.
const VALUE_CHARS_MAX: usize = 256;

/// A lab's tag: follows from its state directory, the machine and the user, so that it is known when the state is
/// lost and differs between people who share an account.
pub(super) fn lab_tag(state_dir: &Path, machine: &str) -> String {
    let user = rustix::process::geteuid().as_raw();
    let text = format!("{}|{machine}|{user}", state_dir.display());
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// What a resource is known by at AWS, where a key pair's name must be unique in a region and a group's in a network.
pub(super) fn full_name(lab: &str, name: &str) -> String {
    format!("labhost-{lab}-{name}")
}

/// A tag's value: letters, digits and what AWS allows besides; the rest becomes `_`.
pub(super) fn value(text: &str) -> String {
    let allowed = |c: char| c.is_alphanumeric() || " +-=._:/@,".contains(c);
    text.chars().map(|c| if allowed(c) { c } else { '_' }).take(VALUE_CHARS_MAX).collect()
}

fn tag(key: &str, text: &str) -> Tag {
    Tag::builder().key(key).value(value(text)).build()
}

/// Who a resource belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mine {
    pub(super) lab: String,
    pub(super) owner: String,
}

impl Mine {
    /// Tags of a key pair or group with this name in recipes.
    pub(super) fn named(&self, name: &str, kind: ResourceType) -> TagSpecification {
        let tags = [tag("Name", &full_name(&self.lab, name)), tag(NAME, name)];
        specification(kind, self.common().into_iter().chain(tags))
    }

    /// Tags of everything that a launch makes.
    pub(super) fn launched(&self, launch: &Launch, user: &str) -> Vec<TagSpecification> {
        let slots: Vec<_> = launch.slots.iter().map(u32::to_string).collect();
        let mut tags = vec![
            tag("Name", &full_name(&self.lab, &launch.fleet)),
            tag(FLEET, &launch.fleet),
            tag(SLOTS, &slots.join(",")),
            tag(EXPIRES, &launch.expires_at_s.to_string()),
            tag(USER, user),
        ];
        tags.extend(launch.role.iter().map(|role| tag(ROLE, role)));
        tags.extend(launch.cluster.iter().map(|cluster| tag(CLUSTER, cluster)));
        let reserved =
            |key: &str| tags.iter().any(|tag| tag.key() == Some(key)) || key.starts_with("labhost:");
        let further: Vec<_> =
            launch.tags.iter().filter(|(key, _)| !reserved(key)).map(|(key, text)| tag(key, text)).collect();
        let all: Vec<_> = self.common().into_iter().chain(tags).chain(further).collect();
        [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface]
            .map(|kind| specification(kind, all.clone()))
            .to_vec()
    }

    fn common(&self) -> [Tag; 3] {
        [tag(LAB, &self.lab), tag(OWNER, &self.owner), tag(VERSION, env!("CARGO_PKG_VERSION"))]
    }
}

fn specification(kind: ResourceType, tags: impl IntoIterator<Item = Tag>) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags.into_iter().collect())).build()
}

/// The tag that moves a time of expiry.
pub(super) fn expires(at_s: u64) -> Tag {
    tag(EXPIRES, &at_s.to_string())
}

/// Selects this lab's resources. Not by their owner as well: a lab that is run with another `--owner`, or with another
/// session of the same role, would lose sight of what it has made and never remove it.
pub(super) fn of_lab(lab: &str) -> Filter {
    filter(&format!("tag:{LAB}"), [lab])
}

pub(super) fn filter<'a>(name: &str, values: impl IntoIterator<Item = &'a str>) -> Filter {
    let values = values.into_iter().map(str::to_owned).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// A resource's tags by key.
pub(super) fn map(tags: &[Tag]) -> BTreeMap<&str, &str> {
    tags.iter().filter_map(|tag| Some((tag.key()?, tag.value()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_hold_only_what_aws_allows() {
        assert_eq!(
            value("arn:aws:sts::1:assumed-role/voclabs/u=A B"),
            "arn:aws:sts::1:assumed-role/voclabs/u=A B"
        );
        assert_eq!(value("a<b>\"c\n"), "a_b__c_");
        assert_eq!(value(&"x".repeat(300)).len(), VALUE_CHARS_MAX);
    }

    #[test]
    fn launch_tags_all_that_it_makes_and_keeps_reserved_keys() {
        let mine = Mine { lab: "1234".into(), owner: "me".into() };
        let launch = Launch {
            token: "t".into(),
            fleet: "large".into(),
            instance_type: "t2.large".into(),
            slots: vec![2, 4],
            cluster: Some("cluster1".into()),
            role: None,
            key: "lab".into(),
            group: None,
            image: None,
            tags: BTreeMap::from([("Course".into(), "LOG8415".into()), (LAB.into(), "other".into())]),
            expires_at_s: 99,
        };
        let specifications = mine.launched(&launch, "ubuntu");
        assert_eq!(specifications.len(), 3);
        for specification in &specifications {
            let tags = map(specification.tags());
            assert_eq!(
                (tags[LAB], tags[SLOTS], tags["Cluster"], tags["Course"]),
                ("1234", "2,4", "cluster1", "LOG8415")
            );
            assert_eq!((tags["Name"], tags[EXPIRES]), ("labhost-1234-large", "99"));
        }
    }
}
