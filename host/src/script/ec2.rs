//! `ec2`: instances and what they need, in EC2's words, whatever provider stands behind.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};
use tokio::time::Instant;

use super::{Host, Run, fleet, options, run};
use crate::{
    Error, Kind,
    lab::{LaunchOptions, plan::Wish},
    options::Options,
    options_map,
    provider::Ingress,
    units::{Span, epoch_s},
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// More instances than this in one fleet are taken for a typing mistake.
const COUNT_MAX: u32 = 200;
/// How long `wait` waits unless told otherwise.
const WAIT_WITHIN: Duration = Duration::from_secs(300);

options_map! {
    /// Options of `ec2::key_pair`.
    struct KeyPair {
        /// Lower-case letters, digits, `-` and `_`.
        name: String,
        /// The file of a private key that the provider knows under this name already (for example a Learner Lab's
        /// `vockey`); it is used as it is and never removed.
        #[serde(default)]
        adopt: Option<String>,
    }
}

options_map! {
    /// Options of `ec2::security_group`.
    struct SecurityGroup {
        name: String,
        /// List of `#{ port, from }`; `from` is `"me"`, `"any"`, `"group:NAME"` or a CIDR block.
        ingress: Vec<Ingress>,
    }
}

options_map! {
    /// Options of `ec2::image`.
    struct Image {
        /// For example `"ubuntu-22.04"`.
        name: String,
    }
}

options_map! {
    /// Options of `ec2::instances`.
    struct Instances {
        /// Name of the fleet; its members are called NAME-1, NAME-2, ...
        name: String,
        /// The instance type, for example `"t2.micro"`.
        r#type: String,
        /// Exactly how many members the fleet has.
        count: u32,
        /// The cluster they serve.
        #[serde(default)]
        cluster: Option<String>,
        /// What they are for, for example `"balancer"`.
        #[serde(default)]
        role: Option<String>,
        /// Name of the key pair (default: `"lab"`).
        #[serde(default)]
        key: Option<String>,
        /// Name of the security group.
        #[serde(default)]
        group: Option<String>,
        /// The image that `ec2::image` found.
        #[serde(default)]
        image: Option<String>,
        /// Further tags.
        #[serde(default)]
        tags: BTreeMap<String, String>,
    }
}

options_map! {
    /// Options of `ec2::wait`.
    #[derive(Default)]
    struct Wait {
        /// `"running"` or `"ssh"` (a login works; the default).
        #[serde(default)]
        state: Option<String>,
        /// For all of them together (default: 5 min).
        #[serde(default)]
        timeout: Option<Span>,
    }
}

options_map! {
    /// Options of `ec2::list`: only hosts that match all of them.
    #[derive(Default)]
    struct Filter {
        #[serde(default)]
        cluster: Option<String>,
        #[serde(default)]
        role: Option<String>,
        #[serde(default)]
        fleet: Option<String>,
    }
}

options_map! {
    /// Options of `ec2::destroy`.
    #[derive(Default)]
    struct Destroy {
        /// Must be true, or nothing is removed and what would be is listed.
        #[serde(default)]
        confirm: bool,
        /// Keep key pair and security groups for the next run.
        #[serde(default)]
        keep_bootstrap: bool,
    }
}

pub(super) fn known_options(known: &mut options::Known) {
    known.insert("ec2::key_pair", <KeyPair as Options>::OPTIONS);
    known.insert("ec2::security_group", <SecurityGroup as Options>::OPTIONS);
    known.insert("ec2::security_group.ingress", <Ingress as Options>::OPTIONS);
    known.insert("ec2::image", <Image as Options>::OPTIONS);
    known.insert("ec2::instances", <Instances as Options>::OPTIONS);
    known.insert("ec2::wait", <Wait as Options>::OPTIONS);
    known.insert("ec2::list", <Filter as Options>::OPTIONS);
    known.insert("ec2::destroy", <Destroy as Options>::OPTIONS);
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("ec2", rhai::exported_module!(functions).into());
}

/// Names go into file names, tags and shell text, so they are plain words.
fn check_name(function: &str, name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=40).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-') {
        return Ok(());
    }
    Err(Error::new(Kind::Recipe, format!("{function}: {name:?} cannot be a name"))
        .with_hint("Use up to 40 lower-case letters, digits and `-`."))
}

