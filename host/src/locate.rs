//! Finds the lab that a command means: its folder, its provider, and the lab itself.
//!
//! It launches nothing and writes nothing; a provider is only named here, not asked.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::runtime::Runtime;

use crate::{
    Error, Kind,
    cli::Options,
    error::Context as _,
    lab::{self, Lab, Limits},
    provider::{Provider, local::Local},
    recipe::Recipe,
    ui::Ui,
};

/// The lab at this state directory, with the provider that the options name.
pub fn lab(options: &Options, dir: PathBuf, command: String, ui: &Arc<Ui>) -> Result<Lab, Error> {
    let provider = provider(options, &dir, ui)?;
    let limits = Limits {
        ttl: options.lifetime(),
        ttl_max: options.max_ttl,
        instances_max: options.max_instances,
        hourly_max: options.max_hourly,
    };
    limits.check_ttl(limits.ttl)?;
    Ok(Lab::new(dir, provider, command, limits))
}

/// Where the lab's state lies: `--state`, else `artifacts` beside the recipes of `recipe` or of this folder.
pub fn state_dir(options: &Options, recipe: Option<&Recipe>) -> Result<PathBuf, Error> {
    let here = std::env::current_dir().context(Kind::Usage, || "find the current folder".to_owned())?;
    let dir = match (&options.state, recipe) {
        (Some(dir), _) => here.join(dir),
        (None, Some(recipe)) => recipe.root.join("artifacts"),
        (None, None) => Recipe::root_around(&here)
            .ok_or_else(|| {
                Error::usage(format!("there is no lab in or above {}", here.display()))
                    .with_hint("Go to the folder with recipes/, or give the lab's folder with --state DIR.")
            })?
            .join("artifacts"),
    };
    // The lab's identity follows from this path, so it must not depend on how it was written.
    let whole = dir.canonicalize().or_else(|_| {
        let parent = dir.parent().unwrap_or(&here).canonicalize()?;
        Ok::<_, std::io::Error>(parent.join(dir.file_name().unwrap_or_default()))
    });
    whole.context(Kind::Usage, || format!("state folder {}", dir.display()))
}

/// The provider that the options name, or else the one of the lab's last run, or else this machine.
pub fn provider(options: &Options, state_dir: &Path, ui: &Arc<Ui>) -> Result<Arc<dyn Provider>, Error> {
    match provider_name(options.provider.as_deref(), lab::provider_of(state_dir))?.as_str() {
        "local" => {
            let exe = std::env::current_exe()
                .context(Kind::Internal, || "find labhost's own program".to_owned())?;
            Ok(Arc::new(Local::new(state_dir, &exe)?))
        }
        "ec2" => ec2(options, state_dir, ui),
        other => {
            Err(Error::usage(format!("unknown provider `{other}`")).with_hint("It is `local` or `ec2`."))
        }
    }
}

/// A lab that exists stays with its provider: with another one its instances would be out of sight.
fn provider_name(wished: Option<&str>, recorded: Option<String>) -> Result<String, Error> {
    match (wished, recorded) {
        (Some(wished), Some(recorded)) if wished != recorded => {
            Err(Error::usage(format!("this folder's lab runs on {recorded}, not on {wished}")).with_hint(
                "Remove it first (recipes/stop.rhai --confirm without --provider), or use another folder with --state DIR.",
            ))
        }
        (Some(name), _) => Ok(name.to_owned()),
        (None, recorded) => Ok(recorded.unwrap_or_else(|| "local".to_owned())),
    }
}

#[cfg(feature = "ec2")]
fn ec2(options: &Options, state_dir: &Path, ui: &Arc<Ui>) -> Result<Arc<dyn Provider>, Error> {
    use crate::provider::ec2::{Ec2, Settings};
    let ui = Arc::clone(ui);
    let settings = Settings {
        region: options.ec2.region.clone(),
        my_ip: options.ec2.my_ip,
        owner: options.ec2.owner.clone(),
        lab: options.ec2.lab.clone(),
        say: Arc::new(move |text| ui.note(text)),
    };
    Ok(Arc::new(Ec2::new(state_dir, settings)?))
}

#[cfg(not(feature = "ec2"))]
fn ec2(_options: &Options, _state_dir: &Path, _ui: &Arc<Ui>) -> Result<Arc<dyn Provider>, Error> {
    Err(Error::provider("this labhost was built without the ec2 provider").with_hint(
        "Use `cargo lab-ec2 ...` in place of `cargo lab ...`, or install a labhost with everything: cargo install \
         --locked --path host --features ec2",
    ))
}

/// The runtime for what a command asks of providers and hosts.
pub fn runtime() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(Kind::Internal, || "start the runtime".to_owned())
}
