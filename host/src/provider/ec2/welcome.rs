//! The first login: it is looked whether the instance will end by itself, and the host key that user data brought is
//! replaced by one that only this machine and the instance know.
//!
//! Until then both are pinned, so a labhost that is killed in between finds its way back; afterwards the own key
//! alone is. The new key travels over the session that was checked strictly against the first one.

use std::time::Duration;

use super::Ec2;
use crate::{
    Error,
    instance::Instance,
    ssh::{Command, Session},
};

/// How long the instance may take to say whether it ends by itself. It is busy with booting.
const GUARD_WITHIN: Duration = Duration::from_secs(60);

/// Errors unless the instance ends by itself at its time. Nothing is terminated: what is wrong can be seen on it.
async fn check_guard(instance: &Instance, session: &Session) -> Result<(), Error> {
    let command = Command::new("labhost-service guard").unchecked().timeout(GUARD_WITHIN);
    let output = session.run(&command).await?;
    if output.code == 0 {
        return Ok(());
    }
    let (name, id) = (&instance.name, &instance.id);
    let message = format!(
        "log in to {name} ({id}): it would never end by itself: what ends it at its time does not run"
    );
    Err(Error::host(message).with_detail(String::from_utf8_lossy(&output.stderr).trim()).with_hint(format!(
        "It runs and costs money. `labhost ssh {name} systemctl status labhost-ttl.timer cloud-final` says more; remove \
         the lab with recipes/stop.rhai --confirm, or terminate {id} in AWS's console and run again."
    )))
}

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
        check_guard(instance, session).await?;
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
