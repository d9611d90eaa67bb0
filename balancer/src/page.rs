//! The page for people: the clusters, and how the balancer sees their backends. One file, no scripts.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use select::{Belief, Health};

use crate::clock;
use crate::config::CATCH_ALL;
use crate::insight::Report;
use crate::site::{Generation, Member, Shared};
use crate::status::{milliseconds, significant};

pub(crate) const HTML: &str = "text/html; charset=utf-8";

const STYLE: &str = "\
:root{color-scheme:light dark;--line:light-dark(#ddd,#333);--quiet:light-dark(#666,#999);--bad:light-dark(#b3261e,#ff8a80)}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .3rem}p{margin:.3rem 0;color:var(--quiet)}
div{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:400;font-size:.87em;line-height:1.25;color:var(--quiet);vertical-align:bottom;white-space:normal;max-width:6rem}
th:first-child,td:first-child,.word{text-align:left}th:first-child,td:first-child{padding-left:0}
.group{text-align:center}tr:first-child th:not(.group){border:0}.bad{color:var(--bad)}a{color:inherit}";

/// `/`: the clusters, with links and what is believed of each backend.
pub(crate) fn html(shared: &Arc<Shared>, report: &Report) -> String {
    let now = clock::now();
    let generation = shared.generation();
    let policy = generation.config.policy.name();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>balancer</title>\n<style>{STYLE}</style>\n<h1>balancer</h1>\n\
         <p>{} s up, policy {policy}. <a href=\"/status\">status</a> <a href=\"/metrics\">metrics</a></p>\n",
        shared.uptime(now).as_secs(),
    );
    for index in 0..generation.clusters.len() {
        cluster(&mut page, &generation, index, report, now);
    }
    page.push_str("</html>\n");
    page
}

// Clusters' names are checked to be free of special characters. Writing to a string cannot fail.
fn cluster(page: &mut String, generation: &Generation, index: usize, report: &Report, now: Instant) {
    let shard = &generation.clusters[index];
    let up = shard.members.iter().filter(|member| member.backend.health(now) == Health::Up).count();
    let (name, count) = (&shard.config.name, shard.members.len());
    let title = if name == CATCH_ALL {
        "all other paths".to_owned()
    } else {
        format!("<a href=\"/{name}\">{name}</a>")
    };
    let _ = writeln!(page, "<h2>{title}: {up} of {count} backends up</h2>");
    let beliefs = |position: usize| report.beliefs(generation, index, position);
    // All backends of a cluster may not have the same ones: what is unknown is not told.
    let columns = (0..count).map(beliefs).max_by_key(|beliefs| beliefs.len()).unwrap_or(&[]);
    head(page, columns);
    let total: u64 = shard.members.iter().map(|member| member.stats.requests.load(Relaxed)).sum();
    for (position, member) in shard.members.iter().enumerate() {
        row(page, member, total, columns, beliefs(position), now);
    }
    page.push_str("</table></div>\n");
}

fn head(page: &mut String, columns: &[Belief]) {
    page.push_str(
        "<div><table><tr><th><th class=\"word\"><th><th><th><th><th class=\"group\" colspan=\"2\">latency",
    );
    if !columns.is_empty() {
        let _ = write!(page, "<th class=\"group\" colspan=\"{}\">the policy believes", columns.len());
    }
    page.push_str(
        "\n<tr><th>backend<th class=\"word\">state<th>in flight<th>requests<th>errors<th>share<th>p50, ms<th>p99, ms",
    );
    for belief in columns {
        let unit = if belief.unit.is_empty() { String::new() } else { format!(", {}", belief.unit) };
        let _ = write!(page, "<th>{}{unit}", belief.name.replace('_', " "));
    }
    page.push('\n');
}

fn row(page: &mut String, member: &Member, total: u64, columns: &[Belief], beliefs: &[Belief], now: Instant) {
    let (stats, health) = (&member.stats, member.backend.health(now));
    let requests = stats.requests.load(Relaxed);
    let latency =
        |quantile| milliseconds(member, quantile).map_or_else(dash, |ms| significant(ms).to_string());
    let _ = write!(
        page,
        "<tr><td>{}<td class=\"word{}\">{}<td>{}<td>{requests}<td>{}<td>{:.1} %<td>{}<td>{}",
        escaped(member.backend.id()),
        if health == Health::Up { "" } else { " bad" },
        health.name(),
        member.backend.in_flight(),
        stats.errors.load(Relaxed),
        100.0 * requests as f64 / total.max(1) as f64,
        latency(0.5),
        latency(0.99),
    );
    for column in columns {
        let held = beliefs.iter().find(|belief| belief.name == column.name);
        let _ = write!(page, "<td>{}", held.map_or_else(dash, |held| significant(held.value).to_string()));
    }
    page.push('\n');
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn dash() -> String {
    "–".to_owned()
}
