//! Services, controlled over SSH with `labhost-service`.

use std::fs;

use labhost::provider::Provider;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::lab::{Lab, is_alive, kill, number, until, within};

#[tokio::test]
async fn a_service_follows_its_definition() {
    // As when labhost is run with nohup: its services take SIGHUP all the same.
    // SAFETY: no code runs at the signal.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let (lab, instance) = Lab::with_instance().await;
    // A shell that only waits takes a signal at any moment; one that starts programs can lose it.
    let script =
        "#!/bin/sh\ntrap 'echo reloaded' HUP\nsleep 1000 &\necho started $WHO\nwhile :; do wait; done\n";
    lab.run_with_input(&instance, "cat > loop && chmod 700 loop", script.as_bytes()).await;
    let definition = |hash| json!({ "exec": "./loop", "env": { "WHO": "me" }, "hash": hash });
    let first = lab.apply(&instance, "loop", definition("1")).await;
    assert_eq!((&first["changed"], &first["service"]["state"]), (&json!(true), &json!("running")));
    let again = lab.apply(&instance, "loop", definition("1")).await;
    assert_eq!((&again["changed"], &again["service"]["pid"]), (&json!(false), &first["service"]["pid"]));
    let changed = lab.apply(&instance, "loop", definition("2")).await;
    assert_eq!(changed["changed"], true);
    assert_ne!(changed["service"]["pid"], first["service"]["pid"]);
    assert!(!is_alive(number(&first["service"]["pid"])));
    until("both starts are logged", async || {
        lab.ok(&instance, "labhost-service logs loop").await.matches("started me").count() == 2
    })
    .await;
    lab.ok(&instance, "labhost-service reload loop").await;
    until("the reload is logged", async || {
        lab.ok(&instance, "labhost-service logs loop -n 1").await == "reloaded\n"
    })
    .await;
}

#[tokio::test]
async fn a_service_is_started_stopped_and_removed() {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    kill(number(&applied["service"]["pid"]));
    until("it is started again", async || {
        let status = lab.status(&instance, "web").await;
        status["state"] == "running" && status["restarts"] == 1 && status["exit_status"] == 137
    })
    .await;
    lab.ok(&instance, "labhost-service stop web").await;
    let status = lab.status(&instance, "web").await;
    assert_eq!((&status["state"], &status["pid"]), (&json!("stopped"), &Value::Null));
    lab.ok(&instance, "labhost-service start web").await;
    lab.ok(&instance, "labhost-service restart web").await;
    let all: Value = serde_json::from_str(&lab.ok(&instance, "labhost-service status").await).unwrap();
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    assert_eq!(lab.ok(&instance, "labhost-service remove web").await, "{\"removed\":\"web\"}\n");
    lab.ok(&instance, "labhost-service remove web").await;
    assert_eq!(lab.run(&instance, "labhost-service status web").await.status.code(), Some(1));
    assert!(!is_alive(number(&all[0]["pid"])));
}

#[tokio::test]
async fn a_service_that_cannot_run_is_given_up_with_its_log() {
    let (lab, instance) = Lab::with_instance().await;
    lab.apply(&instance, "broken", json!({ "exec": "./missing" })).await;
    let status = lab.wait_for_state(&instance, "broken", "failed").await;
    assert_eq!((&status["exit_status"], &status["restarts"]), (&json!(127), &json!(4)));
    assert!(lab.ok(&instance, "labhost-service logs broken -n 1").await.contains("missing"));
    lab.apply(&instance, "job", json!({ "exec": "echo done", "restart": "no" })).await;
    lab.wait_for_state(&instance, "job", "stopped").await;
    assert_eq!(lab.ok(&instance, "labhost-service logs job").await, "done\n");
    for (line, code) in [("start ../x", 2), ("start nothing", 1), ("apply web < /dev/null", 2), ("", 2)] {
        let output = lab.run(&instance, &format!("labhost-service {line}")).await;
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[tokio::test]
async fn a_log_is_followed() {
    let (lab, instance) = Lab::with_instance().await;
    lab.apply(&instance, "web", json!({ "exec": "sh -c 'echo one; while [ ! -e go ]; do sleep 0.01; done; echo two'", "restart": "no" })).await;
    let mut follower = lab.ssh(&instance, &[], "labhost-service logs web -f").spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "one");
    fs::write(lab.home(&instance).join("go"), "").unwrap();
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "two");
}

#[tokio::test]
async fn a_restart_with_a_hand_over_starts_the_new_process_first() {
    let (lab, instance) = Lab::with_instance().await;
    // Says what it finds running, and ends that.
    let script = "#!/bin/sh\nif [ -f pid ]; then kill -0 $(cat pid) && echo found; kill $(cat pid); fi\n\
        echo $$ > pid; while :; do sleep 0.01; done\n";
    lab.run_with_input(&instance, "cat > taker && chmod 700 taker", script.as_bytes()).await;
    let definition = |hash| json!({ "exec": "./taker", "handover": true, "hash": hash });
    let first = lab.apply(&instance, "taker", definition("1")).await;
    until("it runs", async || lab.home(&instance).join("pid").exists()).await;
    let second = lab.apply(&instance, "taker", definition("2")).await;
    assert_eq!((&second["changed"], &second["service"]["hash"]), (&json!(true), &json!("2")));
    let third: Value =
        serde_json::from_str(&lab.ok(&instance, "labhost-service restart taker").await).unwrap();
    let pids = [&first["service"]["pid"], &second["service"]["pid"], &third["pid"]].map(number);
    assert!(pids[0] != pids[1] && pids[1] != pids[2]);
    assert_eq!(pids.map(is_alive), [false, false, true]);
    until("both found one running", async || {
        lab.ok(&instance, "labhost-service logs taker").await == "found\nfound\n"
    })
    .await;
}

#[tokio::test]
async fn a_successor_that_ends_leaves_the_service_as_it_was() {
    let (lab, instance) = Lab::with_instance().await;
    let definition = |exec, hash| json!({ "exec": exec, "handover": true, "hash": hash });
    let good = definition("sleep 1000", "1");
    let applied = lab.apply(&instance, "web", good.clone()).await;
    let bad = definition("sh -c 'exit 3'", "2").to_string();
    let output = lab.run_with_input(&instance, "labhost-service apply web", bad.as_bytes()).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("goes on as it was: its successor ended with status 3"), "{told}");
    let again = lab.apply(&instance, "web", good).await;
    assert_eq!((&again["changed"], &again["service"]["pid"]), (&json!(false), &applied["service"]["pid"]));
    // Nor does a boot start what could not take over.
    kill(lab.local.agent_pid().await.unwrap().into());
    lab.local.start().await.unwrap();
    assert_eq!(lab.wait_for_state(&instance, "web", "running").await["hash"], "1");
}
