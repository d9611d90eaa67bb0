//! The calls that only look.

use super::{
    Fake,
    acts::no_instance,
    query::{Filter, Params},
    world::{
        ACCOUNT, Group, IMAGE, LASTING_DISKS, LASTING_IMAGE, Life, Machine, Rule, SUBNETS, VPC, World,
        take_one,
    },
    xml::{Refused, Xml, node, refused, set, tags, text},
};

type Reply = Result<Xml, Refused>;

pub(crate) fn describe_instances(world: &mut World, params: &mut Params) -> Reply {
    let filters = params.filters();
    let named = |id: &String| filters.iter().any(|it| it.name == "instance-id" && it.values.contains(id));
    let mut chosen: Vec<Machine> = Vec::new();
    for machine in &mut world.machines {
        machine.hidden = machine.hidden.saturating_sub(1);
        machine.look();
        if machine.hidden == 0 && !(named(&machine.id) && take_one(&mut machine.forgotten_looks)) {
            chosen.push(machine.clone());
        }
    }
    let shown: Vec<_> =
        chosen.into_iter().filter(|it| world.passes(&filters, &it.tags, |name| property(it, name))).collect();
    // As in EC2, one reservation for each launch, which pages may divide.
    let is_whole = world.items_per_page.is_none();
    let mut reservations: Vec<Vec<Machine>> = Vec::new();
    for it in shown {
        match reservations.iter_mut().find(|reservation| is_whole && reservation[0].token == it.token) {
            Some(reservation) => reservation.push(it),
            None => reservations.push(vec![it]),
        }
    }
    let reservations = reservations.iter().map(|machines| reservation(machines)).collect();
    page(world, params, "reservationSet", reservations)
}

/// What is asked for now of all that there is, and a token for the rest. As in EC2, the token stands for the answer as
/// it was when the first page was asked for.
fn page(world: &mut World, params: &mut Params, name: &str, mut items: Vec<Xml>) -> Reply {
    if let Some(token) = params.take("NextToken") {
        items = world.pages.remove(&token).ok_or_else(|| {
            refused("InvalidNextToken", format!("The value '{token}' for NextToken is not valid"))
        })?;
    }
    let asked = params.take("MaxResults").and_then(|text| text.parse().ok());
    let most = [asked, world.items_per_page].into_iter().flatten().min().unwrap_or(usize::MAX);
    let rest = items.split_off(items.len().min(most));
    if rest.is_empty() {
        return Ok(set(name, items));
    }
    let token = format!("page-{}", world.number());
    world.pages.insert(token.clone(), rest);
    Ok(set(name, items) + text("nextToken", token))
}

fn property(machine: &Machine, name: &str) -> Option<Vec<String>> {
    Some(vec![match name {
        "instance-state-name" => machine.life.code_and_name().1.to_owned(),
        "instance-id" => machine.id.clone(),
        "client-token" => machine.token.clone(),
        _ => return None,
    }])
}

/// `reservationId`, `ownerId` and the instances; RunInstances answers with the same.
pub(crate) fn reservation(machines: &[Machine]) -> Xml {
    let id = machines.first().map_or("", |machine| machine.id.trim_start_matches("i-"));
    text("reservationId", format!("r-{id}"))
        + text("ownerId", ACCOUNT)
        + set("instancesSet", machines.iter().map(machine))
}

pub(crate) fn state(name: &str, life: Life) -> Xml {
    let (code, word) = life.code_and_name();
    node(name, text("code", code) + text("name", word))
}

fn machine(it: &Machine) -> Xml {
    let mut inner = text("instanceId", &it.id)
        + text("imageId", &it.image)
        + state("instanceState", it.life)
        + text("keyName", &it.key)
        + text("amiLaunchIndex", it.index)
        + text("instanceType", &it.kind)
        + text("launchTime", timestamp(it.launched_at_s))
        + text("subnetId", &it.subnet)
        + text("vpcId", VPC)
        + text("clientToken", &it.token)
        + text("architecture", "x86_64")
        + set("groupSet", it.groups.iter().map(|id| text("groupId", id)))
        + tags(&it.tags);
    if it.life == Life::Running {
        inner = inner + text("privateIpAddress", &it.private) + text("ipAddress", &it.address);
    }
    if !it.reason.is_empty() {
        let (code, _) = it.reason.split_once(':').unwrap_or((&it.reason, ""));
        inner = inner + node("stateReason", text("code", code) + text("message", &it.reason));
    }
    inner
}

