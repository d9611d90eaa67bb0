//! The calls that change something.

use std::collections::BTreeMap;

use super::{
    Fake,
    hosts::{Boot, Booted},
    query::Params,
    reads,
    world::{
        Group, IMAGE, Key, LASTING_DISKS, LASTING_IMAGE, Life, Machine, Rule, SUBNETS, VPC, World, take_one,
    },
    xml::{Refused, Xml, refused, set, text},
};

type Reply = Result<Xml, Refused>;

/// What a trial is answered with when it would have succeeded.
fn trial() -> Refused {
    Refused {
        status: 412,
        code: "DryRunOperation".to_owned(),
        message: "Request would have succeeded, but DryRun flag is set.".to_owned(),
    }
}

fn done() -> Reply {
    Ok(text("return", true))
}

pub(crate) async fn run_instances(
    fake: &Fake,
    world: &mut World,
    params: &mut Params,
    is_dry: bool,
) -> Reply {
    let fingerprint = params.fingerprint();
    let order = Order::take(world, params)?;
    if is_dry {
        return Err(trial());
    }
    if let Some((known, ids)) = world.tokens.get(&order.token) {
        if *known != fingerprint {
            return Err(refused(
                "IdempotentParameterMismatch",
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            ));
        }
        let made: Vec<Machine> = world.machines.iter().filter(|it| ids.contains(&it.id)).cloned().collect();
        if made.iter().all(|it| !it.is_living()) {
            return Err(refused(
                "IdempotentInstanceTerminated",
                "The client token you have provided is associated with a resource that is already deleted.",
            ));
        }
        return Ok(reads::reservation(&made));
    }
    let machines = order.boot(fake, world).await;
    let ids = machines.iter().map(|it| it.id.clone()).collect();
    world.tokens.insert(order.token.clone(), (fingerprint, ids));
    world.machines.extend(machines.iter().cloned());
    Ok(reads::reservation(&machines))
}

/// A launch as it was asked for.
struct Order {
    token: String,
    count: usize,
    kind: String,
    image: String,
    key: Option<Key>,
    groups: Vec<String>,
    subnet: String,
    user_data: String,
    tags: BTreeMap<String, String>,
    disk_stays: bool,
}

impl Order {
    fn take(world: &mut World, params: &mut Params) -> Result<Self, Refused> {
        let number = |text: Option<String>| text.and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
        let (least, most) = (number(params.take("MinCount")), number(params.take("MaxCount")));
        let mut insist = |is_so: bool, what: &str| {
            if !is_so {
                world.violations.push(format!("RunInstances: {what}"));
            }
        };
        insist(least == most && most > 0, "all or none must be asked for");
        insist(
            params.take("InstanceInitiatedShutdownBehavior").as_deref() == Some("terminate"),
            "shutdown must terminate",
        );
        insist(
            params.take("MetadataOptions.HttpTokens").as_deref() == Some("required"),
            "IMDSv2 must be required",
        );
        insist(
            params.take("MetadataOptions.HttpEndpoint").as_deref() == Some("enabled"),
            "IMDS must be enabled",
        );
        insist(
            params.take("MetadataOptions.HttpPutResponseHopLimit").as_deref() == Some("1"),
            "hop limit must be 1",
        );
        insist(
            params.take("CreditSpecification.CpuCredits").as_deref() == Some("standard"),
            "credits must be standard",
        );
        let at = "NetworkInterface.1";
        insist(params.take(&format!("{at}.DeviceIndex")).as_deref() == Some("0"), "first interface");
        insist(params.flag(&format!("{at}.AssociatePublicIpAddress")), "a public address must be asked for");
        insist(params.flag(&format!("{at}.DeleteOnTermination")), "interfaces must go with their instance");
        let specifications = params.tag_specifications();
        let kinds: Vec<_> = specifications.keys().map(String::as_str).collect();
        insist(kinds == ["instance", "network-interface", "volume"], "everything must be tagged at creation");
        let user_data =
            aws_smithy_types::base64::decode(params.take("UserData").unwrap_or_default()).unwrap_or_default();
        insist(user_data.len() <= 16 * 1024, "user data is too long");
        let image = params.take("ImageId").unwrap_or_default();
        let going = going_disks(params);
        let lasting = if image == LASTING_IMAGE { &LASTING_DISKS[..] } else { &[] };
        insist(going.iter().all(|disk| lasting.iter().any(|of| of.0 == *disk)), "only the image's own disks");
        let token = params.take("ClientToken").unwrap_or_default();
        insist(!token.is_empty() && token.len() <= 64 && token.is_ascii(), "a client token must be given");
        let order = Self {
            token,
            count: most,
            kind: params.take("InstanceType").unwrap_or_default(),
            disk_stays: lasting.iter().any(|(disk, _)| going.iter().all(|it| it != disk)),
            image,
            key: None,
            groups: params.list(&format!("{at}.SecurityGroupId")),
            subnet: params.take(&format!("{at}.SubnetId")).unwrap_or_default(),
            user_data: String::from_utf8_lossy(&user_data).into_owned(),
            tags: specifications.into_values().next().unwrap_or_default(),
        };
        let key = params.take("KeyName");
        order.check(world, key)
    }

