//! One SSH connection per instance and run, opened when first needed.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::{Error, Kind, identity, instance::Instance, provider::Provider, ssh::Session};

/// The connections of a run; at most one per instance.
pub(super) struct Sessions {
    provider: Arc<dyn Provider>,
    config: PathBuf,
    control_dir: PathBuf,
    cancel: CancellationToken,
    /// Whether a first login has changed an instance's host key since this was last asked.
    welcomed: AtomicBool,
    /// Set once this machine is let in.
    admitted: OnceCell<()>,
    open: Mutex<HashMap<String, Arc<OnceCell<Session>>>>,
}

/// How long a host that is up may take to accept a login, when the recipe has not waited for it before.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

impl Sessions {
    pub(super) fn new(provider: Arc<dyn Provider>, state_dir: &Path, cancel: CancellationToken) -> Self {
        let control_dir = identity::runtime_dir(state_dir).join("ssh");
        Self {
            provider,
            config: state_dir.join("ssh_config"),
            control_dir,
            cancel,
            welcomed: AtomicBool::new(false),
            admitted: OnceCell::new(),
            open: Mutex::default(),
        }
    }

    /// The connection to this instance, made within the default time if there is none yet.
    pub(super) async fn get(&self, instance: &Instance) -> Result<Session, Error> {
        self.connect(instance, CONNECT_WITHIN).await
    }

    pub(super) async fn connect(&self, instance: &Instance, within: Duration) -> Result<Session, Error> {
        let cell = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(open.entry(instance.id.clone()).or_default())
        };
        cell.get_or_try_init(|| self.log_in(instance, within)).await.cloned()
    }

    /// Whether host keys have changed, so that the SSH configuration must be written anew; asking forgets it.
    pub(super) fn has_welcomed(&self) -> bool {
        self.welcomed.swap(false, Ordering::AcqRel)
    }

    /// Logs in, and lets the provider do what it does at each login. A failure is shown with what the instance says
    /// of itself.
    async fn log_in(&self, instance: &Instance, within: Duration) -> Result<Session, Error> {
        self.admitted.get_or_try_init(|| self.provider.admit_caller()).await?;
        let login = Session::connect(instance, &self.config, &self.control_dir, within, &self.cancel).await;
        match login {
            Ok(session) => {
                let has_changed = self.provider.welcome(instance, &session).await?;
                self.welcomed.fetch_or(has_changed, Ordering::AcqRel);
                Ok(session)
            }
            Err(error) if error.kind == Kind::Host && error.detail.is_none() => {
                // What cannot be found out is no reason to hide the failure itself.
                let said = self.provider.diagnose(&instance.id).await.ok().flatten();
                Err(error.with_detail(said.unwrap_or_default()))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn close(&self) {
        let open: Vec<_> =
            self.open.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, cell)| cell).collect();
        let mut closing = tokio::task::JoinSet::new();
        for session in open.iter().filter_map(|cell| cell.get().cloned()) {
            closing.spawn(async move { session.close().await });
        }
        // A connection that does not end in time is ended by its own idle limit.
        let _ = tokio::time::timeout(Duration::from_secs(1), closing.join_all()).await;
    }
}
