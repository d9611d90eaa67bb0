//! `labhost status`: the lab's instances, what runs on them, and how the balancer sees its backends.
//!
//! It changes nothing, takes no lock and asks nobody for this machine's address: where that has changed, no instance
//! lets it log in, and what to do is said.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    cli::Options,
    identity,
    instance::{Instance, ends, is_running},
    lab::Lab,
    locate, script,
    ssh::{Command, Session},
    ui::Ui,
};

/// How long a host may take to say what runs on it; one that does not is shown without.
const SERVICES_WITHIN: Duration = Duration::from_secs(5);

const NOBODY_ANSWERS: &str = "no instance accepts a login, so what runs on them is not shown; if this machine's address \
                              has changed since the last run, `labhost ssh HOST` lets the new one in";

/// `labhost status`.
pub fn run(options: &Options, ui: &Arc<Ui>) -> Result<(), Error> {
    let lab = locate::lab(options, locate::state_dir(options, None)?, "labhost status".to_owned(), ui)?;
    let runtime = locate::runtime()?;
    let instances = runtime.block_on(lab.list())?;
    if instances.is_empty() {
        ui.info(&format!("no instances ({}, {})", lab.provider().name(), lab.dir().display()));
        return Ok(());
    }
    let services = runtime.block_on(services(&lab, &instances));
    if services.is_empty() && instances.iter().any(is_running) {
        ui.warn(NOBODY_ANSWERS);
    }
    let rows: Vec<Value> =
        instances.iter().map(|instance| row(instance, services.get(&instance.id))).collect();
    ui.table(&rows, &["name", "id", "type", "state", "address", "cluster", "services"].map(str::to_owned));
    let expires = instances.iter().map(|instance| instance.expires_at_s).max().unwrap_or_default();
    let types: Vec<_> = instances.iter().map(|instance| instance.instance_type.as_str()).collect();
    ui.info(&format!(
        "{} instances on {}; they {}; {}",
        instances.len(),
        lab.provider().name(),
        ends(expires),
        lab.provider().cost(&types).note
    ));
    runtime.block_on(balancer_status(&instances, ui));
    Ok(())
}

fn row(instance: &Instance, services: Option<&String>) -> Value {
    json!({
        "name": instance.name, "id": instance.id, "type": instance.instance_type, "state": instance.state,
        "address": instance.public_ip, "cluster": instance.cluster, "role": instance.role,
        "services": services,
    })
}

/// Each instance's services in words, by its id; asked over SSH, all at once.
async fn services(lab: &Lab, instances: &[Instance]) -> HashMap<String, String> {
    if lab.write_ssh_config(instances).is_err() {
        return HashMap::new();
    }
    let config = lab.dir().join("ssh_config");
    let control_dir = identity::runtime_dir(lab.dir()).join("ssh");
    let mut tasks = JoinSet::new();
    for instance in instances.iter().filter(|instance| is_running(instance)).cloned() {
        let (config, control_dir) = (config.clone(), control_dir.clone());
        tasks.spawn(async move {
            let never = CancellationToken::new();
            let session =
                Session::connect(&instance, &config, &control_dir, SERVICES_WITHIN, &never).await.ok()?;
            let output = session.run(&Command::new("labhost-service status").timeout(SERVICES_WITHIN)).await;
            session.close().await;
            Some((instance.id, in_words(&serde_json::from_slice(&output.ok()?.stdout).ok()?)))
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// `worker running, balancer failed` from the list that `labhost-service status` prints.
fn in_words(list: &Value) -> String {
    let words = |service: &Value| format!("{} {}", text(&service["name"]), text(&service["state"]));
    list.as_array().into_iter().flatten().map(words).collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

async fn balancer_status(instances: &[Instance], ui: &Ui) {
    let Some(lb) = instances.iter().rev().find(|instance| instance.role.as_deref() == Some("balancer"))
    else {
        return;
    };
    match script::balancer_status(lb).await {
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
                &[
                    "backend",
                    "cluster",
                    "state",
                    "in_flight",
                    "requests",
                    "errors",
                    "p50 ms",
                    "p99 ms",
                    "estimate ms",
                ]
                .map(str::to_owned),
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
                "p50 ms": backend["latency_ms"]["p50"], "p99 ms": backend["latency_ms"]["p99"],
                "estimate ms": backend["estimate_ms"],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_with_their_states() {
        let list = json!([{ "name": "worker", "state": "running" }, { "name": "x", "state": "failed" }]);
        assert_eq!(in_words(&list), "worker running, x failed");
        assert_eq!(in_words(&json!([])), "");
    }
}
