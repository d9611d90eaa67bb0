//! Login keys at AWS: imported from here, so that the private half never travels, or adopted as they are.

use aws_sdk_ec2::{primitives::Blob, types::KeyPairInfo, types::ResourceType};

use super::{Ec2, refusal::Refusal, tags};
use crate::{Error, provider::LoginKey};

/// Type and body of a public key, without its comment.
fn essence(public: &str) -> Vec<&str> {
    public.split_whitespace().take(2).collect()
}

fn is_same(info: &KeyPairInfo, public: &str) -> bool {
    info.public_key().is_some_and(|there| essence(there) == essence(public))
}

impl Ec2 {
    /// The lab's key pairs, fresh from AWS.
    pub(super) async fn list_keys(&self) -> Result<Vec<KeyPairInfo>, Error> {
        let call = self.client().await?.ec2.describe_key_pairs().filters(tags::of_lab(&self.lab));
        let found = call.include_public_key(true).send().await;
        let found = found.map_err(|cause| Refusal::of("list key pairs", cause))?;
        Ok(found.key_pairs.unwrap_or_default())
    }

    /// The name at AWS of the key that recipes call `name`, made or adopted in this run.
    pub(super) fn key_name(&self, name: &str) -> Result<String, Error> {
        self.known().keys.get(name).cloned().ok_or_else(|| {
            Error::provider(format!("there is no key `{name}`"))
                .with_hint("Make it with ec2::key_pair before ec2::instances.")
        })
    }

    pub(super) async fn settle_key(&self, key: &LoginKey) -> Result<(), Error> {
        let name = if key.adopt { self.adopt_key(key).await? } else { self.import_key(key).await? };
        self.known().keys.insert(key.name.clone(), name);
        Ok(())
    }

    async fn adopt_key(&self, key: &LoginKey) -> Result<String, Error> {
        let call =
            self.client().await?.ec2.describe_key_pairs().key_names(&key.name).include_public_key(true);
        let found =
            call.send().await.map_err(|cause| Refusal::of(format!("adopt key {}", key.name), cause))?;
        let info = found.key_pairs().first();
        // AWS does not show the public half of every key that it generated; then the login will tell.
        if info.is_some_and(|info| info.public_key().is_some() && !is_same(info, &key.public)) {
            return Err(Error::provider(format!(
                "adopt key {}: the given private key is not its own",
                key.name
            ))
            .with_hint("Give the file that belongs to it (in a Learner Lab: Download PEM)."));
        }
        Ok(key.name.clone())
    }

    /// The key of this lab and name, if AWS has it, and whether it is the one here.
    pub(super) async fn find_key(&self, key: &LoginKey) -> Result<Option<bool>, Error> {
        let keys = self.list_keys().await?;
        let named =
            keys.iter().find(|info| tags::map(info.tags()).get(tags::NAME) == Some(&key.name.as_str()));
        Ok(named.map(|info| is_same(info, &key.public)))
    }

    async fn import_key(&self, key: &LoginKey) -> Result<String, Error> {
        let full = tags::full_name(&self.lab, &key.name);
        match self.find_key(key).await? {
            Some(true) => return Ok(full),
            Some(false) => {
                self.say(&format!("key {}: its private half was lost here, so it is replaced", key.name));
                self.delete_key(&full).await?;
            }
            None => {}
        }
        let tags = self.mine().await?.named(&key.name, ResourceType::KeyPair);
        let call = self.client().await?.ec2.import_key_pair().key_name(&full).tag_specifications(tags);
        let call = call.public_key_material(Blob::new(key.public.as_bytes()));
        let done = call.send().await.map_err(|cause| Refusal::of(format!("import key {}", key.name), cause));
        match done {
            Ok(_) => Ok(full),
            Err(refusal) if refusal.is("InvalidKeyPair.Duplicate") => self.take_key(key, full, refusal).await,
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// A key of our name exists without our tags: it is used when it is the same key, and left alone when not.
    async fn take_key(&self, key: &LoginKey, full: String, refusal: Refusal) -> Result<String, Error> {
        let call = self.client().await?.ec2.describe_key_pairs().key_names(&full).include_public_key(true);
        let found = call.send().await.map_err(|cause| Refusal::of(format!("look at key {full}"), cause))?;
        if found.key_pairs().iter().any(|info| is_same(info, &key.public)) {
            self.say(&format!("key {}: {full} exists already and is the same, so it is used", key.name));
            return Ok(full);
        }
        Err(Error::from(refusal).with_hint(format!(
            "Another key called {full} exists without this lab's tags, so it is left alone: rename or remove it."
        )))
    }

    /// A key that is gone already is no error.
    pub(super) async fn delete_key(&self, full: &str) -> Result<(), Error> {
        let call = self.client().await?.ec2.delete_key_pair().key_name(full);
        match call.send().await.map_err(|cause| Refusal::of(format!("delete key {full}"), cause)) {
            Err(refusal) if !refusal.is_not_found() => Err(refusal.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_make_no_difference_between_keys() {
        let info = KeyPairInfo::builder().public_key("ssh-ed25519 AAAA name-at-aws").build();
        assert!(is_same(&info, "ssh-ed25519 AAAA"));
        assert!(!is_same(&info, "ssh-ed25519 AAAB name-at-aws"));
        assert!(!is_same(&KeyPairInfo::builder().build(), "ssh-ed25519 AAAA"));
    }
}
