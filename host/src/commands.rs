//! The commands beside recipes: docs, status, ssh, logs, extend.

use std::{
    fmt::Write as _, os::unix::process::CommandExt as _, path::Path, process::Command, sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    Error, Kind,
    catalog::{Catalog, Function},
    check::{self},
    cli::Options,
    engine,
    error::Context as _,
    failure::Problem,
    identity,
    instance::{Instance, ends, is_running},
    lab::{self, Lab},
    nearest::nearest,
    provider::{Provider, local::Local},
    recipe::Recipe,
    runner,
    script::args::FlagSpec,
    ssh,
    ui::Ui,
    units::Span,
};

/// How long a host may take to accept the login that moves its deadline.
const EXTEND_WITHIN: Duration = Duration::from_secs(20);

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

/// What `labhost RECIPE --help` prints: the comment at the recipe's top and its flags.
#[must_use]
pub fn recipe_help(recipe: &Recipe, flags: &[FlagSpec]) -> String {
    let text = recipe.read(&recipe.file).unwrap_or_default();
    let mut help = String::new();
    for line in text.lines().map_while(|line| line.strip_prefix("//")) {
        let line = line.trim_start_matches('/').trim_start_matches('!');
        let _ = writeln!(help, "{}", line.strip_prefix(' ').unwrap_or(line));
    }
    if !flags.is_empty() {
        let _ = writeln!(help, "\nFlags:");
    }
    for flag in flags {
        let _ = writeln!(help, "  --{}{}", flag.name, if flag.takes_value { " VALUE" } else { "" });
    }
    help.trim_end().to_owned()
}

/// `labhost docs [NAME]`.
pub fn docs(name: Option<&str>, ui: &Ui) -> Result<(), Error> {
    let dir = std::env::temp_dir();
    let recipe = Recipe { file: dir.join("docs.rhai"), recipes: dir.clone(), root: dir };
    let catalog = Catalog::of(&engine::build(Arc::new(recipe)));
    let own: Vec<&Function> = catalog
        .functions
        .iter()
        .filter(|function| function.own && !function.name.contains(['=', '$']))
        .collect();
    let text = match name {
        None => overview(&own),
        Some(name) => details(&own, name)?,
    };
    ui.info(text.trim_end());
    Ok(())
}

fn full_name(function: &Function) -> String {
    match &function.module {
        Some(module) => format!("{module}::{}", function.signature),
        None => function.signature.clone(),
    }
}

fn overview(functions: &[&Function]) -> String {
    let mut text = String::new();
    let mut module = None;
    for function in functions {
        if module != Some(&function.module) {
            let title =
                function.module.as_deref().unwrap_or("hosts, lists of hosts, and functions without a module");
            let _ = writeln!(text, "{}{title}", if text.is_empty() { "" } else { "\n" });
            module = Some(&function.module);
        }
        let first = function.docs.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let _ = writeln!(text, "  {}\n      {first}.", full_name(function));
    }
    text.push_str("\n`labhost docs NAME` shows one module or function in full.\n");
    text
}

fn details(functions: &[&Function], name: &str) -> Result<String, Error> {
    let (module, function) =
        name.split_once("::").map_or((None, name), |(module, name)| (Some(module), name));
    let found: Vec<_> = functions
        .iter()
        .filter(|known| known.module.as_deref() == module && known.name == function)
        .chain(functions.iter().filter(|known| module.is_none() && known.module.as_deref() == Some(name)))
        .collect();
    if found.is_empty() {
        let names: Vec<_> = functions
            .iter()
            .flat_map(|known| {
                [
                    known.module.clone().unwrap_or_default(),
                    full_name(known).split('(').next().unwrap_or_default().to_owned(),
                ]
            })
            .collect();
        let near = nearest(name, names.iter().map(String::as_str));
        let hint = near.map_or_else(
            || "`labhost docs` lists everything.".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        return Err(Error::usage(format!("there is nothing called `{name}`")).with_hint(hint));
    }
    let known = crate::script::known_options();
    let mut text = String::new();
    for function in found {
        let _ = writeln!(text, "{}\n    {}", full_name(function), function.docs);
        let full = full_name(function);
        let key = full.split('(').next().unwrap_or_default();
        if function.signature.contains(": map")
            && let Some(options) = known.get(key)
        {
            let nested =
                |option: &crate::options::OptionDoc| known.get(format!("{key}.{}", option.name).as_str());
            let lines = options.iter().flat_map(|option| {
                let inner = nested(option).into_iter().flat_map(|inner| inner.iter());
                std::iter::once((0, option)).chain(inner.map(|inner| (2, inner)))
            });
            for (indent, option) in lines {
                let _ = writeln!(
                    text,
                    "      {:indent$}{:<34} {}",
                    "",
                    format!("{} ({})", option.name, option.kind_shown()),
                    option.doc.trim()
                );
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// The running instance with this name or id, and the SSH configuration, written anew.
fn host(options: &Options, name: &str, ui: &Arc<Ui>) -> Result<(std::path::PathBuf, Instance), Error> {
    let lab = runner::lab_at(options, runner::state_dir(options, None)?, "labhost ssh".to_owned(), ui)?;
    let instances = runner::runtime()?.block_on(lab.list())?;
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
    runner::runtime()?.block_on(lab.provider().admit_caller())?;
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
    let lab =
        runner::lab_at(options, runner::state_dir(options, None)?, format!("labhost extend {ttl}"), ui)?;
    let runtime = runner::runtime()?;
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
