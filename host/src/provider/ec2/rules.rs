//! Rules of security groups: what is wanted, what is there, what differs. PURE.

use std::net::Ipv4Addr;

use aws_sdk_ec2::types::{IpPermission, IpRange, Ipv6Range, PrefixListId, UserIdGroupPair};

use crate::{Error, Kind, provider::Ingress};

/// Who is let in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    V4(String),
    V6(String),
    /// Id of a group.
    Group(String),
    Prefixes(String),
}

/// One rule: a protocol, a range of ports and one source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    protocol: String,
    ports: Option<(i32, i32)>,
    pub(super) source: Source,
}

/// What is needed to understand a recipe's rule.
pub(super) struct Meaning<'a> {
    /// This machine's address; only needed for `me`.
    pub(super) me: Option<Ipv4Addr>,
    /// Finds the id of a group by its name in recipes.
    pub(super) group: &'a dyn Fn(&str) -> Option<String>,
}

/// Whether any rule needs this machine's address.
pub(super) fn names_caller(ingress: &[Ingress]) -> bool {
    ingress.iter().any(|rule| rule.from == "me")
}

/// The rules that a recipe asks for.
pub(super) fn wanted(group: &str, ingress: &[Ingress], meaning: &Meaning<'_>) -> Result<Vec<Rule>, Error> {
    let mut rules = ingress.iter().map(|rule| one(group, rule, meaning)).collect::<Result<Vec<_>, _>>()?;
    rules.sort();
    rules.dedup();
    Ok(rules)
}

fn one(group: &str, rule: &Ingress, meaning: &Meaning<'_>) -> Result<Rule, Error> {
    let refuse = |why: String, hint: &str| {
        Err(Error::new(Kind::Recipe, format!("security group {group}: {why}")).with_hint(hint))
    };
    let source = match rule.from.as_str() {
        "any" => Source::V4("0.0.0.0/0".to_owned()),
        "me" => match meaning.me {
            Some(address) => Source::V4(format!("{address}/32")),
            None => return refuse("`me` has no address".to_owned(), "Give it with --my-ip ADDRESS."),
        },
        from => match from.strip_prefix("group:") {
            Some(name) => match (meaning.group)(name) {
                Some(id) => Source::Group(id),
                None => {
                    let why = format!("there is no group `{name}`");
                    return refuse(why, "Make it first, with ec2::security_group above this one.");
                }
            },
            None if is_block(from) => Source::V4(from.to_owned()),
            None => {
                let why = format!("`{from}` cannot be let in");
                return refuse(
                    why,
                    "Write \"me\", \"any\", \"group:NAME\" or a block such as \"203.0.113.0/24\".",
                );
            }
        },
    };
    let port = i32::from(rule.port);
    Ok(Rule { protocol: "tcp".to_owned(), ports: Some((port, port)), source })
}

/// An IPv4 block in CIDR form, without bits beyond its length: AWS would store it otherwise, and it would differ for
/// ever.
fn is_block(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(length)) = (address.parse::<Ipv4Addr>(), length.parse::<u32>()) else {
        return false;
    };
    length <= 32 && u64::from(address.to_bits()) & ((1_u64 << (32 - length)) - 1) == 0
}

/// The rules that a group has.
pub(super) fn present(permissions: &[IpPermission]) -> Vec<Rule> {
    permissions.iter().flat_map(rules_in).collect()
}

fn rules_in(permission: &IpPermission) -> Vec<Rule> {
    let v4 =
        permission.ip_ranges().iter().filter_map(|range| range.cidr_ip()).map(|it| Source::V4(it.into()));
    let v6 = permission.ipv6_ranges().iter().filter_map(|range| range.cidr_ipv6());
    let v6 = v6.map(|it| Source::V6(it.into()));
    let groups = permission.user_id_group_pairs().iter().filter_map(|pair| pair.group_id());
    let groups = groups.map(|it| Source::Group(it.into()));
    let prefixes = permission.prefix_list_ids().iter().filter_map(|list| list.prefix_list_id());
    let prefixes = prefixes.map(|it| Source::Prefixes(it.into()));
    let rule = |source| Rule {
        protocol: permission.ip_protocol().unwrap_or("-1").to_owned(),
        ports: permission.from_port().zip(permission.to_port()),
        source,
    };
    v4.chain(v6).chain(groups).chain(prefixes).map(rule).collect()
}