    fn check(mut self, world: &World, key: Option<String>) -> Result<Self, Refused> {
        if let Some(name) = key {
            let found = world.keys.iter().find(|key| key.name == name).cloned();
            let missing =
                || refused("InvalidKeyPair.NotFound", format!("The key pair '{name}' does not exist"));
            self.key = Some(found.ok_or_else(missing)?);
        }
        if let Some(id) = self.groups.iter().find(|id| world.groups.iter().all(|group| group.id != **id)) {
            return Err(refused(
                "InvalidGroup.NotFound",
                format!("The security group '{id}' does not exist"),
            ));
        }
        if SUBNETS.iter().all(|(id, _)| *id != self.subnet) {
            return Err(refused(
                "InvalidSubnetID.NotFound",
                format!("The subnet ID '{}' does not exist", self.subnet),
            ));
        }
        if ![IMAGE, LASTING_IMAGE].contains(&self.image.as_str()) {
            return Err(refused(
                "InvalidAMIID.NotFound",
                format!("The image id '[{}]' does not exist", self.image),
            ));
        }
        Ok(self)
    }

    /// Real instances, which get the user data.
    async fn boot(&self, fake: &Fake, world: &mut World) -> Vec<Machine> {
        let key = self.key.clone().expect("a launch that is no trial names its key");
        let (missing, dies, late) = {
            let mut faults = fake.faults();
            // A launch of one is made or not made.
            let missing = usize::from(std::mem::take(&mut faults.is_launch_partial) && self.count > 1);
            (missing, std::mem::take(&mut faults.dies_at_boot), faults.ssh_late.take())
        };
        let boot = Boot {
            token: self.token.clone(),
            kind: self.kind.clone(),
            count: self.count - missing,
            cluster: self.tags.get("Cluster").cloned(),
            public_key: key.public,
            user_data: self.user_data.clone(),
        };
        let made = fake.hosts.boot(&boot).await;
        if let Some(late) = late {
            fake.close_ssh_for(late).await;
        }
        let named = |(index, booted)| self.machine(fake, world, &key.name, index, booted);
        let mut machines: Vec<_> = made.into_iter().enumerate().map(named).collect();
        if let Some(first) = machines.first_mut().filter(|_| dies) {
            first.is_dying = true;
            fake.hosts.terminate(std::slice::from_ref(&first.id)).await;
        }
        machines
    }

    /// The ledger's entry for an instance that has just been started.
    fn machine(&self, fake: &Fake, world: &mut World, key: &str, index: usize, booted: Booted) -> Machine {
        let faults = fake.faults();
        let number = world.number();
        Machine {
            id: booted.id,
            kind: self.kind.clone(),
            image: self.image.clone(),
            life: Life::Pending,
            // The look that the counts are compared in is itself counted.
            hidden: if faults.hidden_looks == 0 { 0 } else { faults.hidden_looks + 1 },
            looks: faults.pending_looks,
            forgotten_calls: 0,
            forgotten_looks: 0,
            is_dying: false,
            index,
            token: self.token.clone(),
            key: key.to_owned(),
            groups: self.groups.clone(),
            subnet: self.subnet.clone(),
            address: booted.public.to_string(),
            private: booted.private.to_string(),
            launched_at_s: booted.launched_at_s,
            reason: String::new(),
            tags: self.tags.clone(),
            volume: format!("vol-{number:08x}"),
            disk_stays: self.disk_stays,
            interface: format!("eni-{number:08x}"),
            lingering: 0,
            user_data: self.user_data.clone(),
        }
    }
}

/// The devices of a launch's mappings that go with the instance. As in EC2, what a mapping does not name stays as it is
/// in the image.
fn going_disks(params: &mut Params) -> Vec<String> {
    let mut going = Vec::new();
    for number in params.members("BlockDeviceMapping") {
        let at = format!("BlockDeviceMapping.{number}");
        let device = params.take(&format!("{at}.DeviceName")).unwrap_or_default();
        let size = params.take(&format!("{at}.Ebs.VolumeSize"));
        let is_whole = LASTING_DISKS.iter().any(|(of, gib)| *of == device && size == Some(gib.to_string()));
        if params.flag(&format!("{at}.Ebs.DeleteOnTermination")) && is_whole {
            going.push(device);
        }
    }
    going
}

