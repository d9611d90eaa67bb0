//! What the balancer tells of its policy's beliefs and of its last choices.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are on the real clock")]

mod common;

use std::process::{Command, Output};

use common::{Balancer, Stub};
use serde_json::{Value, json};

fn ask(balancer: &Balancer, target: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
    command.args(["--ask", target, "--config"]).arg(balancer.config_path()).output().expect("it runs")
}

#[track_caller]
fn answer(balancer: &Balancer, target: &str) -> Value {
    let output = ask(balancer, target);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Decisions, once there are some: the first question begins to record.
fn decisions(balancer: &Balancer) -> Vec<Value> {
    let mut found = Vec::new();
    common::eventually("choices are told", || {
        (0..20).for_each(|_| assert_eq!(balancer.get("/app").status, 200));
        found = answer(balancer, "/decisions")["decisions"].as_array().expect("a list").clone();
        !found.is_empty()
    });
    found
}

on_both_drivers! {
    fn last_choices_are_told_with_the_costs_compared(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let balancer = Balancer::over(driver, &[&one, &two], json!({}));
        let decisions = decisions(&balancer);
        assert!(decisions.len() <= 64);
        let ages: Vec<f64> = decisions.iter().map(|one| one["age_ms"].as_f64().expect("a number")).collect();
        assert!(ages.is_sorted() && ages[0] >= 0.0, "the newest first: {ages:?}");
        for decision in &decisions {
            assert_eq!(decision["cluster"], "app");
            let compared = decision["compared"].as_array().expect("a list");
            assert_eq!(decision["candidates"].as_u64(), Some(compared.len() as u64));
            let chosen = compared.iter().find(|one| one["id"] == decision["chosen"]).expect("it is among them");
            assert!(chosen["cost"].as_f64() > Some(0.0), "{decision}");
        }
        let threads: std::collections::BTreeSet<_> = decisions.iter().map(|one| one["thread"].as_u64()).collect();
        assert!(threads.iter().all(|thread| *thread < Some(2)), "{threads:?}");
    }

    fn status_tells_what_the_policy_believes(driver) {
        let stub = Stub::named("a");
        let balancer = Balancer::over(driver, &[&stub], json!({ "policy": "expected-latency" }));
        assert!(balancer.backend(0)["believes"].get("latency_per_request_ms").is_none(), "nothing is known yet");
        (0..5).for_each(|_| assert_eq!(balancer.get("/app").status, 200));
        // On the public address, and on the admin socket.
        let admin = answer(&balancer, "/status")["clusters"]["app"]["backends"][0].clone();
        for backend in [balancer.backend(0), admin] {
            let believes = &backend["believes"];
            assert!(believes["latency_per_request_ms"].as_f64() > Some(0.0), "{believes}");
            assert_eq!((&believes["silence_factor"], &believes["failing_share"]), (&json!(1.0), &json!(0.0)));
            assert!(believes["cost"].as_f64() > Some(0.0));
        }
        balancer.reload(&common::config_over(&[&stub], json!({ "policy": "least-outstanding" })));
        assert_eq!(balancer.backend(0)["believes"], json!({ "cost": 0.0 }));
        balancer.reload(&common::config_over(&[&stub], json!({ "policy": "round-robin" })));
        assert_eq!(balancer.backend(0)["believes"], json!({}), "it holds nothing");
    }
}

#[test]
fn page_shows_each_backend_with_what_is_believed() {
    let stub = Stub::named("a");
    let config = json!({ "listen": "127.0.0.1:0", "threads": 1, "clusters": { "app": { "backends": [
        { "id": "<b>&", "address": stub.address.to_string() } ] } } });
    let balancer = Balancer::start("auto", config);
    assert_eq!(balancer.get("/app").status, 200);
    let page = balancer.get("/").text();
    for text in
        ["1 of 1 backends up", "&lt;b>&amp;", "latency per request, ms", "silence factor", "expected-latency"]
    {
        assert!(page.contains(text), "{text} is missing in {page}");
    }
    assert!(!page.contains("<b>&") && !page.contains("<script"), "{page}");
}

#[test]
fn question_that_has_no_answer_says_what_to_do() {
    let balancer = Balancer::over("auto", &[], json!({}));
    let output = ask(&balancer, "/decision");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/decisions"));
    let path = balancer.directory.path().join("other.json");
    std::fs::copy(balancer.config_path(), &path).expect("copied");
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
    let output = command.args(["--ask", "/status", "--config"]).arg(path).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running"));
}