/// ISO 8601, which is what EC2 writes.
fn timestamp(at_s: u64) -> String {
    let days = (at_s / 86_400) as i64;
    // Howard Hinnant's days-to-civil, http://howardhinnant.github.io/date_algorithms.html
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (at_s / 3600 % 24, at_s / 60 % 60, at_s % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

pub(crate) fn describe_images(world: &mut World, params: &mut Params) -> Reply {
    let (owners, ids, filters) = (params.list("Owner"), params.list("ImageId"), params.filters());
    let name = |day: u32| format!("ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-amd64-server-202509{day:02}");
    let images = [
        ("ami-0jammy1", 1, "x86_64"),
        (IMAGE, 9, "x86_64"),
        ("ami-0jammy3", 5, "x86_64"),
        ("ami-0arm", 9, "arm64"),
        (LASTING_IMAGE, 0, "x86_64"),
    ];
    let mut shown = Vec::new();
    for (id, day, arch) in images {
        let passes = world.passes(&filters, &Default::default(), |property| {
            Some(vec![match property {
                "name" => name(day),
                "architecture" => arch.to_owned(),
                "virtualization-type" => "hvm".to_owned(),
                "root-device-type" => "ebs".to_owned(),
                "state" => "available".to_owned(),
                _ => return None,
            }])
        });
        if passes && (ids.is_empty() || ids.iter().any(|wanted| wanted == id)) {
            shown.push(
                text("imageId", id)
                    + text("name", name(day))
                    + text("creationDate", format!("2025-09-{day:02}T00:00:00.000Z"))
                    + text("architecture", arch)
                    + disks(id)
                    + text("imageOwnerId", "099720109477"),
            );
        }
    }
    if ids.is_empty() && owners != ["099720109477"] {
        world.violations.push(format!("images of anybody: owners {owners:?}"));
    }
    page(world, params, "imagesSet", shown)
}

fn disks(image: &str) -> Xml {
    let disk = |device: &str, gib: u32, goes: bool| {
        let ebs = text("volumeSize", gib) + text("deleteOnTermination", goes);
        text("deviceName", device) + node("ebs", ebs)
    };
    let in_memory = text("deviceName", "/dev/sdb") + text("virtualName", "ephemeral0");
    let disks = match image {
        LASTING_IMAGE => LASTING_DISKS.map(|(device, gib)| disk(device, gib, false)).to_vec(),
        _ => vec![disk("/dev/sda1", 8, true)],
    };
    set("blockDeviceMapping", disks.into_iter().chain([in_memory]))
}

pub(crate) fn describe_vpcs(world: &mut World, params: &mut Params) -> Reply {
    let filters = params.filters();
    let passes = world.passes(&filters, &Default::default(), |name| {
        (name == "is-default").then(|| vec!["true".to_owned()])
    });
    let vpc = text("vpcId", VPC) + text("isDefault", true);
    page(world, params, "vpcSet", passes.then_some(vpc).into_iter().collect())
}

pub(crate) fn describe_subnets(world: &mut World, params: &mut Params) -> Reply {
    let filters = params.filters();
    let mut shown = Vec::new();
    for (id, zone) in SUBNETS {
        let passes = world.passes(&filters, &Default::default(), |name| match name {
            "vpc-id" => Some(vec![VPC.to_owned()]),
            "default-for-az" => Some(vec!["true".to_owned()]),
            _ => None,
        });
        if passes {
            shown.push(text("subnetId", id) + text("vpcId", VPC) + text("availabilityZone", zone));
        }
    }
    page(world, params, "subnetSet", shown)
}

pub(crate) fn describe_instance_types(params: &mut Params) -> Reply {
    let names = params.list("InstanceType");
    match names.first().map(String::as_str) {
        Some(name @ ("m7i.large" | "t2.micro")) => {
            let processor = node("processorInfo", node("supportedArchitectures", text("item", "x86_64")));
            Ok(set("instanceTypeSet", [text("instanceType", name) + processor]))
        }
        Some(name) => Err(refused(
            "InvalidInstanceType",
            format!("The following supplied instance types do not exist: [{name}]"),
        )),
        None => Ok(set("instanceTypeSet", [])),
    }
}

pub(crate) fn describe_key_pairs(world: &mut World, params: &mut Params) -> Reply {
    let (names, filters) = (params.list("KeyName"), params.filters());
    let with_public = params.flag("IncludePublicKey");
    if let Some(name) = names.iter().find(|name| world.keys.iter().all(|key| key.name != **name)) {
        return Err(refused("InvalidKeyPair.NotFound", format!("The key pair '{name}' does not exist")));
    }
    let mut shown = Vec::new();
    for key in world.keys.clone() {
        let passes = world.passes(&filters, &key.tags, |_| None);
        if passes && (names.is_empty() || names.contains(&key.name)) {
            let public = if with_public {
                text("publicKey", format!("{} {}", key.public, key.name))
            } else {
                Xml::default()
            };
            shown.push(text("keyPairId", &key.id) + text("keyName", &key.name) + public + tags(&key.tags));
        }
    }
    Ok(set("keySet", shown))
}

pub(crate) fn describe_security_groups(world: &mut World, params: &mut Params) -> Reply {
    let filters = params.filters();
    let mut shown = Vec::new();
    for group in &mut world.groups {
        group.hidden = group.hidden.saturating_sub(1);
    }
    for group in world.groups.clone().into_iter().filter(|group| group.hidden == 0) {
        if world.passes(&filters, &group.tags, |name| group_property(&group, name)) {
            shown.push(group_item(&group));
        }
    }
    page(world, params, "securityGroupInfo", shown)
}

fn group_property(group: &Group, name: &str) -> Option<Vec<String>> {
    match name {
        "group-name" => Some(vec![group.name.clone()]),
        "ip-permission.group-id" => Some(
            group
                .rules
                .iter()
                .filter_map(|rule| rule.source.strip_prefix("group "))
                .map(str::to_owned)
                .collect(),
        ),
        _ => None,
    }
}

fn group_item(group: &Group) -> Xml {
    text("ownerId", ACCOUNT)
        + text("groupId", &group.id)
        + text("groupName", &group.name)
        + text("vpcId", VPC)
        + set("ipPermissions", group.rules.iter().map(permission))
        + set("ipPermissionsEgress", [text("ipProtocol", "-1")])
        + tags(&group.tags)
}

fn permission(rule: &Rule) -> Xml {
    let ports = text("ipProtocol", &rule.protocol) + text("fromPort", &rule.from) + text("toPort", &rule.to);
    ports
        + match rule.source.split_once(' ') {
            Some(("group", id)) => set("groups", [text("userId", ACCOUNT) + text("groupId", id)]),
            Some((_, block)) => set("ipRanges", [text("cidrIp", block)]),
            None => Xml::default(),
        }
}

pub(crate) fn describe_network_interfaces(world: &mut World, params: &mut Params) -> Reply {
    let filters = params.filters();
    let mut shown = Vec::new();
    for it in world.machines.clone().into_iter().filter(Machine::has_interface) {
        let groups = |name: &str| (name == "group-id").then(|| it.groups.clone());
        if world.passes(&filters, &it.tags, groups) {
            let attachment = node("attachment", text("instanceId", &it.id));
            let attachment = if it.life == Life::Terminated { Xml::default() } else { attachment };
            shown.push(text("networkInterfaceId", &it.interface) + attachment);
        }
    }
    page(world, params, "networkInterfaceSet", shown)
}

pub(crate) fn describe_volumes(world: &mut World, params: &mut Params) -> Reply {
    let filters = params.filters();
    let mut shown = Vec::new();
    for it in world.machines.clone().into_iter().filter(Machine::has_disk) {
        let state = if it.life == Life::Terminated { "available" } else { "in-use" };
        let status = |name: &str| (name == "status").then(|| vec![state.to_owned()]);
        if world.passes(&filters, &it.tags, status) {
            shown.push(text("volumeId", &it.volume));
        }
    }
    page(world, params, "volumeSet", shown)
}

pub(crate) fn describe_tags(world: &mut World, params: &mut Params) -> Reply {
    let filters: Vec<Filter> = params.filters();
    let mut shown = Vec::new();
    for (kind, id, all) in world.tagged() {
        for (key, value) in &all {
            let passes = world.passes(&filters, &all, |name| match name {
                "key" => Some(vec![key.clone()]),
                "value" => Some(vec![value.clone()]),
                _ => None,
            });
            if passes {
                shown.push(
                    text("resourceId", &id)
                        + text("resourceType", kind)
                        + text("key", key)
                        + text("value", value),
                );
            }
        }
    }
    page(world, params, "tagSet", shown)
}

pub(crate) fn console_output(fake: &Fake, world: &World, params: &mut Params) -> Reply {
    let id = params.take("InstanceId").unwrap_or_default();
    if world.machines.iter().all(|it| it.id != id) {
        return Err(no_instance(&id));
    }
    let output = fake.faults().console.clone();
    let output = output.map(|said| text("output", aws_smithy_types::base64::encode(said)));
    Ok(text("instanceId", id) + output.unwrap_or_default())
}

/// STS has another frame.
pub(crate) fn caller_identity(arn: &str) -> String {
    let result = text("Arn", arn) + text("UserId", "AIDA") + text("Account", ACCOUNT);
    format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">{}<ResponseMetadata>\
         <RequestId>req-sts</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        node("GetCallerIdentityResult", result).text()
    )
}
