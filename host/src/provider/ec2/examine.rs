//! `labhost doctor` on EC2: who is calling, and whether AWS permits what a run, `extend` and a teardown call.
//!
//! Reads are made. For a call that changes something AWS is asked with DryRun whether it would be permitted: on the
//! lab's own things, or, while there are none, on ids that do not exist, about which AWS need not say. Nothing is
//! made; quotas and capacity are not looked at.

use std::{collections::BTreeMap, time::SystemTime};

use aws_sdk_ec2::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
    primitives::Blob,
    types::ResourceType,
};

use super::{
    Ec2,
    groups::Group,
    image,
    launch::Resolved,
    refusal::Refusal,
    rules::{self, Meaning, Rule},
    store::Attempt,
    tags,
    types::Arch,
};
use crate::{
    Error, Kind,
    error::Context as _,
    keys,
    provider::{Ingress, Launch, Permit, Trial},
    units::epoch_s,
};

/// The name of what would be made.
const NAME: &str = "doctor";
/// Well-formed ids that AWS does not give.
const NO_INSTANCE: &str = "i-00000000000000000";
const NO_GROUP: &str = "sg-00000000000000000";
const NO_DISK: &str = "vol-00000000000000000";
/// Whom no group lets in: an address for documentation, RFC 5737.
const NOBODY: &str = "192.0.2.1/32";

/// What the reads have found.
#[derive(Debug)]
struct Found {
    instance: Option<String>,
    group: Option<Group>,
    /// Its name at AWS.
    key: Option<String>,
    disk: Option<String>,
    image: Option<String>,
    vpc: Option<String>,
    subnets: Option<Vec<String>>,
}

/// What a call is tried on.
#[derive(Debug)]
struct Target {
    name: String,
    /// Whether it is there, or need not be.
    is_there: bool,
}

impl Target {
    /// What would be made.
    fn new(name: String) -> Self {
        Self { name, is_there: true }
    }

    fn found(found: Option<&str>, invented: &str) -> Self {
        Self { name: found.unwrap_or(invented).to_owned(), is_there: found.is_some() }
    }
}

impl Ec2 {
    /// Errors when it is not even known who is calling.
    pub(super) async fn examine_account(&self) -> Result<Vec<Trial>, Error> {
        let (seen, arn) = self.identify().await?;
        // What is tried is asked for as a run does it, with the caller's tags; a look around could be refused.
        let _ = self.seen.set(seen);
        let mut trials = vec![Trial { call: "GetCallerIdentity", permit: Permit::Permitted, detail: arn }];
        let found = self.try_reads(&mut trials).await;
        self.try_launch(&found, &mut trials).await?;
        self.try_instance_calls(&found, &mut trials).await?;
        self.try_key_calls(&found, &mut trials).await?;
        self.try_group_calls(&found, &mut trials).await?;
        Ok(trials)
    }

    async fn try_reads(&self, trials: &mut Vec<Trial>) -> Found {
        let instances = read(trials, "DescribeInstances", self.living().await, |it| count(it));
        let keys = read(trials, "DescribeKeyPairs", self.list_keys().await, |it| count(it));
        let groups = read(trials, "DescribeSecurityGroups", self.list_groups().await, |it| count(it));
        read(trials, "DescribeTags", self.lab_tags().await, |it| count(it));
        let disks = read(trials, "DescribeVolumes", self.disks(None).await, |it| count(it));
        let interfaces = self.interfaces(tags::of_lab(&self.lab)).await;
        read(trials, "DescribeNetworkInterfaces", interfaces, |it| count(it));
        let kind = self.ask_type(smallest()).await;
        read(trials, "DescribeInstanceTypes", kind, |_| smallest().to_owned());
        let image = self.find_image(image::NAME_DEFAULT, None).await;
        let image = read(trials, "DescribeImages", image, String::clone);
        let vpc = read(trials, "DescribeVpcs", self.find_vpc().await, String::clone);
        let mut subnets = None;
        match &vpc {
            Some(vpc) => {
                let found = self.find_subnets(vpc).await;
                subnets = read(trials, "DescribeSubnets", found, |it: &Vec<String>| it.join(", "));
            }
            None => not_tried(trials, "DescribeSubnets", "no network was found"),
        }
        let instance = instances.and_then(|all| all.into_iter().next()?.instance_id);
        match &instance {
            Some(id) => {
                read(trials, "GetConsoleOutput", self.console(id).await, |_| id.clone());
            }
            None => not_tried(trials, "GetConsoleOutput", "there is no instance yet"),
        }
        Found {
            instance,
            group: groups.and_then(|all| all.into_iter().next()),
            key: keys.and_then(|all| all.into_iter().next()?.key_name),
            disk: disks.and_then(|all| all.into_iter().next()),
            image,
            vpc,
            subnets,
        }
    }

