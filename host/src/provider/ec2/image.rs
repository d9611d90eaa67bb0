//! The image that instances boot from, found by name among its maker's, newest first.
//!
//! What was found is recorded by the lab, so that a re-run boots the same. No disk of an image outlives its instance,
//! whatever the image says.

use aws_sdk_ec2::types::{BlockDeviceMapping, Image};

use super::{Ec2, refusal::Refusal, tags, types::Arch};
use crate::{Error, Kind, nearest::nearest};

/// Canonical's account.
const CANONICAL: &str = "099720109477";
/// The login of Canonical's images.
pub(super) const USER_DEFAULT: &str = "ubuntu";
/// The image when a recipe names none.
pub(super) const NAME_DEFAULT: &str = "ubuntu-22.04";

/// Names that recipes use, and the release in Canonical's image names.
const RELEASES: [(&str, &str); 2] = [("ubuntu-22.04", "jammy-22.04"), ("ubuntu-24.04", "noble-24.04")];

/// Canonical's names differ in the kind of disk (hvm-ssd, hvm-ssd-gp3).
fn pattern(name: &str, arch: Arch) -> Result<String, Error> {
    let release = RELEASES.iter().find(|(known, _)| *known == name).map(|(_, release)| release);
    let release = release.ok_or_else(|| unknown(name))?;
    Ok(format!("ubuntu/images/hvm-ssd*/ubuntu-{release}-{}-server-*", arch.debian_name()))
}

fn unknown(name: &str) -> Error {
    let known = RELEASES.map(|(known, _)| known);
    let near = nearest(name, known).map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    Error::new(Kind::Recipe, format!("unknown image `{name}`"))
        .with_hint(format!("{near}Known are {}, and any image's id (ami-...).", known.join(", ")))
}

/// The login of an image by its name at AWS.
fn user_of(image: &Image) -> &'static str {
    let name = image.name().unwrap_or_default();
    if name.contains("al2023") || name.contains("amzn") {
        "ec2-user"
    } else if name.contains("debian") {
        "admin"
    } else {
        USER_DEFAULT
    }
}

/// A disk that an image brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// For example `/dev/sda1`.
    pub(super) device: String,
    pub(super) gib: Option<i32>,
}

/// Disks that would stay, and cost money, when an instance of this image has ended.
fn lasting_disks(image: &Image) -> Vec<Disk> {
    let lasting = |mapping: &BlockDeviceMapping| {
        let ebs = mapping.ebs().filter(|ebs| ebs.delete_on_termination() != Some(true))?;
        Some(Disk { device: mapping.device_name()?.to_owned(), gib: ebs.volume_size() })
    };
    image.block_device_mappings().iter().filter_map(lasting).collect()
}

impl Ec2 {
    /// The id of the image called `name`.
    pub(super) async fn find_image(&self, name: &str, before: Option<&str>) -> Result<String, Error> {
        if name.starts_with("ami-") {
            return self.check_image(name).await;
        }
        let arch = self.arch()?;
        let pattern = pattern(name, arch)?;
        if let Some(before) = before {
            return Ok(before.to_owned());
        }
        let filters = [
            tags::filter("name", [pattern.as_str()]),
            tags::filter("architecture", [arch.ec2_name()]),
            tags::filter("virtualization-type", ["hvm"]),
            tags::filter("root-device-type", ["ebs"]),
            tags::filter("state", ["available"]),
        ];
        let call =
            self.client().await?.ec2.describe_images().owners(CANONICAL).set_filters(Some(filters.to_vec()));
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let found = found.map_err(|cause| Refusal::of(format!("find image {name}"), cause))?;
        let newest = found.iter().max_by_key(|image| image.creation_date().unwrap_or_default());
        let newest = newest.and_then(|image| Some((image.image_id()?, image.name()?))).ok_or_else(|| {
            Error::provider(format!("find image {name}: this region has none for {}", arch.ec2_name()))
                .with_hint(
                    "Choose another region with --region, or give an image's id (ami-...) in the recipe.",
                )
        })?;
        found.iter().for_each(|image| self.remember_disks(image));
        self.say(&format!("image {name}: {} ({})", newest.0, newest.1));
        Ok(newest.0.to_owned())
    }

    /// An image that the recipe gives by its id: it must exist and be of this build's architecture.
    async fn check_image(&self, id: &str) -> Result<String, Error> {
        let image = self.describe_image(id).await?.ok_or_else(|| {
            Error::provider(format!("find image {id}: there is none in this region"))
                .with_hint("Ids of images differ between regions.")
        })?;
        let arch = image.architecture().and_then(|arch| Arch::from_name(arch.as_str()));
        if arch != Some(self.arch()?) {
            return Err(Error::provider(format!("image {id} is not for {}", self.arch()?.ec2_name()))
                .with_hint(
                    "The programs are built for this machine's architecture; choose an image of the same.",
                ));
        }
        self.known().users.insert(id.to_owned(), user_of(&image).to_owned());
        self.remember_disks(&image);
        Ok(id.to_owned())
    }

    /// `None` when there is no such image.
    async fn describe_image(&self, id: &str) -> Result<Option<Image>, Error> {
        let call = self.client().await?.ec2.describe_images().image_ids(id);
        let found = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        match found.map_err(|cause| Refusal::of(format!("find image {id}"), cause)) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(refusal) if refusal.is_not_found() => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    fn remember_disks(&self, image: &Image) {
        let Some(id) = image.image_id() else { return };
        self.known().disks.insert(id.to_owned(), lasting_disks(image));
    }

    /// The disks of an image that would outlive an instance; asked for unless this process knows them. An image that
    /// is not there has none: the launch itself says so.
    pub(super) async fn lasting_disks(&self, id: &str) -> Result<Vec<Disk>, Error> {
        if let Some(known) = self.known().disks.get(id) {
            return Ok(known.clone());
        }
        let Some(image) = self.describe_image(id).await? else { return Ok(Vec::new()) };
        self.remember_disks(&image);
        Ok(lasting_disks(&image))
    }

    /// The login of instances from this image.
    pub(super) fn user_for(&self, image: &str) -> String {
        let found = || self.known().users.get(image).cloned();
        self.reach.user.clone().or_else(found).unwrap_or_else(|| USER_DEFAULT.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_canonicals_patterns() {
        let pattern = pattern("ubuntu-22.04", Arch::X86_64).unwrap();
        assert_eq!(pattern, "ubuntu/images/hvm-ssd*/ubuntu-jammy-22.04-amd64-server-*");
        let error = super::pattern("ubuntu-22.4", Arch::Aarch64).unwrap_err();
        assert!(error.hint.unwrap().contains("did you mean `ubuntu-22.04`"));
    }
}
