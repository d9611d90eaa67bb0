//! Work on many hosts at once: every operation runs on all of them in parallel, results come in order, and all
//! failures are reported together.

use std::sync::Arc;

use rhai::{Array, Dynamic, Engine, EvalAltResult, FnPtr, Map, NativeCallContext, plugin::*};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{Host, Run, host, options, run, service};
use crate::{
    Error, Kind,
    error::Context as _,
    ssh::{Command, Session, Spread, Uploaded},
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// How many hosts are worked on at the same time; more would only queue for this machine's cores and uplink.
const HOSTS_AT_ONCE: usize = 32;

pub(super) fn register(engine: &mut Engine) {
    engine.register_global_module(rhai::exported_module!(lists).into());
}

/// Runs `work` on all hosts in parallel. One failure is handed on as it is; several become one error that names
/// every host. When only planning, the work is named and its results are empty.
pub(super) fn each<T, F, W>(run: &Arc<Run>, hosts: &[Host], what: &str, work: W) -> Result<Vec<T>, Error>
where
    T: Default + Send + 'static,
    F: Future<Output = Result<T, Error>> + Send,
    W: Fn(Session, Host) -> F + Send + Sync + Clone + 'static,
{
    if run.lab.is_planning() {
        run.ui.note(&format!("would {what} on {} hosts", hosts.len()));
        return Ok(hosts.iter().map(|_| T::default()).collect());
    }
    let all = async {
        let slots = Arc::new(Semaphore::new(HOSTS_AT_ONCE));
        let mut tasks = JoinSet::new();
        for (index, host) in hosts.iter().cloned().enumerate() {
            let (run, slots, what, work) =
                (Arc::clone(run), Arc::clone(&slots), what.to_owned(), work.clone());
            tasks.spawn(async move {
                let _slot = slots.acquire_owned().await;
                let task = run.ui.task(&host.0.name, &what);
                let result = match run.sessions.get(&host.0).await {
                    Ok(session) => work(session, host).await,
                    Err(error) => Err(error),
                };
                match &result {
                    Ok(_) => task.done("done"),
                    Err(error) => task.fail(&error.message),
                }
                (index, result)
            });
        }
        let mut results = tasks.join_all().await;
        results.sort_by_key(|(index, _)| *index);
        Ok(results)
    };
    collect(hosts, what, run.wait(all)?)
}

fn collect<T>(hosts: &[Host], what: &str, results: Vec<(usize, Result<T, Error>)>) -> Result<Vec<T>, Error> {
    let total = results.len();
    let (mut values, mut failures) = (Vec::with_capacity(total), Vec::new());
    for (index, result) in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) if error.kind == Kind::Interrupted => return Err(error),
            Err(error) => failures.push((&hosts[index].0.name, error)),
        }
    }
    match failures.len() {
        0 => Ok(values),
        1 => Err(failures.remove(0).1),
        failed => {
            let lines: Vec<_> = failures.iter().map(|(name, error)| format!("{name}: {error}")).collect();
            let first = failures.swap_remove(0).1;
            let detail =
                lines.join("\n") + &*first.detail.map_or_else(String::new, |detail| format!("\n\n{detail}"));
            let mut error = Error::new(first.kind, format!("{what}: {failed} of {total} hosts failed"));
            error.hint = first.hint;
            Err(error.with_detail(detail))
        }
    }
}

/// As [`each`], announced in the journal before it starts.
pub(super) fn each_recorded<T, F, W>(
    run: &Arc<Run>,
    hosts: &[Host],
    step: &'static str,
    data: serde_json::Value,
    work: W,
) -> Result<Vec<T>, Error>
where
    T: Default + Send + 'static,
    F: Future<Output = Result<T, Error>> + Send,
    W: Fn(Session, Host) -> F + Send + Sync + Clone + 'static,
{
    let what = format!("{step} {}", data["what"].as_str().unwrap_or_default());
    if run.lab.is_planning() {
        return each(run, hosts, &what, work);
    }
    let ledger = run.lab.ledger()?;
    let names: Vec<_> = hosts.iter().map(|host| host.0.name.as_str()).collect();
    let intent = ledger.journal.intend(step, json!({ "hosts": names, "of": data }))?;
    intent.end(each(run, hosts, &what, work), |_| json!(null))
}