/// As in EC2, only a disk that no instance has.
pub(crate) fn delete_volume(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let id = params.take("VolumeId").unwrap_or_default();
    if is_dry {
        return Err(trial());
    }
    let Some(it) = world.machines.iter_mut().find(|it| it.volume == id && it.has_disk()) else {
        return Err(refused("InvalidVolume.NotFound", format!("The volume '{id}' does not exist.")));
    };
    if it.life != Life::Terminated {
        return Err(refused("VolumeInUse", format!("Volume {id} is currently attached to {}", it.id)));
    }
    it.disk_stays = false;
    if it.tags.contains_key("foreign") {
        world.violations.push(format!("the foreign disk {id} was deleted"));
    }
    done()
}

fn instance_ids(world: &mut World, params: &mut Params) -> Result<Vec<String>, Refused> {
    let ids = params.list("InstanceId");
    for id in &ids {
        let found = world.machines.iter_mut().find(|it| it.id == *id && it.hidden == 0);
        if found.is_none_or(|it| take_one(&mut it.forgotten_calls)) {
            return Err(no_instance(id));
        }
    }
    Ok(ids)
}

pub(crate) fn no_instance(id: &str) -> Refused {
    refused("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
}

pub(crate) async fn terminate_instances(
    fake: &Fake,
    world: &mut World,
    params: &mut Params,
    is_dry: bool,
) -> Reply {
    let ids = instance_ids(world, params)?;
    if is_dry {
        return Err(trial());
    }
    if world.machines.iter().any(|it| ids.contains(&it.id) && it.tags.contains_key("foreign")) {
        world.violations.push("a foreign instance was terminated".to_owned());
    }
    fake.hosts.terminate(&ids).await;
    let (looks, lingering) = {
        let faults = fake.faults();
        (faults.shutting_down_looks, faults.lingering_interfaces)
    };
    let mut changes = Vec::new();
    for it in world.machines.iter_mut().filter(|it| ids.contains(&it.id)) {
        let before = it.life;
        if it.is_living() {
            (it.life, it.looks, it.lingering) = (Life::ShuttingDown, looks, lingering);
            it.reason = "Client.UserInitiatedShutdown: User initiated shutdown".to_owned();
        }
        changes.push(
            text("instanceId", &it.id)
                + reads::state("currentState", it.life)
                + reads::state("previousState", before),
        );
    }
    Ok(set("instancesSet", changes))
}

/// As in EC2, one that is started gets another public address.
pub(crate) fn start_instances(fake: &Fake, world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let ids = instance_ids(world, params)?;
    if is_dry {
        return Err(trial());
    }
    for it in world.machines.iter_mut().filter(|it| ids.contains(&it.id) && it.life == Life::Stopped) {
        it.life = Life::Pending;
        if let Some(address) = fake.hosts.start(&it.id) {
            it.address = address.to_string();
        }
    }
    Ok(set("instancesSet", ids.iter().map(|id| text("instanceId", id))))
}

/// As in EC2, all are tagged or none.
pub(crate) fn create_tags(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let (ids, tags) = (params.list("ResourceId"), params.tags("Tag"));
    if let Some(id) = ids.iter().find(|id| world.machines.iter().all(|it| it.id != **id)) {
        return Err(no_instance(id));
    }
    if is_dry {
        return Err(trial());
    }
    for it in world.machines.iter_mut().filter(|it| ids.contains(&it.id)) {
        it.tags.extend(tags.clone());
    }
    done()
}

pub(crate) fn import_key_pair(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let name = params.take("KeyName").unwrap_or_default();
    let material = params.take("PublicKeyMaterial").unwrap_or_default();
    let tags = params.tag_specifications().remove("key-pair").unwrap_or_default();
    if !tags.contains_key("labhost:lab") {
        world.violations.push(format!("key {name} is made without tags"));
    }
    let public =
        String::from_utf8(aws_smithy_types::base64::decode(material).unwrap_or_default()).unwrap_or_default();
    if !public.starts_with("ssh-ed25519 ") {
        return Err(refused("InvalidKey.Format", "Key is not in valid OpenSSH public key format"));
    }
    if world.keys.iter().any(|key| key.name == name) {
        return Err(refused("InvalidKeyPair.Duplicate", format!("The keypair already exists: {name}")));
    }
    if is_dry {
        return Err(trial());
    }
    let id = format!("key-{:08x}", world.number());
    world.keys.push(Key { id: id.clone(), name: name.clone(), public, tags });
    Ok(text("keyName", name) + text("keyPairId", id))
}

/// As in EC2, deleting what is not there succeeds.
pub(crate) fn delete_key_pair(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let name = params.take("KeyName").unwrap_or_default();
    if is_dry {
        return Err(trial());
    }
    if world.keys.iter().any(|key| key.name == name && key.tags.contains_key("foreign")) {
        world.violations.push(format!("the foreign key {name} was deleted"));
    }
    world.keys.retain(|key| key.name != name);
    done()
}

pub(crate) fn create_security_group(
    fake: &Fake,
    world: &mut World,
    params: &mut Params,
    is_dry: bool,
) -> Reply {
    let name = params.take("GroupName").unwrap_or_default();
    let vpc = params.take("VpcId").unwrap_or_default();
    let tags = params.tag_specifications().remove("security-group").unwrap_or_default();
    if !tags.contains_key("labhost:lab") || vpc != VPC || params.take("GroupDescription").is_none() {
        world.violations.push(format!("group {name}: tags, network and description are needed"));
    }
    if world.groups.iter().any(|group| group.name == name) {
        let message = format!("The security group '{name}' already exists for VPC '{vpc}'");
        return Err(refused("InvalidGroup.Duplicate", message));
    }
    if is_dry {
        return Err(trial());
    }
    let id = format!("sg-{:08x}", world.number());
    let hidden = fake.faults().hidden_groups;
    world.groups.push(Group { id: id.clone(), name, rules: Vec::new(), tags, hidden });
    Ok(text("return", true) + text("groupId", id))
}

/// The group and the rules of a call that opens or closes one.
fn rules(world: &mut World, params: &mut Params) -> Result<(String, Vec<Rule>), Refused> {
    let id = params.take("GroupId").unwrap_or_default();
    let mut rules = Vec::new();
    for number in params.members("IpPermissions") {
        let at = format!("IpPermissions.{number}");
        let mut take = |name: &str| params.take(&format!("{at}.{name}")).unwrap_or_default();
        let (protocol, from, to) = (take("IpProtocol"), take("FromPort"), take("ToPort"));
        let mut sources = Vec::new();
        for (list, field, word) in [("IpRanges", "CidrIp", "cidr"), ("Groups", "GroupId", "group")] {
            for member in params.members(&format!("{at}.{list}")) {
                let value = params.take(&format!("{at}.{list}.{member}.{field}")).unwrap_or_default();
                sources.push(format!("{word} {value}"));
            }
        }
        let rule = |source| Rule { protocol: protocol.clone(), from: from.clone(), to: to.clone(), source };
        rules.extend(sources.into_iter().map(rule));
    }
    let unknown =
        |id: &str| refused("InvalidGroup.NotFound", format!("The security group '{id}' does not exist"));
    let group = world.group(&id).ok_or_else(|| unknown(&id))?;
    if group.hidden > 0 {
        group.hidden -= 1;
        return Err(unknown(&id));
    }
    for other in rules.iter().filter_map(|rule| rule.source.strip_prefix("group ")) {
        if world.groups.iter().all(|group| group.id != other) {
            return Err(unknown(other));
        }
    }
    Ok((id, rules))
}

pub(crate) fn authorize(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let (id, rules) = rules(world, params)?;
    let group = world.group(&id).expect("it was looked up");
    if rules.iter().any(|rule| group.rules.contains(rule)) {
        return Err(refused("InvalidPermission.Duplicate", "the specified rule already exists"));
    }
    if is_dry {
        return Err(trial());
    }
    group.rules.extend(rules);
    done()
}

pub(crate) fn revoke(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let (id, rules) = rules(world, params)?;
    let group = world.group(&id).expect("it was looked up");
    if rules.iter().any(|rule| !group.rules.contains(rule)) {
        return Err(refused(
            "InvalidPermission.NotFound",
            "The specified rule does not exist in this security group.",
        ));
    }
    if is_dry {
        return Err(trial());
    }
    group.rules.retain(|rule| !rules.contains(rule));
    done()
}

pub(crate) fn delete_security_group(world: &mut World, params: &mut Params, is_dry: bool) -> Reply {
    let id = params.take("GroupId").unwrap_or_default();
    let Some(group) = world.groups.iter().find(|group| group.id == id).cloned() else {
        return Err(refused("InvalidGroup.NotFound", format!("The security group '{id}' does not exist")));
    };
    if is_dry {
        return Err(trial());
    }
    let held = world.machines.iter().any(|it| it.has_interface() && it.groups.contains(&id));
    for it in world.machines.iter_mut().filter(|it| it.life == Life::Terminated && it.groups.contains(&id)) {
        it.lingering = it.lingering.saturating_sub(1);
    }
    let source = format!("group {id}");
    let referred = world
        .groups
        .iter()
        .any(|other| other.id != id && other.rules.iter().any(|rule| rule.source == source));
    if held || referred {
        return Err(refused("DependencyViolation", format!("resource {id} has a dependent object")));
    }
    if group.tags.contains_key("foreign") {
        world.violations.push(format!("the foreign group {} was deleted", group.name));
    }
    world.groups.retain(|other| other.id != id);
    Ok(text("return", true) + text("groupId", id))
}
