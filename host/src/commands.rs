//! The small commands beside recipes: check, ssh, logs, extend. `docs`, `status` and `doctor` have modules of their
//! own.
//!
//! None of them runs a recipe.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    Error, check,
    cli::Options,
    engine,
    failure::Problem,
    identity,
    instance::{Instance, ends, is_running},
    lab::Lab,
    locate,
    nearest::nearest,
    recipe::Recipe,
    ssh,
    ui::Ui,
    units::Span,
};

/// How long a host may take to accept the login that moves its deadline.
const EXTEND_WITHIN: Duration = Duration::from_secs(20);

/// `labhost check`: prints what is wrong and fails, or says that nothing is.
pub fn check(name: &str, ui: &Ui) -> Result<(), Vec<Problem>> {
    let recipe = Arc::new(Recipe::locate(name).map_err(|error| vec![error.into()])?);
    let checked = check::check(&engine::build(Arc::clone(&recipe)), &recipe);
    if !checked.problems.is_empty() {
        return Err(checked.problems);
    }
    let files: Vec<_> = checked.files.iter().map(|file| recipe.shown(file)).collect();
    ui.info(&format!("no mistakes found in {}", files.join(", ")));
    Ok(())
}

/// The running instance with this name or id, and the SSH configuration, written anew.
fn host(options: &Options, name: &str, ui: &Arc<Ui>) -> Result<(PathBuf, Instance), Error> {
    let lab = locate::lab(options, locate::state_dir(options, None)?, "labhost ssh".to_owned(), ui)?;
    let instances = locate::runtime()?.block_on(lab.list())?;
    let found = instances
        .iter()
        .find(|instance| instance.name == name || instance.id == name || instance.fleet == name)
        .cloned();
    let found = found.ok_or_else(|| {
        let known: Vec<_> = instances.iter().map(|instance| instance.name.as_str()).collect();
        let near = nearest(name, known.iter().copied())
            .map_or_else(String::new, |near| format!("did you mean {near}? "));
        let hint = if known.is_empty() {
            "The lab has no instances.".to_owned()
        } else {
            format!("{near}There are {}.", known.join(", "))
        };
        Error::usage(format!("there is no host called `{name}`")).with_hint(hint)
    })?;
    if !is_running(&found) {
        return Err(Error::host(format!("{} does not run", found.name))
            .with_hint("Running the recipe again starts it: recipes/run.rhai."));
    }
    locate::runtime()?.block_on(lab.provider().admit_caller())?;
    lab.write_ssh_config(&instances)?;
    Ok((lab.dir().join("ssh_config"), found))
}

/// `labhost ssh HOST [COMMAND]`: becomes `ssh`.
pub fn ssh(options: &Options, name: &str, command: &[String], ui: &Arc<Ui>) -> Result<(), Error> {
    let (config, instance) = host(options, name, ui)?;
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(config).arg(&instance.id);
    if !command.is_empty() {
        ssh.arg("--").args(command);
    }
    Err(Error::internal(format!("start ssh: {}", ssh.exec())))
}

/// `labhost logs HOST SERVICE [--follow]`.
pub fn logs(
    options: &Options,
    name: &str,
    service: &str,
    lines: u32,
    follow: bool,
    ui: &Arc<Ui>,
) -> Result<(), Error> {
    let line =
        format!("labhost-service logs {} -n {lines}{}", ssh::quote(service), if follow { " -f" } else { "" });
    ssh(options, name, &[line], ui)
}

/// `labhost extend TTL`.
pub fn extend(options: &Options, ttl: Span, ui: &Arc<Ui>) -> Result<(), Error> {
    let lab = locate::lab(options, locate::state_dir(options, None)?, format!("labhost extend {ttl}"), ui)?;
    let runtime = locate::runtime()?;
    let instances = runtime.block_on(lab.list())?;
    if instances.is_empty() {
        return Err(Error::usage("this lab has no instances to extend"));
    }
    let at = runtime.block_on(lab.extend(ttl))?;
    if lab.provider().is_expiry_kept_on_instances() {
        runtime.block_on(lab.provider().admit_caller())?;
        runtime.block_on(extend_on_instances(&lab, instances, at))?;
    }
    ui.info(&format!("the instances {}", ends(at)));
    Ok(())
}

/// Moves the deadline that each instance keeps itself; all of them at once.
async fn extend_on_instances(lab: &Lab, instances: Vec<Instance>, at: u64) -> Result<(), Error> {
    let config = lab.dir().join("ssh_config");
    let control_dir = identity::runtime_dir(lab.dir()).join("ssh");
    let mut tasks = tokio::task::JoinSet::new();
    for instance in instances {
        let (config, control_dir) = (config.clone(), control_dir.clone());
        tasks.spawn(async move {
            let never = CancellationToken::new();
            let session =
                ssh::Session::connect(&instance, &config, &control_dir, EXTEND_WITHIN, &never).await?;
            let line = format!("labhost-service expires {at}");
            let done = session.run(&ssh::Command { line, check: true, ..ssh::Command::default() }).await;
            session.close().await;
            done.map(drop)
        });
    }
    tasks.join_all().await.into_iter().collect()
}
