//! The worker and the balancer, built once for all tests.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The folder that holds both programs.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build)
}

/// The root of the workspace, with `recipes/`.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ lies in the workspace")
}

fn build() -> PathBuf {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names = ["worker", "balancer"].map(str::to_owned);
    let built = runtime.block_on(labhost::programs::build(workspace(), &names)).unwrap();
    let folder = built[0].parent().expect("a program lies in a folder");
    assert_eq!(built[1].parent(), Some(folder), "both programs lie in one folder");
    folder.to_owned()
}
