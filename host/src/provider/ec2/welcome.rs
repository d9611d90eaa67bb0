//! The first login: the host key that user data brought is replaced by one that only this machine and the instance
//! know.
//!
//! Until then both are pinned, so a labhost that is killed in between finds its way back; afterwards the own key
//! alone is. The new key travels over the session that was checked strictly against the first one.

use super::Ec2;
use crate::{
    Error,
    provider::Instance,
    ssh::{Command, Session},
};

impl Ec2 {
    /// Returns whether the key was replaced now.
    pub(super) async fn replace_host_key(
        &self,
        instance: &Instance,
        session: &Session,
    ) -> Result<bool, Error> {
        if self.store.own_keys().contains_key(&instance.id) {
            return Ok(false);
        }
        let Some((token, index)) = self.known().launched.get(&instance.id).cloned() else { return Ok(false) };
        let attempt = self.store.attempts().into_iter().find(|it| it.client_token() == token);
        let Some(own) = attempt.and_then(|attempt| attempt.own.into_iter().nth(index)) else {
            return Ok(false);
        };
        let command = Command {
            line: "labhost-service host-key".to_owned(),
            stdin: Some(own.secret.into_bytes()),
            check: true,
            ..Command::default()
        };
        session.run(&command).await?;
        self.store.settle(&instance.id, &token, index)?;
        Ok(true)
    }
}