/// `(to authorize, to revoke)`.
pub(super) fn differences(wanted: &[Rule], present: &[Rule]) -> (Vec<Rule>, Vec<Rule>) {
    let missing = wanted.iter().filter(|rule| !present.contains(rule)).cloned().collect();
    let surplus = present.iter().filter(|rule| !wanted.contains(rule)).cloned().collect();
    (missing, surplus)
}

/// Rules that let in one address, and the same for another.
pub(super) fn moved(present: &[Rule], before: Ipv4Addr, now: Ipv4Addr) -> (Vec<Rule>, Vec<Rule>) {
    let (before, now) = (Source::V4(format!("{before}/32")), Source::V4(format!("{now}/32")));
    let old: Vec<Rule> = present.iter().filter(|rule| rule.source == before).cloned().collect();
    let new = old.iter().map(|rule| Rule { source: now.clone(), ..rule.clone() }).collect();
    (old, new)
}

/// In the API's form.
pub(super) fn permission(rule: &Rule) -> IpPermission {
    let builder = IpPermission::builder().ip_protocol(&rule.protocol);
    let builder = match rule.ports {
        Some((from, to)) => builder.from_port(from).to_port(to),
        None => builder,
    };
    match &rule.source {
        Source::V4(block) => builder.ip_ranges(IpRange::builder().cidr_ip(block).build()),
        Source::V6(block) => builder.ipv6_ranges(Ipv6Range::builder().cidr_ipv6(block).build()),
        Source::Group(id) => builder.user_id_group_pairs(UserIdGroupPair::builder().group_id(id).build()),
        Source::Prefixes(id) => builder.prefix_list_ids(PrefixListId::builder().prefix_list_id(id).build()),
    }
    .build()
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Source::V4(source) | Source::V6(source) | Source::Group(source) | Source::Prefixes(source)) =
            &self.source;
        match self.ports {
            Some((from, to)) if from == to => write!(f, "port {from} from {source}"),
            Some((from, to)) => write!(f, "ports {from}-{to} from {source}"),
            None => write!(f, "everything from {source}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(port: u16, from: &str) -> Ingress {
        Ingress { port, from: from.to_owned() }
    }

    fn meaning(group: &dyn Fn(&str) -> Option<String>) -> Meaning<'_> {
        Meaning { me: Some(Ipv4Addr::new(203, 0, 113, 7)), group }
    }

    #[test]
    fn what_is_there_is_left_and_what_differs_is_changed() {
        let groups = |name: &str| (name == "lab-lb").then(|| "sg-1".to_owned());
        let asked = [ingress(22, "me"), ingress(8000, "group:lab-lb"), ingress(80, "10.0.0.0/8")];
        let wanted = wanted("g", &asked, &meaning(&groups)).unwrap();
        let mut there: Vec<_> = wanted.iter().map(permission).collect();
        assert_eq!(differences(&wanted, &present(&there)), (vec![], vec![]));
        there[0] = permission(&Rule { source: Source::V4("198.51.100.1/32".into()), ..wanted[0].clone() });
        let (missing, surplus) = differences(&wanted, &present(&there));
        assert_eq!((missing.len(), surplus.len()), (1, 1));
        assert_eq!(surplus[0].to_string(), "port 22 from 198.51.100.1/32");
    }

    #[test]
    fn rules_of_all_kinds_survive_the_way_there_and_back() {
        for source in [
            Source::V4("0.0.0.0/0".into()),
            Source::V6("::/0".into()),
            Source::Group("sg-1".into()),
            Source::Prefixes("pl-1".into()),
        ] {
            let rule = Rule { protocol: "-1".into(), ports: None, source };
            assert_eq!(present(&[permission(&rule)]), [rule]);
        }
    }

    #[test]
    fn unclear_sources_are_refused() {
        let none = |_: &str| None;
        for from in ["", "you", "10.0.0.1", "10.0.0.1/8", "10.0.0.0/33", "::/0", "group:other"] {
            let error = wanted("g", &[ingress(22, from)], &meaning(&none)).unwrap_err();
            assert_eq!(error.kind, Kind::Recipe, "{from}");
        }
        let nobody = Meaning { me: None, group: &none };
        assert!(wanted("g", &[ingress(22, "me")], &nobody).is_err());
        assert!(wanted("g", &[ingress(22, "0.0.0.0/0")], &nobody).is_ok());
    }
}