    async fn try_launch(&self, found: &Found, trials: &mut Vec<Trial>) -> Result<(), Error> {
        const CALL: &str = "RunInstances";
        let (Some(image), Some(subnets)) = (&found.image, &found.subnets) else {
            not_tried(trials, CALL, "no image or no network was found");
            return Ok(());
        };
        let launch = Launch {
            token: NAME.to_owned(),
            fleet: NAME.to_owned(),
            instance_type: smallest().to_owned(),
            slots: vec![1],
            cluster: None,
            role: None,
            key: NAME.to_owned(),
            group: None,
            image: Some(image.clone()),
            tags: BTreeMap::new(),
            expires_at_s: epoch_s(SystemTime::now()),
        };
        let resolved = Resolved {
            key: found.key.clone(),
            group: found.group.as_ref().map(|group| group.id.clone()),
            image: image.clone(),
            user: self.user_for(image),
            disks: self.lasting_disks(image).await?,
        };
        let attempt = Attempt::new(&launch, subnets.clone())?;
        let done = self.request(&launch, &resolved, &attempt).await?.dry_run(true).send().await;
        let target = Target::new(format!("{} from {image}", launch.instance_type));
        trials.push(tell(CALL, &target, done));
        Ok(())
    }

    async fn try_instance_calls(&self, found: &Found, trials: &mut Vec<Trial>) -> Result<(), Error> {
        let ec2 = &self.client().await?.ec2;
        let target = Target::found(found.instance.as_deref(), NO_INSTANCE);
        let id = target.name.as_str();
        let done = ec2.start_instances().dry_run(true).instance_ids(id).send().await;
        trials.push(tell("StartInstances", &target, done));
        let done = ec2.terminate_instances().dry_run(true).instance_ids(id).send().await;
        trials.push(tell("TerminateInstances", &target, done));
        let expiry = tags::expires(epoch_s(SystemTime::now()));
        let done = ec2.create_tags().dry_run(true).resources(id).tags(expiry).send().await;
        trials.push(tell("CreateTags", &target, done));
        let target = Target::found(found.disk.as_deref(), NO_DISK);
        let done = ec2.delete_volume().dry_run(true).volume_id(&target.name).send().await;
        trials.push(tell("DeleteVolume", &target, done));
        Ok(())
    }

    async fn try_key_calls(&self, found: &Found, trials: &mut Vec<Trial>) -> Result<(), Error> {
        let ec2 = &self.client().await?.ec2;
        let name = tags::full_name(&self.lab, NAME);
        let public = keys::draw()?.public_key().to_openssh();
        let public = public.context(Kind::Internal, || "write a login key".to_owned())?;
        let call = ec2.import_key_pair().dry_run(true).key_name(&name);
        let call = call.tag_specifications(self.mine().await?.named(NAME, ResourceType::KeyPair));
        let done = call.public_key_material(Blob::new(public.as_bytes())).send().await;
        trials.push(tell("ImportKeyPair", &Target::new(name.clone()), done));
        let target = Target::found(found.key.as_deref(), &name);
        let done = ec2.delete_key_pair().dry_run(true).key_name(&target.name).send().await;
        trials.push(tell("DeleteKeyPair", &target, done));
        Ok(())
    }

    async fn try_group_calls(&self, found: &Found, trials: &mut Vec<Trial>) -> Result<(), Error> {
        let ec2 = &self.client().await?.ec2;
        match &found.vpc {
            Some(vpc) => {
                let name = tags::full_name(&self.lab, NAME);
                let tags = self.mine().await?.named(NAME, ResourceType::SecurityGroup);
                let call = ec2.create_security_group().dry_run(true).group_name(&name);
                let call = call.description(format!("labhost: {NAME}")).vpc_id(vpc).tag_specifications(tags);
                trials.push(tell("CreateSecurityGroup", &Target::new(name), call.send().await));
            }
            None => not_tried(trials, "CreateSecurityGroup", "no network was found"),
        }
        let group = found.group.as_ref();
        let target = Target::found(group.map(|group| group.id.as_str()), NO_GROUP);
        let id = target.name.as_str();
        let rule = rule_of_nobody()?;
        let call = ec2.authorize_security_group_ingress().dry_run(true).group_id(id);
        let done = call.ip_permissions(rules::permission(&rule)).send().await;
        trials.push(tell("AuthorizeSecurityGroupIngress", &target, done));
        let there = group.and_then(|group| group.rules.first()).unwrap_or(&rule);
        let call = ec2.revoke_security_group_ingress().dry_run(true).group_id(id);
        let done = call.ip_permissions(rules::permission(there)).send().await;
        trials.push(tell("RevokeSecurityGroupIngress", &target, done));
        let done = ec2.delete_security_group().dry_run(true).group_id(id).send().await;
        trials.push(tell("DeleteSecurityGroup", &target, done));
        Ok(())
    }
}