fn check_fleet(run: &Run, options: &Instances) -> Result<(), Error> {
    check_name("ec2::instances", &options.name)?;
    for name in options.cluster.iter().chain(&options.role).chain(&options.key).chain(&options.group) {
        check_name("ec2::instances", name)?;
    }
    if options.count > COUNT_MAX {
        let message = format!("ec2::instances: {} members of {} are too many", options.count, options.name);
        return Err(Error::new(Kind::Recipe, message).with_hint(format!("A fleet has at most {COUNT_MAX}.")));
    }
    run.wait(run.lab.provider().check_type(&options.r#type))
}

fn ensure_instances(run: &Arc<Run>, options: Instances) -> Result<Vec<Host>, Error> {
    check_fleet(run, &options)?;
    let wish = Wish {
        fleet: options.name,
        instance_type: options.r#type,
        count: options.count,
        cluster: options.cluster,
        role: options.role,
    };
    let launch = LaunchOptions {
        key: options.key.unwrap_or_else(|| "lab".to_owned()),
        group: options.group,
        image: options.image,
        tags: options.tags,
    };
    let warn = |text: &str| run.ui.warn(text);
    let fleet = run.change("the launch of instances", run.lab.ensure_fleet(&wish, launch, &warn))?;
    let kept = fleet.instances.len() - fleet.launched.len();
    let launched = match fleet.launched.len() {
        0 => String::new(),
        count => format!(", {count} launched ({})", fleet.launched.join(", ")),
    };
    run.ui.note(&format!("{} ({}): {kept} kept{launched}", wish.fleet, wish.instance_type));
    for (instance, reason) in &fleet.retiring {
        run.ui.note(&format!("{}: {} will be drained and terminated: {reason}", instance.name, instance.id));
    }
    Ok(fleet.instances.into_iter().map(Host::from).collect())
}

/// Waits until all are running, in one poll for all of them.
async fn wait_running(run: &Run, hosts: &[Host], deadline: Instant) -> Result<Vec<Host>, Error> {
    let ids: Vec<_> = hosts.iter().map(|host| host.0.id.clone()).collect();
    let running = run.lab.wait_running(&ids, deadline).await?;
    Ok(running.into_iter().map(Host::from).collect())
}

fn wait_for(run: &Arc<Run>, hosts: &[Host], options: &Wait) -> Result<Vec<Host>, Error> {
    let state = options.state.as_deref().unwrap_or("ssh");
    if !["running", "ssh"].contains(&state) {
        return Err(Error::new(Kind::Recipe, format!("ec2::wait: `state` cannot be {state:?}"))
            .with_hint("It is \"running\" or \"ssh\"."));
    }
    if run.lab.is_planning() {
        return Ok(hosts.to_vec());
    }
    let deadline = Instant::now() + options.timeout.map_or(WAIT_WITHIN, |timeout| timeout.0);
    let hosts = run.wait(wait_running(run, hosts, deadline))?;
    if state == "ssh" {
        let connect = async {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut tasks = tokio::task::JoinSet::new();
            for host in hosts.clone() {
                let run = Arc::clone(run);
                tasks.spawn(async move { run.sessions.connect(&host.0, left).await.map(drop) });
            }
            tasks.join_all().await.into_iter().collect::<Result<Vec<()>, Error>>()?;
            if run.sessions.has_welcomed() {
                // A first login has changed what is to be pinned.
                run.lab.renew_views(&run.lab.list().await?)?;
            }
            Ok(())
        };
        run.wait(connect)?;
    }
    run.ui.note(&format!(
        "{} instances are {}",
        hosts.len(),
        if state == "ssh" { "reachable" } else { "running" }
    ));
    Ok(hosts)
}

fn list_matching(run: &Run, filter: &Filter) -> Result<Vec<Host>, Error> {
    let matches = |wish: &Option<String>, have: Option<&str>| wish.is_none() || wish.as_deref() == have;
    let listed = run.wait(run.lab.list())?;
    let hosts = listed.into_iter().filter(|instance| {
        matches(&filter.cluster, instance.cluster.as_deref())
            && matches(&filter.role, instance.role.as_deref())
            && matches(&filter.fleet, Some(&instance.fleet))
    });
    Ok(hosts.map(Host::from).collect())
}

fn destroy_lab(run: &Run, options: &Destroy) -> Result<bool, Error> {
    let remains = run.wait(run.lab.remains())?;
    if run.lab.is_planning() {
        run.wait(run.lab.destroy(options.keep_bootstrap))?;
        return Ok(!remains.is_empty());
    }
    if remains.is_empty() {
        let name = run.lab.provider().name();
        let other = if name == "ec2" { "local" } else { "ec2" };
        run.ui.info(&format!(
            "nothing to do: this lab has nothing left on {name} ({other} was not looked at; --provider {other} does)"
        ));
        return Ok(false);
    }
    if !options.confirm {
        run.ui.info(&format!("this would remove:\n  {}", remains.join("\n  ")));
        return Err(Error::new(Kind::Confirm, "nothing was removed: --confirm is missing")
            .with_hint("Run the same command with --confirm to remove all of it."));
    }
    run.wait(async {
        run.sessions.close().await;
        Ok(())
    })?;
    run.change("the teardown", run.lab.destroy(options.keep_bootstrap))?;
    let kept = if options.keep_bootstrap { run.wait(run.lab.remains())? } else { Vec::new() };
    let removed: Vec<_> = remains.into_iter().filter(|line| !kept.contains(line)).collect();
    run.ui.info(&format!("removed:\n  {}", removed.join("\n  ")));
    if options.keep_bootstrap {
        run.ui.info("kept: the key pair and the security groups, for the next run");
    }
    Ok(true)
}

fn to_array(hosts: Vec<Host>) -> Array {
    hosts.into_iter().map(Dynamic::from).collect()
}

/// Instances and what they need. Every function ensures a state by name, so that running a recipe again changes
/// only what differs.
#[export_module]
mod functions {
    use super::*;

    /// Makes a login key: generated here, 0600 under artifacts/keys, its public half given to the provider.
    /// Options: `name`; `adopt` (the file of a private key that the provider knows under this name already; it is
    /// never removed). Returns `#{ name, path, fingerprint }`.
    #[rhai_fn(return_raw)]
    pub fn key_pair(context: NativeCallContext, options: Map) -> Raw<Map> {
        let run = run(&context)?;
        let options: KeyPair = options::decode("ec2::key_pair", options)?;
        check_name("ec2::key_pair", &options.name)?;
        let adopt = options.adopt.as_deref().map(|path| run.path(path));
        let pair =
            run.change("the import of the key", run.lab.ensure_key(&options.name, adopt.as_deref()))?;
        Ok(Map::from([
            ("name".into(), options.name.into()),
            ("path".into(), pair.path.display().to_string().into()),
            ("fingerprint".into(), pair.fingerprint.into()),
        ]))
    }

    /// Makes a security group have exactly these rules. Options: `name`, `ingress` (list of `#{ port, from }`; `from`
    /// is `"me"`, `"any"`, `"group:NAME"` or a CIDR block). Local instances are reachable from this machine only,
    /// whatever the rules. Returns `#{ name, id }`.
    #[rhai_fn(return_raw)]
    pub fn security_group(context: NativeCallContext, options: Map) -> Raw<Map> {
        let run = run(&context)?;
        let options: SecurityGroup = options::decode("ec2::security_group", options)?;
        check_name("ec2::security_group", &options.name)?;
        let id = run.change("the security group", run.lab.ensure_group(&options.name, &options.ingress))?;
        Ok(Map::from([("name".into(), options.name.into()), ("id".into(), id.into())]))
    }

    /// Finds the image that instances boot from. Options: `name`. Returns `#{ name, id }`; local instances have the
    /// image `local`.
    #[rhai_fn(return_raw)]
    pub fn image(context: NativeCallContext, options: Map) -> Raw<Map> {
        let run = run(&context)?;
        let options: Image = options::decode("ec2::image", options)?;
        let id = run.wait(run.lab.image(&options.name))?;
        Ok(Map::from([("name".into(), options.name.into()), ("id".into(), id.into())]))
    }

    /// Makes a fleet exist: launches what is missing, replaces what changed its type, and marks what is too much.
    /// What has to go is drained and terminated when the recipe has ended well. Options: `name`, `type`, `count`,
    /// `cluster`, `role`, `key`, `group`, `image`, `tags`. Returns the hosts, in order.
    #[rhai_fn(return_raw)]
    pub fn instances(context: NativeCallContext, options: Map) -> Raw<Array> {
        let run = run(&context)?;
        let options: Instances = options::decode("ec2::instances", options)?;
        Ok(to_array(ensure_instances(&run, options)?))
    }

    /// Waits until all hosts accept a login. Returns them anew, with their addresses.
    #[rhai_fn(return_raw)]
    pub fn wait(context: NativeCallContext, hosts: Array) -> Raw<Array> {
        wait_with(context, hosts, Map::new())
    }

    /// As `wait`, with options `state` (`"running"` or `"ssh"`) and `timeout`.
    #[rhai_fn(name = "wait", return_raw)]
    pub fn wait_with(context: NativeCallContext, hosts: Array, options: Map) -> Raw<Array> {
        let run = run(&context)?;
        let options: Wait = options::decode("ec2::wait", options)?;
        Ok(to_array(wait_for(&run, &fleet::hosts_of(hosts)?, &options)?))
    }

    /// All hosts of this lab.
    #[rhai_fn(return_raw)]
    pub fn list(context: NativeCallContext) -> Raw<Array> {
        list_with(context, Map::new())
    }

    /// The hosts that match `cluster`, `role` and `fleet`.
    #[rhai_fn(name = "list", return_raw)]
    pub fn list_with(context: NativeCallContext, filter: Map) -> Raw<Array> {
        let run = run(&context)?;
        let filter: Filter = options::decode("ec2::list", filter)?;
        Ok(to_array(list_matching(&run, &filter)?))
    }

    /// Terminates hosts at once, without draining.
    #[rhai_fn(return_raw)]
    pub fn terminate(context: NativeCallContext, hosts: Array) -> Raw<()> {
        let run = run(&context)?;
        let instances: Vec<_> = fleet::hosts_of(hosts)?.iter().map(|host| (*host.0).clone()).collect();
        Ok(run.change("the termination of instances", run.lab.retire(&instances))?)
    }

    /// Removes everything this lab made; benchmark results stay. Options: `confirm` (without it, what would be
    /// removed is listed and the recipe ends with exit code 7), `keep_bootstrap`. Returns whether there was anything.
    #[rhai_fn(return_raw)]
    pub fn destroy(context: NativeCallContext, options: Map) -> Raw<bool> {
        let run = run(&context)?;
        let options: Destroy = options::decode("ec2::destroy", options)?;
        Ok(destroy_lab(&run, &options)?)
    }

    /// What the lab costs: `#{ instances, usd_per_hour, note }`; `usd_per_hour` is `()` when the price of a type is
    /// not known. Local instances cost nothing.
    #[rhai_fn(return_raw)]
    pub fn cost(context: NativeCallContext) -> Raw<Map> {
        let run = run(&context)?;
        let (count, cost) = run.wait(run.lab.cost())?;
        Ok(Map::from([
            ("instances".into(), (count as i64).into()),
            ("usd_per_hour".into(), cost.usd_per_hour.map_or(Dynamic::UNIT, Dynamic::from)),
            ("note".into(), cost.note.into()),
        ]))
    }

    /// Lets the lab live for this long from now, for example `"2h"`. Returns when it ends, in seconds since the
    /// epoch.
    #[rhai_fn(return_raw)]
    pub fn extend(context: NativeCallContext, ttl: &str) -> Raw<i64> {
        let run = run(&context)?;
        let ttl: Span = ttl.parse().map_err(|cause: String| Error::new(Kind::Recipe, cause))?;
        let at = run.change("the extension", run.lab.extend(ttl))?;
        if run.lab.provider().is_expiry_kept_on_instances() {
            let hosts = run.wait(run.lab.list())?.into_iter().map(Host::from).collect();
            fleet::exec(&context, hosts, &format!("labhost-service expires {at}"), Map::new())?;
        }
        Ok(at as i64)
    }

    /// What the lab runs on: `#{ provider, expires_in, expires_in_s }`, for example `"1h59m"`; the last two are `()`
    /// without instances.
    #[rhai_fn(return_raw)]
    pub fn info(context: NativeCallContext) -> Raw<Map> {
        let run = run(&context)?;
        let expires = run.wait(run.lab.last_seen())?.iter().map(|instance| instance.expires_at_s).max();
        let left = expires.map(|at| at.saturating_sub(epoch_s(SystemTime::now())));
        let text = left.map(|left| Span(Duration::from_secs(left)).to_string());
        Ok(Map::from([
            ("provider".into(), run.lab.provider().name().into()),
            ("expires_in".into(), text.map_or(Dynamic::UNIT, Dynamic::from)),
            ("expires_in_s".into(), left.map_or(Dynamic::UNIT, |left| (left as i64).into())),
        ]))
    }
}