/// The hosts in a recipe's list; anything else in it is an error.
pub(super) fn hosts_of(list: Array) -> Result<Vec<Host>, Error> {
    list.into_iter()
        .map(|item| {
            let name = item.type_name().to_owned();
            item.try_cast::<Host>().ok_or_else(|| {
                Error::new(Kind::Recipe, format!("the list has an item that is no host but a {name}"))
                    .with_hint("Only lists of hosts, as ec2::instances and ec2::list return them, have this function.")
            })
        })
        .collect()
}

pub(super) fn exec(
    context: &NativeCallContext<'_>,
    hosts: Vec<Host>,
    line: &str,
    options: Map,
) -> Raw<Array> {
    let run = run(context)?;
    let options: host::Exec = options::decode("exec", options)?;
    let command = Arc::new(Command {
        line: line.to_owned(),
        stdin: options.input.map(String::into_bytes),
        env: options.env,
        cwd: options.cwd,
        timeout: options.timeout.map(|timeout| timeout.0),
        check: options.check.unwrap_or(true),
    });
    let what: String = line.lines().next().unwrap_or_default().chars().take(60).collect();
    let work = move |session: Session, _| {
        let command = Arc::clone(&command);
        async move { session.run(&command).await }
    };
    let outputs = each_recorded(&run, &hosts, "exec", json!({ "what": what }), work)?;
    let text = |bytes: &[u8]| Dynamic::from(String::from_utf8_lossy(bytes).into_owned());
    let maps = hosts.iter().zip(outputs).map(|(host, output)| {
        Dynamic::from_map(Map::from([
            ("code".into(), i64::from(output.code).into()),
            ("stdout".into(), text(&output.stdout)),
            ("stderr".into(), text(&output.stderr)),
            ("ms".into(), (output.elapsed.as_millis() as i64).into()),
            ("host".into(), host.0.name.clone().into()),
        ]))
    });
    Ok(maps.collect())
}

pub(super) fn upload(
    context: &NativeCallContext<'_>,
    hosts: Vec<Host>,
    local: &str,
    remote: &str,
    options: Map,
) -> Raw<Array> {
    let run = run(context)?;
    let mode = mode_of("upload", options, 0o755)?;
    let (path, target) = (run.path(local), remote.to_owned());
    let spread = Arc::new(Spread::new(hosts.len()));
    let work = {
        let spread = Arc::clone(&spread);
        move |session: Session, host: Host| {
            let (path, target, spread) = (path.clone(), target.clone(), Arc::clone(&spread));
            async move { spread.upload(&session, host.0.private_ip, &path, &target, mode).await }
        }
    };
    let uploads = each_recorded(&run, &hosts, "upload", json!({ "what": remote, "local": local }), work)?;
    if let Some(trouble) = spread.trouble() {
        run.ui.note(&format!("upload {remote}: sent from here after all, because copying failed: {trouble}"));
    }
    Ok(told(&run, &format!("upload {remote}"), &hosts, uploads))
}

pub(super) fn write(
    context: &NativeCallContext<'_>,
    hosts: Vec<Host>,
    remote: &str,
    text: &str,
    options: Map,
) -> Raw<Array> {
    let run = run(context)?;
    let mode = mode_of("write", options, 0o644)?;
    let (target, bytes) = (remote.to_owned(), Arc::new(text.as_bytes().to_vec()));
    let work = move |session: Session, _| {
        let (target, bytes) = (target.clone(), Arc::clone(&bytes));
        async move { session.write(&target, &bytes, mode).await }
    };
    let written = each_recorded(&run, &hosts, "write", json!({ "what": remote }), work)?;
    Ok(told(&run, &format!("write {remote}"), &hosts, written))
}

