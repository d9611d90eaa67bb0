//! The server that local instances have: a lab of one instance, in a state directory and with an agent of its own.

use std::{collections::BTreeMap, path::Path, pin::Pin, time::SystemTime};

use labhost::provider::{Launch, LoginKey, Provider, local::Local};
use labhost::units::epoch_s;
use tempfile::TempDir;

use super::{Server, Target, control_directory, generate};

/// Longer than any test takes, so that no instance expires under one.
const LIFE_S: u64 = 3600;

pub(crate) async fn running() -> Target {
    launched(true).await
}

pub(crate) async fn stopped() -> Target {
    launched(false).await
}

async fn launched(with_ssh: bool) -> Target {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    let lab = Lab { local: Local::new(&state, Path::new(env!("CARGO_BIN_EXE_labhost"))).unwrap() };
    let identity = directory.path().join("login_key");
    lab.local.start().await.unwrap();
    let key = LoginKey { name: "lab".to_owned(), public: generate(&identity), adopt: false };
    lab.local.ensure_key(&key).await.unwrap();
    lab.local.set_ssh(with_ssh).await.unwrap();
    let instance = lab.local.launch(&launch()).await.unwrap().remove(0);
    Target {
        server: Box::new(lab),
        instance,
        identity,
        programs: state.join("local/bin"),
        directory,
        control: control_directory(),
    }
}

fn launch() -> Launch {
    Launch {
        token: "one".to_owned(),
        fleet: "app".to_owned(),
        instance_type: "t2.micro".to_owned(),
        slots: vec![1],
        cluster: None,
        role: None,
        key: "lab".to_owned(),
        group: None,
        image: None,
        tags: BTreeMap::new(),
        expires_at_s: epoch_s(SystemTime::now()) + LIFE_S,
    }
}

struct Lab {
    local: Local,
}

impl Server for Lab {
    fn start(&mut self) {
        wait_for(self.local.set_ssh(true)).unwrap();
    }

    /// Here, unlike with OpenSSH's server, the commands of a connection end with it.
    fn cut(&mut self) {
        wait_for(self.local.set_ssh(false)).unwrap();
        self.start();
    }

    fn beside(&self) -> Pin<Box<dyn Future<Output = Target> + Send>> {
        Box::pin(running())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let left = wait_for(async { (self.local.destroy(false).await, self.local.remains().await) });
        if !std::thread::panicking() {
            assert_eq!(left, (Ok(Vec::new()), Ok(Vec::new())), "the lab is gone");
        }
    }
}

/// Waits outside the runtime of the test, which may be in the middle of something, or over.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let wait =
        || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
    std::thread::scope(|scope| scope.spawn(wait).join().unwrap())
}
