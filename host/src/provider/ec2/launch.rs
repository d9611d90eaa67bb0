//! Launching: one call for all new members of a fleet, all of them or none, asked for once whatever happens.
//!
//! A client token makes a repeated call return what the first one made. Before the call, everything that is
//! particular to it is on disk, because a token stands for one request, word for word. When the instances behind a
//! token are gone, the next generation of it is used; when a zone is full, the next zone.

use std::time::SystemTime;

use aws_sdk_ec2::{
    operation::run_instances::builders::RunInstancesFluentBuilder,
    types::{
        BlockDeviceMapping, CreditSpecificationRequest, EbsBlockDevice, HttpTokensState,
        Instance as Described, InstanceMetadataEndpointState, InstanceMetadataOptionsRequest,
        InstanceNetworkInterfaceSpecification, InstanceType, ShutdownBehavior,
    },
};
use aws_smithy_types::base64;

use super::{
    Ec2, image, network, poll,
    refusal::Refusal,
    store::Attempt,
    tags, types, userdata,
    view::{self, HostKeys},
};
use crate::{
    Error,
    instance::{Instance, State},
    provider::Launch,
    units::epoch_s,
};

/// Generations of one token; each means that somebody terminated what the last one made.
const GENERATIONS_MAX: u32 = 16;

/// Where and as what instances are launched, in AWS's words.
pub(super) struct Resolved {
    pub(super) key: Option<String>,
    pub(super) group: Option<String>,
    pub(super) image: String,
    pub(super) user: String,
    /// Disks that the image would leave behind.
    pub(super) disks: Vec<image::Disk>,
}

/// Only what is to be otherwise than in the image: the rest of a mapping stays as the image has it.
fn disks_that_go(disks: &[image::Disk]) -> Option<Vec<BlockDeviceMapping>> {
    let goes = |disk: &image::Disk| {
        let ebs = EbsBlockDevice::builder().delete_on_termination(true).set_volume_size(disk.gib);
        BlockDeviceMapping::builder().device_name(&disk.device).ebs(ebs.build()).build()
    };
    if disks.is_empty() { None } else { Some(disks.iter().map(goes).collect()) }
}

impl Ec2 {
    pub(super) async fn launch_fleet(&self, launch: &Launch) -> Result<Vec<Instance>, Error> {
        let resolved = self.resolve(launch).await?;
        let mut attempt = match self.store.attempt(&launch.token) {
            Some(attempt) if attempt.own.len() == launch.slots.len() => attempt,
            _ => {
                let number = self.store.attempts().len();
                Attempt::new(launch, network::order(&self.network().await?.subnets, number))?
            }
        };
        loop {
            attempt.asked_at_s = epoch_s(SystemTime::now());
            self.store.save(&attempt)?;
            let refusal = match self.run_instances(launch, &resolved, &attempt).await {
                Ok(made) => return self.launched(launch, attempt, &made),
                Err(refusal) => refusal,
            };
            match refusal.code.as_deref() {
                Some("IdempotentInstanceTerminated") => attempt.next_generation(),
                Some("IdempotentParameterMismatch") => {
                    if let Some(made) = self.made_with(&attempt.client_token()).await? {
                        return self.launched(launch, attempt, &made);
                    }
                    attempt.next_generation();
                }
                Some("InsufficientInstanceCapacity" | "Unsupported")
                    if attempt.at + 1 < attempt.subnets.len() =>
                {
                    attempt.at += 1;
                    self.say(&format!("{refusal}; trying the next zone"));
                }
                code => {
                    // Without a code there was no answer, and the launch may have been made.
                    if code.is_some() {
                        attempt.asked_at_s = 0;
                        self.store.save(&attempt)?;
                    }
                    return Err(refusal.into());
                }
            }
            if attempt.generation > GENERATIONS_MAX {
                return Err(refusal.into());
            }
        }
    }

    /// Another launch of this fleet may have been made by a labhost that was killed before it had the answer, and not
    /// be listed yet.
    pub(super) async fn await_other_launches(
        &self,
        launch: &Launch,
        known: &[Instance],
    ) -> Result<Vec<String>, Error> {
        let is_open =
            |it: &Attempt| it.fleet == launch.fleet && it.token != launch.token && it.ids.is_empty();
        let open: Vec<_> = self.store.attempts().into_iter().filter(is_open).collect();
        if open.iter().all(|it| it.unseen(poll::young_since_s(), &[]).is_empty()) {
            return Ok(Vec::new());
        }
        let listed = self.describe_when_settled(&open).await?;
        let made = |it: &&Described| open.iter().any(|of| it.client_token() == Some(&of.client_token()));
        let lives = |it: &&Described| !matches!(view::state(it), State::Terminated | State::ShuttingDown);
        let ids = listed.iter().filter(made).filter(lives).filter_map(|it| it.instance_id());
        Ok(ids.filter(|id| known.iter().all(|it| it.id != *id)).map(str::to_owned).collect())
    }

