//! The commands beside recipes: docs, status, ssh, logs, extend.

use std::{
    fmt::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    Error, Kind,
    catalog::{Catalog, Function},
    check::{self},
    cli::Options,
    engine,
    error::Context as _,
    failure::Problem,
    provider::{Instance, Provider, epoch_s, local::Local},
    recipe::Recipe,
    runner,
    script::args::FlagSpec,
    ssh,
    ui::{Ui, report::nearest},
    units::Span,
};

/// The provider that the options name.
pub fn provider(options: &Options, state_dir: &Path) -> Result<Box<dyn Provider>, Error> {
    match options.provider.as_str() {
        "local" => {
            let exe = std::env::current_exe().context(Kind::Internal, || "find labhost's own program".to_owned())?;
            Ok(Box::new(Local::new(state_dir, &exe)?))
        }
        "ec2" => Err(Error::provider("this labhost was built without the ec2 provider").with_hint(
            "Use `cargo lab-ec2 ...` in place of `cargo lab ...`, or install a labhost with everything: cargo install \
             --locked --path host --features ec2",
        )),
        other => Err(Error::usage(format!("unknown provider `{other}`")).with_hint("It is `local` or `ec2`.")),
    }
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
        let _ = writeln!(
            help,
            "{}",
            line.trim_start_matches('/').trim_start_matches('!').trim_start_matches(' ')
        );
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
            for option in *options {
                let _ = writeln!(
                    text,
                    "      {:<34} {}",
                    format!("{} ({})", option.name, option.kind_shown()),
                    option.doc.trim()
                );
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// `labhost status`.
pub fn status(options: &Options, ui: &Ui) -> Result<(), Error> {
    let lab = runner::lab_at(options, runner::state_dir(options, None)?, "labhost status".to_owned())?;
    let runtime = runner::runtime()?;
    let instances = runtime.block_on(lab.list())?;
    if instances.is_empty() {
        ui.info(&format!("no instances ({}, {})", lab.provider().name(), lab.dir().display()));
        return Ok(());
    }
    let rows: Vec<Value> = instances.iter().map(row).collect();
    ui.table(&rows, &["name", "id", "type", "state", "address", "cluster", "role"].map(str::to_owned));
    let expires = instances.iter().map(|instance| instance.expires_at_s).max().unwrap_or_default();
    ui.info(&format!(
        "{} instances on {}; they {}; no cost per hour",
        instances.len(),
        lab.provider().name(),
        ends(expires)
    ));
    runtime.block_on(balancer_status(&instances, ui));
    Ok(())
}

fn row(instance: &Instance) -> Value {
    json!({
        "name": instance.name, "id": instance.id, "type": instance.instance_type, "state": instance.state,
        "address": instance.public_ip, "cluster": instance.cluster, "role": instance.role,
    })
}

/// When a lab ends by itself, in words that follow "they".
#[must_use]
pub fn ends(expires_at_s: u64) -> String {
    let left = expires_at_s.saturating_sub(epoch_s(SystemTime::now()));
    format!("end by themselves in {}", Span(Duration::from_secs(left)))
}

async fn balancer_status(instances: &[Instance], ui: &Ui) {
    let Some(lb) = instances.iter().rev().find(|instance| instance.role.as_deref() == Some("balancer"))
    else {
        return;
    };
    match crate::script::balancer_status(lb).await {
        Ok(status) => {
            let address = lb.public_ip.map(|address| address.to_string()).unwrap_or_default();
            ui.info(&format!(
                "balancer http://{address}:{} ({})",
                lb.http_port,
                status["driver"].as_str().unwrap_or("?")
            ));
            let clusters = status["clusters"].as_object().cloned().unwrap_or_default();
            let rows: Vec<Value> =
                clusters.iter().flat_map(|(name, cluster)| backends(instances, name, cluster)).collect();
            ui.table(
                &rows,
                &["backend", "cluster", "state", "in_flight", "requests", "errors"].map(str::to_owned),
            );
        }
        Err(error) => ui.warn(&format!("the balancer does not answer: {error}")),
    }
}

fn backends(instances: &[Instance], cluster: &str, status: &Value) -> Vec<Value> {
    let list = status["backends"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|backend| {
            let id = backend["id"].as_str().unwrap_or_default();
            let name = instances.iter().find(|instance| instance.id == id).map_or(id, |instance| &instance.name);
            json!({
                "backend": name, "cluster": cluster, "state": backend["state"], "in_flight": backend["in_flight"],
                "requests": backend["requests"], "errors": backend["errors"],
            })
        })
        .collect()
}

/// The instance with this name or id, and its SSH configuration written anew.
fn host(options: &Options, name: &str) -> Result<(std::path::PathBuf, Instance), Error> {
    let lab = runner::lab_at(options, runner::state_dir(options, None)?, "labhost ssh".to_owned())?;
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
    Ok((lab.dir().join("ssh_config"), found))
}

/// `labhost ssh HOST [COMMAND]`: becomes `ssh`.
pub fn ssh(options: &Options, name: &str, command: &[String]) -> Result<(), Error> {
    let (config, instance) = host(options, name)?;
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(config).arg(&instance.id);
    if !command.is_empty() {
        ssh.arg("--").args(command);
    }
    Err(Error::internal(format!("start ssh: {}", ssh.exec())))
}

/// `labhost logs HOST SERVICE [--follow]`.
pub fn logs(options: &Options, name: &str, service: &str, lines: u32, follow: bool) -> Result<(), Error> {
    let line =
        format!("labhost-service logs {} -n {lines}{}", ssh::quote(service), if follow { " -f" } else { "" });
    ssh(options, name, &[line])
}

/// `labhost extend TTL`.
pub fn extend(options: &Options, ttl: Span, ui: &Ui) -> Result<(), Error> {
    let lab = runner::lab_at(options, runner::state_dir(options, None)?, format!("labhost extend {ttl}"))?;
    let runtime = runner::runtime()?;
    if runtime.block_on(lab.list())?.is_empty() {
        return Err(Error::usage("this lab has no instances to extend"));
    }
    let at = runtime.block_on(lab.extend(ttl.0))?;
    ui.info(&format!("the instances {}", ends(at)));
    Ok(())
}
