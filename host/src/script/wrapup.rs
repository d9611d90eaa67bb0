//! What follows a recipe that has ended well: instances that it no longer needs are drained and terminated.
//!
//! They go last, because until then the balancer may still send them requests: the recipe has replaced its
//! configuration in between.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{Run, balancer};
use crate::{Error, instance::Instance};

/// How long requests to an instance that goes may take to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// How long a balancer may go on with its old configuration after it was told to read the new one.
const RELOAD_WITHIN: Duration = Duration::from_secs(2);
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where an instance stands with the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It still gets requests.
    Serving,
    /// It gets no more, but some are in flight.
    Draining,
    None,
}

/// Drains and terminates what the recipe no longer needs, and names fleets that it does not mention.
pub fn wrap_up(run: &Run) -> Result<(), Error> {
    let (retiring, unnamed) = run.wait(run.lab.leftovers())?;
    let mut going: Vec<Instance> = retiring.into_iter().map(|(instance, _)| instance).collect();
    if run.prune {
        going.extend(unnamed);
    } else {
        warn_of_unnamed(run, &unnamed);
    }
    if going.is_empty() {
        return Ok(());
    }
    if run.lab.is_planning() {
        return run.wait(run.lab.retire(&going));
    }
    let serving = run.wait(drain(run, &going))?;
    let (kept, gone): (Vec<_>, Vec<_>) =
        going.into_iter().partition(|instance| serving.contains(&instance.id));
    if !kept.is_empty() {
        let names: Vec<_> = kept.iter().map(|instance| instance.name.as_str()).collect();
        run.ui.warn(&format!(
            "{} still get requests from the balancer and stay; run recipes/run.rhai to move its traffic",
            names.join(", ")
        ));
    }
    if !gone.is_empty() {
        let names: Vec<_> =
            gone.iter().map(|instance| format!("{} ({})", instance.name, instance.id)).collect();
        run.change("the termination of instances", run.lab.retire(&gone))?;
        run.ui.note(&format!("drained and terminated {}", names.join(", ")));
    }
    Ok(())
}

fn warn_of_unnamed(run: &Run, unnamed: &[Instance]) {
    let mut fleets: Vec<&str> = unnamed.iter().map(|instance| instance.fleet.as_str()).collect();
    fleets.dedup();
    for fleet in fleets {
        let count = unnamed.iter().filter(|instance| instance.fleet == fleet).count();
        run.ui
            .warn(&format!("fleet {fleet} ({count} running) is no longer in the recipe; --prune removes it"));
    }
}

/// Waits until no request is in flight to these instances. Returns the ids of those that the balancer still uses.
async fn drain(run: &Run, going: &[Instance]) -> Result<Vec<String>, Error> {
    let instances = run.lab.list().await?;
    let Some(lb) = balancer::balancer_of(&instances).filter(|lb| going.iter().all(|gone| gone.id != lb.id))
    else {
        return Ok(Vec::new());
    };
    let started = Instant::now();
    loop {
        // A balancer that does not answer serves nobody.
        let Ok(status) = balancer::status_of(lb).await else { return Ok(Vec::new()) };
        let uses: Vec<_> = going.iter().map(|instance| (instance, use_of(&status, &instance.id))).collect();
        if !uses.iter().any(|(_, use_)| use_.may_end_soon(started.elapsed())) {
            let serving = uses.iter().filter(|(_, use_)| *use_ == Use::Serving);
            return Ok(serving.map(|(instance, _)| instance.id.clone()).collect());
        }
        tokio::time::sleep(DRAIN_LOOK_EVERY).await;
    }
}

impl Use {
    /// Whether it is worth waiting for the end of this use, after `waited`.
    fn may_end_soon(self, waited: Duration) -> bool {
        match self {
            Self::Serving => waited < RELOAD_WITHIN,
            Self::Draining => waited < DRAIN_WITHIN,
            Self::None => false,
        }
    }
}

fn use_of(status: &Value, id: &str) -> Use {
    let clusters = status["clusters"].as_object().into_iter().flat_map(|clusters| clusters.values());
    let backends = clusters.flat_map(|cluster| cluster["backends"].as_array().into_iter().flatten());
    backends
        .filter(|backend| backend["id"] == id)
        .map(|backend| match (backend["state"].as_str(), backend["in_flight"].as_u64()) {
            (Some("draining"), Some(0)) => Use::None,
            (Some("draining"), _) => Use::Draining,
            _ => Use::Serving,
        })
        .max_by_key(|use_| match use_ {
            Use::None => 0,
            Use::Draining => 1,
            Use::Serving => 2,
        })
        .unwrap_or(Use::None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn instance_is_in_use_until_its_last_request_has_ended() {
        let status = |state: &str, in_flight: u64| {
            let backend = json!({ "id": "i-1", "state": state, "in_flight": in_flight });
            json!({ "clusters": { "a": { "backends": [backend] } } })
        };
        assert_eq!(use_of(&status("up", 0), "i-1"), Use::Serving);
        assert_eq!(use_of(&status("draining", 3), "i-1"), Use::Draining);
        assert_eq!(use_of(&status("draining", 0), "i-1"), Use::None);
        assert_eq!(use_of(&status("up", 0), "i-2"), Use::None);
    }

    #[test]
    fn balancer_has_a_moment_to_read_its_new_configuration() {
        assert!(Use::Serving.may_end_soon(Duration::ZERO));
        assert!(!Use::Serving.may_end_soon(RELOAD_WITHIN));
        assert!(Use::Draining.may_end_soon(RELOAD_WITHIN) && !Use::Draining.may_end_soon(DRAIN_WITHIN));
        assert!(!Use::None.may_end_soon(Duration::ZERO));
    }
}