    async fn resolve(&self, launch: &Launch) -> Result<Resolved, Error> {
        let key = Some(self.key_name(&launch.key)?);
        let group = match &launch.group {
            Some(name) => Some(self.group_id(name).await?),
            None => None,
        };
        let image = match &launch.image {
            Some(id) => id.clone(),
            None => self.find_image(image::NAME_DEFAULT, None).await?,
        };
        let (user, disks) = (self.user_for(&image), self.lasting_disks(&image).await?);
        Ok(Resolved { key, group, image, user, disks })
    }

    async fn run_instances(
        &self,
        launch: &Launch,
        resolved: &Resolved,
        attempt: &Attempt,
    ) -> Result<Vec<Described>, Refusal> {
        let operation =
            format!("launch {} ({} x {})", launch.fleet, launch.slots.len(), launch.instance_type);
        let call = self
            .request(launch, resolved, attempt)
            .await
            .map_err(|error| Refusal::before(&operation, error))?;
        let answer = call.send().await.map_err(|cause| Refusal::of(operation, cause))?;
        Ok(answer.instances.unwrap_or_default())
    }

    /// The call, not yet sent.
    pub(super) async fn request(
        &self,
        launch: &Launch,
        resolved: &Resolved,
        attempt: &Attempt,
    ) -> Result<RunInstancesFluentBuilder, Error> {
        let count = i32::try_from(launch.slots.len()).unwrap_or(i32::MAX);
        let user_data = userdata::render(userdata::Facts {
            user: &resolved.user,
            host_key: &attempt.first.secret,
            host_key_public: &attempt.first.public,
            expires_at_s: launch.expires_at_s,
        });
        let interface = InstanceNetworkInterfaceSpecification::builder()
            .device_index(0)
            .associate_public_ip_address(true)
            .delete_on_termination(true)
            .set_subnet_id(attempt.subnet().map(str::to_owned))
            .set_groups(resolved.group.clone().map(|id| vec![id]))
            .build();
        // Without tokens any program on the instance could read what its user data brought.
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            .http_put_response_hop_limit(1)
            .build();
        let call = self.client().await?.ec2.run_instances();
        let call = call
            .client_token(attempt.client_token())
            .min_count(count)
            .max_count(count)
            .image_id(&resolved.image)
            .instance_type(InstanceType::from(launch.instance_type.as_str()))
            .set_key_name(resolved.key.clone())
            .network_interfaces(interface)
            .metadata_options(metadata)
            .set_block_device_mappings(disks_that_go(&resolved.disks))
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .user_data(base64::encode(user_data))
            .set_tag_specifications(Some(self.mine().await?.launched(launch, &resolved.user)));
        // Newer burstable types would otherwise run on beyond their credits, at extra cost.
        let credits = CreditSpecificationRequest::builder().cpu_credits("standard").build();
        Ok(if types::is_burstable(&launch.instance_type) { call.credit_specification(credits) } else { call })
    }

    /// The living instances that an earlier call with this token made, looked for until AWS must know them.
    async fn made_with(&self, token: &str) -> Result<Option<Vec<Described>>, Error> {
        let mut waiting = self.pace.waiting(self.pace.eventual);
        loop {
            let found = self.describe(&[tags::filter("client-token", [token])]).await?;
            let (gone, living): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|it| matches!(view::state(it), State::Terminated | State::ShuttingDown));
            if !living.is_empty() {
                return Ok(Some(living));
            }
            if !gone.is_empty() || !waiting.go_on().await {
                return Ok(None);
            }
        }
    }

    /// Remembers what was made, because a listing may not show it yet.
    fn launched(
        &self,
        launch: &Launch,
        mut attempt: Attempt,
        made: &[Described],
    ) -> Result<Vec<Instance>, Error> {
        attempt.ids = made.iter().filter_map(|it| it.instance_id().map(str::to_owned)).collect();
        attempt.made_at_s = epoch_s(SystemTime::now());
        self.store.save(&attempt)?;
        let mut instances = self.view(made, &HostKeys::of(&self.store));
        instances.sort_by_key(|instance| launch.slots.iter().position(|slot| *slot == instance.slot));
        if instances.len() == launch.slots.len() {
            return Ok(instances);
        }
        let message = format!(
            "launch {}: AWS made {} of {} instances, although all or none were asked for: {}",
            launch.fleet,
            instances.len(),
            launch.slots.len(),
            attempt.ids.join(", ")
        );
        Err(Error::provider(message).with_hint("Run again: they are kept, and the others are launched."))
    }
}
