//! The result of `--plan` as the user sees it.
//!
//! What would change is found by `lab`.

use serde_json::json;

use super::Ui;
use crate::{
    lab::Rehearsal,
    provider::{Cost, Verb},
    units::Span,
};

/// Shows what would change, what there would be, and what that would cost per hour and for a whole `ttl`.
/// `vcpus` gives the virtual CPUs of a type.
pub fn show(ui: &Ui, rehearsal: &Rehearsal, cost: &Cost, ttl: Span, vcpus: impl Fn(&str) -> Option<u32>) {
    let counted = rehearsal.instances.iter().map(|it| vcpus(&it.instance_type));
    let vcpus = counted.sum::<Option<u32>>();
    ui.event(json!({
        "event": "plan", "changes": rehearsal.changes, "instances": rehearsal.instances.len(), "vcpus": vcpus,
        "usd_per_hour": cost.usd_per_hour,
    }));
    let mut lines = vec!["plan:".to_owned()];
    lines
        .extend(rehearsal.changes.iter().map(|change| format!("  {:<8} {}", verb(change.verb), change.what)));
    lines.push(format!("{}; {}", totals(rehearsal, vcpus), money(cost, ttl)));
    lines.push("what the recipe does on hosts (uploads, services, commands) is not planned".to_owned());
    ui.info(&lines.join("\n"));
}

fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Add => "add",
        Verb::Change => "change",
        Verb::Keep => "keep",
        Verb::Replace => "replace",
        Verb::Remove => "remove",
    }
}

fn totals(rehearsal: &Rehearsal, vcpus: Option<u32>) -> String {
    let cpus = vcpus.map_or_else(String::new, |count| format!(" with {count} vCPU"));
    format!("there would be {} instances{cpus}", rehearsal.instances.len())
}

fn money(cost: &Cost, ttl: Span) -> String {
    match cost.usd_per_hour {
        Some(usd) if usd > 0.0 => {
            format!("{}; {:.2} dollars for {ttl}", cost.note, usd * ttl.0.as_secs_f64() / 3600.0)
        }
        _ => cost.note.clone(),
    }
}