/// A small type of this build's architecture that all but the newest regions have.
fn smallest() -> &'static str {
    match Arch::of_this_build() {
        Some(Arch::Aarch64) => "t4g.micro",
        _ => "t2.micro",
    }
}

fn rule_of_nobody() -> Result<Rule, Error> {
    let ingress = [Ingress { port: 22, from: NOBODY.to_owned() }];
    let rules = rules::wanted(NAME, &ingress, &Meaning { me: None, group: &|_| None })?;
    rules.into_iter().next().ok_or_else(|| Error::new(Kind::Internal, "one rule was asked for"))
}

fn count<T>(all: &[T]) -> String {
    format!("{} of this lab", all.len())
}

/// Tells how a DryRun ended.
fn tell<T, E>(call: &'static str, target: &Target, done: Result<T, SdkError<E, HttpResponse>>) -> Trial
where
    E: ProvideErrorMetadata + RequestId + std::error::Error + Send + Sync + 'static,
{
    judge(call, target, done.map(drop).map_err(|cause| Refusal::of("DryRun", cause)))
}

/// Tells how a read ended. Whatever is the matter with it, a run would fail of it as well.
fn read<T>(
    trials: &mut Vec<Trial>,
    call: &'static str,
    done: Result<T, Error>,
    words: impl FnOnce(&T) -> String,
) -> Option<T> {
    let (permit, detail) = match &done {
        Ok(found) => (Permit::Permitted, words(found)),
        Err(error) => (Permit::Refused, error.message.clone()),
    };
    trials.push(Trial { call, permit, detail });
    done.ok()
}

fn not_tried(trials: &mut Vec<Trial>, call: &'static str, why: &str) {
    trials.push(Trial { call, permit: Permit::Unclear, detail: format!("not tried: {why}") });
}

/// What AWS's answer to a DryRun means.
fn judge(call: &'static str, target: &Target, done: Result<(), Refusal>) -> Trial {
    let name = &target.name;
    let (permit, detail) = match done {
        Ok(()) => (Permit::Unclear, format!("{name}: the answer is not one to a DryRun")),
        Err(refusal) if refusal.is_dry_run_success() => (Permit::Permitted, name.clone()),
        Err(refusal) if refusal.is_denied() && target.is_there => (Permit::Refused, refusal.to_string()),
        // A policy that goes by tags must refuse it.
        Err(refusal) if refusal.is_denied() => {
            (Permit::Unclear, format!("refused for {name}, which does not exist and has no tags"))
        }
        Err(refusal) if refusal.is_not_found() && !target.is_there => {
            (Permit::Unclear, format!("AWS only says that {name} does not exist"))
        }
        Err(refusal) => (Permit::Unclear, refusal.to_string()),
    };
    Trial { call, permit, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: &str, is_there: bool, permit: Permit) {
        let target = Target { name: "i-1".to_owned(), is_there };
        let trial = judge("StartInstances", &target, Err(Refusal::with_code(Some(code))));
        assert_eq!(trial.permit, permit, "{code}, {is_there}: {}", trial.detail);
    }

    #[test]
    fn only_what_is_there_shows_a_refusal() {
        check("DryRunOperation", true, Permit::Permitted);
        check("DryRunOperation", false, Permit::Permitted);
        check("UnauthorizedOperation", true, Permit::Refused);
        check("UnauthorizedOperation", false, Permit::Unclear);
        check("InvalidInstanceID.NotFound", false, Permit::Unclear);
        check("InvalidInstanceID.NotFound", true, Permit::Unclear);
        check("RequestLimitExceeded", true, Permit::Unclear);
    }

    #[test]
    fn answer_that_is_no_answer_to_a_trial_permits_nothing() {
        let trial = judge("CreateTags", &Target::new("i-1".to_owned()), Ok(()));
        assert_eq!(trial.permit, Permit::Unclear);
    }
}