fn told(run: &Run, what: &str, hosts: &[Host], uploads: Vec<Uploaded>) -> Array {
    let changed = uploads.iter().filter(|upload| upload.changed).count();
    let from = uploads.iter().find_map(|upload| upload.copied_from.clone());
    let copied = uploads.iter().filter(|upload| upload.copied_from.is_some()).count();
    let copied = from.map_or_else(String::new, |from| format!(" ({copied} copied from {from})"));
    run.ui.note(&format!("{what}: {changed} changed{copied}, {} as it should be", uploads.len() - changed));
    let maps = hosts.iter().zip(uploads).map(|(host, upload)| {
        Dynamic::from_map(Map::from([
            ("changed".into(), upload.changed.into()),
            ("bytes".into(), (upload.bytes as i64).into()),
            ("sha256".into(), upload.sha256.into()),
            ("host".into(), host.0.name.clone().into()),
        ]))
    });
    maps.collect()
}

fn mode_of(function: &str, options: Map, default: u32) -> Result<u32, Error> {
    let options: host::Put = options::decode(function, options)?;
    let Some(mode) = options.mode else { return Ok(default) };
    u32::from_str_radix(mode.trim_start_matches("0o"), 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(
        || {
            Error::new(
                Kind::Recipe,
                format!("{function}: `{mode}` is no file mode; write for example \"0755\""),
            )
        },
    )
}

pub(super) fn download(
    context: &NativeCallContext<'_>,
    host: Host,
    remote: &str,
    local: &str,
) -> Raw<Dynamic> {
    let run = run(context)?;
    let path = inside(&run, local)?;
    let target = remote.to_owned();
    let work = move |session: Session, _| {
        let (path, target) = (path.clone(), target.clone());
        async move { session.download(&target, &path).await }
    };
    let bytes = each(&run, &[host], &format!("download {remote}"), work)?.remove(0);
    Ok(Map::from([("bytes".into(), (bytes as i64).into())]).into())
}

/// A path to write to: inside the lab's folder, also after links are followed.
fn inside(run: &Run, local: &str) -> Result<std::path::PathBuf, Error> {
    let refused = || {
        Error::new(
            Kind::Recipe,
            format!("download to {local}: it lies outside the lab's folder {}", run.root.display()),
        )
        .with_hint("Give a path below that folder, for example artifacts/worker.log.")
    };
    let path = run.path(local);
    let parent = path.parent().ok_or_else(refused)?;
    let parent =
        parent.canonicalize().context(Kind::Recipe, || format!("download to {}", parent.display()))?;
    if !parent.starts_with(&run.root) || path.file_name().is_none() {
        return Err(refused());
    }
    Ok(parent.join(path.file_name().unwrap_or_default()))
}

pub(super) fn wait_http(
    context: &NativeCallContext<'_>,
    hosts: Vec<Host>,
    path: &str,
    options: Map,
) -> Raw<Array> {
    let run = run(context)?;
    let options: host::WaitHttp = options::decode("wait_http", options)?;
    let (status, path) = (options.status.unwrap_or(200), path.to_owned());
    let deadline = options.timeout.map_or(service::READY_WITHIN, |timeout| timeout.0);
    let what = format!("wait for {path}");
    let work = move |session: Session, host: Host| {
        let path = path.clone();
        let port = options.port.unwrap_or(host.0.http_port);
        async move { session.wait_http(service::address(&host, port)?, &path, status, deadline).await }
    };
    let statuses = each(&run, &hosts, &what, work)?;
    Ok(statuses.into_iter().map(|status| i64::from(status).into()).collect())
}

/// Port 0 stands for the host's public web port; the usual port 80 is not written.
pub(super) fn url(host: &Host, path: &str, port: i64) -> Result<String, Error> {
    let address = host.0.public_ip.ok_or_else(|| {
        Error::host(format!("{} has no address yet", host.0.name))
            .with_hint("Wait for it with ec2::wait first.")
    })?;
    let port = if port == 0 { i64::from(host.0.http_port) } else { port };
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
    Ok(format!("http://{address}{port}{slash}{path}"))
}

/// The functions of hosts, on lists of them.
#[export_module]
mod lists {
    use super::*;

    /// Runs a shell command on all hosts in parallel; results in order.
    #[rhai_fn(name = "exec", return_raw)]
    pub fn exec_all(context: NativeCallContext, hosts: Array, command: &str) -> Raw<Array> {
        exec(&context, hosts_of(hosts)?, command, Map::new())
    }

    /// As `exec`, with its options.
    #[rhai_fn(name = "exec", return_raw)]
    pub fn exec_all_with(
        context: NativeCallContext,
        hosts: Array,
        command: &str,
        options: Map,
    ) -> Raw<Array> {
        exec(&context, hosts_of(hosts)?, command, options)
    }

    /// Copies a local file to all hosts in parallel. Over a slow uplink it is sent once and the hosts copy it from each
    /// other, unless its `mode` hides it from other users.
    #[rhai_fn(name = "upload", return_raw)]
    pub fn upload_all(context: NativeCallContext, hosts: Array, local: &str, remote: &str) -> Raw<Array> {
        upload(&context, hosts_of(hosts)?, local, remote, Map::new())
    }

    /// As `upload`, with its options.
    #[rhai_fn(name = "upload", return_raw)]
    pub fn upload_all_with(
        context: NativeCallContext,
        hosts: Array,
        local: &str,
        remote: &str,
        options: Map,
    ) -> Raw<Array> {
        upload(&context, hosts_of(hosts)?, local, remote, options)
    }

    /// Writes the same text on all hosts in parallel.
    #[rhai_fn(name = "write", return_raw)]
    pub fn write_all(context: NativeCallContext, hosts: Array, remote: &str, text: &str) -> Raw<Array> {
        write(&context, hosts_of(hosts)?, remote, text, Map::new())
    }

    /// Makes a service run on all hosts in parallel; `{id}` and the like in `exec` are replaced per host.
    #[rhai_fn(name = "service", return_raw)]
    pub fn service_all(context: NativeCallContext, hosts: Array, options: Map) -> Raw<Array> {
        service::ensure(&context, hosts_of(hosts)?, options)
    }

    /// Stops and forgets a service on all hosts in parallel; returns how many there were on each.
    #[rhai_fn(name = "remove_service", return_raw)]
    pub fn remove_service_all(context: NativeCallContext, hosts: Array, name: &str) -> Raw<Array> {
        service::remove(&context, hosts_of(hosts)?, name)
    }

    /// Waits until `path` answers on all hosts.
    #[rhai_fn(name = "wait_http", return_raw)]
    pub fn wait_http_all(context: NativeCallContext, hosts: Array, path: &str) -> Raw<Array> {
        wait_http(&context, hosts_of(hosts)?, path, Map::new())
    }

    /// As `wait_http`, with its options.
    #[rhai_fn(name = "wait_http", return_raw)]
    pub fn wait_http_all_with(
        context: NativeCallContext,
        hosts: Array,
        path: &str,
        options: Map,
    ) -> Raw<Array> {
        wait_http(&context, hosts_of(hosts)?, path, options)
    }

    /// Calls `action` for every item in parallel and returns the results in order. Each call works on copies of
    /// the variables around it: only what it returns comes back.
    #[rhai_fn(return_raw)]
    pub fn par(context: NativeCallContext, items: Array, action: FnPtr) -> Raw<Array> {
        let context = &context;
        let results: Vec<Raw<Dynamic>> = items
            .chunks(HOSTS_AT_ONCE)
            .flat_map(|chunk| {
                std::thread::scope(|scope| {
                    let threads: Vec<_> = chunk
                        .iter()
                        .map(|item| {
                            let (item, action) = (item.flatten_clone(), unshared(&action));
                            scope.spawn(move || action.call_within_context(context, (item,)))
                        })
                        .collect();
                    threads.into_iter().map(joined).collect::<Vec<_>>()
                })
            })
            .collect();
        results.into_iter().collect()
    }
}

/// The closure with captured variables copied: under threads a shared one could be contended.
fn unshared(action: &FnPtr) -> FnPtr {
    let mut copy = action.clone();
    copy.set_curry(action.curry().iter().map(Dynamic::flatten_clone).collect::<Vec<_>>());
    copy
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Raw<Dynamic>>) -> Raw<Dynamic> {
    thread.join().unwrap_or_else(|_| Err(Error::internal("a call inside par failed in the engine").into()))
}
