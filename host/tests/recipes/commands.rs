//! The commands around recipes, and `--json`.

use serde_json::Value;

use crate::support::{Lab, Running};

#[test]
fn check_reads_every_recipe_of_the_repository() {
    let lab = Lab::new();
    for name in ["bootstrap", "provision", "run", "bench", "stop", "topology", "shootout", "contenders"] {
        let recipe = format!("recipes/{name}.rhai");
        lab.labhost(&["check", &recipe]).expect(0).expect_says("no mistakes found in").expect_says(&recipe);
    }
    lab.labhost(&["check", "recipes/run.rhai"])
        .expect_says("recipes/provision.rhai")
        .expect_says("recipes/topology.rhai");
    lab.labhost(&["check", "recipes/shootout.rhai"])
        .expect_says("recipes/contenders.rhai")
        .expect_says("recipes/lib/shootout.rhai");
    lab.assert_nothing_left();
}

#[test]
fn check_shows_all_mistakes_and_runs_nothing() {
    let lab = Lab::new();
    lab.write("recipes/x.rhai", "print(\"ran\");\nec2::lisst();\nec2::wait([], #{ tiemout: \"1s\" });\n");
    let ended = lab.labhost(&["check", "recipes/x.rhai"]).expect(3).expect_silent_about("ran");
    let ended = ended.expect_says("recipes/x.rhai:2:6").expect_says("did you mean `ec2::list`?");
    ended.expect_says("recipes/x.rhai:3:18").expect_says("did you mean `timeout`?");
    lab.labhost(&["check", "recipes/nun.rhai"]).expect(2);
}

#[test]
fn docs_show_what_recipes_can_call() {
    let lab = Lab::new();
    let all = lab.labhost(&["docs"]).expect(0);
    for name in
        ["ec2", "build", "balancer", "bench", "state", "cli", "ui", "ec2::instances(", "exec(", "par("]
    {
        assert!(all.stdout.contains(name), "{name} is missing\n{all}");
    }
    let one = lab.labhost(&["docs", "ec2::instances"]).expect(0);
    one.expect_says("count (whole number)").expect_says("Exactly how many members the fleet has.");
    lab.labhost(&["docs", "ec2"]).expect(0).expect_says("ec2::key_pair(");
    lab.labhost(&["docs", "exec"]).expect(0).expect_says("timeout (duration, optional)");
    lab.labhost(&["docs", "ec2::instanses"]).expect(2).expect_says("did you mean `ec2::instances`?");
}

#[test]
fn recipe_explains_itself() {
    let lab = Lab::new();
    let help = lab.labhost(&["recipes/bench.rhai", "--help"]).expect(0);
    help.expect_says("Load on each cluster").expect_says("--clusters").expect_says("--duration");
    lab.labhost(&["--help"]).expect(0).expect_says("Exit codes");
    lab.assert_nothing_left();
}

#[test]
fn status_shows_instances_and_when_they_end() {
    let lab = Lab::new();
    lab.labhost(&["status"]).expect(0).expect_says("no instances");
    lab.recipe("").expect(0);
    let address = lab.instance("app-1").public_ip.unwrap().to_string();
    let shown = lab
        .labhost(&["status"])
        .expect(0)
        .expect_says("app-1")
        .expect_says("t2.micro")
        .expect_says("running");
    shown.expect_says(&address).expect_says("end by themselves in");
    // Any folder of the lab will do, and no folder outside.
    let mut inside = lab.command(&["status"]);
    inside.current_dir(lab.file("recipes"));
    Running::start(inside).end().expect(0).expect_says("app-1");
    let mut outside = lab.command(&["status"]);
    outside.current_dir("/");
    Running::start(outside).end().expect(2).expect_says("there is no lab");
}

#[test]
fn extend_moves_the_end() {
    let lab = Lab::new();
    lab.labhost(&["extend", "5h"]).expect(2).expect_says("no instances to extend");
    lab.recipe("").expect(0);
    let before = lab.instance("app-1").expires_at_s;
    lab.labhost(&["extend", "5h"]).expect(0).expect_says("the instances end by themselves in");
    let after = lab.instance("app-1").expires_at_s;
    assert!(after >= before + 2 * 3600, "{before} {after}");
    // The next run does not take it back.
    lab.recipe("").expect(0);
    assert_eq!(lab.instance("app-1").expires_at_s, after);
    lab.labhost(&["extend", "soon"]).expect(2);
    lab.labhost(&["extend", "13h"]).expect(2).expect_says("--max-ttl 13h");
    lab.labhost(&["extend", "13h", "--max-ttl", "1d"]).expect(0);
}

#[test]
fn ssh_logs_in_and_hands_on_the_exit_status() {
    let lab = Lab::with_host();
    let id = lab.instance("app-1").id;
    for name in ["app-1", "app", id.as_str()] {
        lab.labhost(&["ssh", name, "echo $INSTANCE_ID; exit 3"]).expect(3).expect_says(&id);
    }
    lab.labhost(&["ssh", "app-1", "printf", "%s", "--x"]).expect(0).expect_says("--x");
    lab.labhost(&["ssh", "app-11"]).expect(2).expect_says("did you mean app-1?");
    let config = lab.file("artifacts/ssh_config");
    let mut by_hand = std::process::Command::new("ssh");
    by_hand.arg("-F").arg(config).args(["app-1", "echo", "by hand"]);
    Running::start(by_hand).end().expect(0).expect_says("by hand");
}

#[test]
fn logs_show_what_a_service_printed() {
    let lab = Lab::with_host();
    let text = "host.service(#{ name: \"talk\", exec: \"sh -c 'for n in 1 2 3 4 5; do echo line $n; done; sleep 66'\" });\n\
                host.exec(\"until grep -q 'line 5' ../logs/talk.log; do sleep 0.02; done\");\n\
                print(host.logs(\"talk\", #{ lines: 2 }));";
    lab.recipe(text).expect(0).expect_says("line 4\nline 5").expect_silent_about("line 3");
    let shown = lab.labhost(&["logs", "app-1", "talk", "-n", "3"]).expect(0);
    assert_eq!(shown.stdout, "line 3\nline 4\nline 5\n");
    lab.labhost(&["logs", "app-1", "tlak"])
        .expect_says("there is no service \"tlak\"")
        .expect_says("it has talk");
    let following = lab.start(&["logs", "app-1", "talk", "--follow", "-n", "1"]);
    following.wait_for("line 5");
    lab.labhost(&["ssh", "app-1", "labhost-service", "restart", "talk"]).expect(0);
    following.wait_for("line 1");
}

#[test]
fn doctor_finds_this_machine_fit() {
    let shown = Lab::new().labhost(&["doctor"]).expect(0).expect_says("this machine can run labs");
    for check in ["rust", "c compiler", "static libc", "ssh client", "io_uring"] {
        assert!(shown.stdout.contains(check), "{check} is missing\n{shown}");
    }
}

/// Every line as JSON; all of labhost's output, because stderr must be empty.
#[track_caller]
fn events(ended: &crate::support::Ended) -> Vec<Value> {
    assert_eq!(ended.stderr, "", "{ended}");
    let lines = ended.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|cause| panic!("{cause} in {line:?}")))
        .collect()
}

#[test]
fn json_holds_everything_that_is_said() {
    let lab = Lab::new();
    lab.write_recipe(
        "ui::step(\"one\"); ui::info(\"two\\nlines\"); print(\"three\"); ui::warn(\"four\"); debug(\"five\");\n\
         ui::table([#{ six: 6 }]);\n\
         host.exec(\"true\");",
    );
    let events = events(&lab.labhost(&["recipes/x.rhai", "--json"]).expect(0));
    let has = |event: &str, key: &str, value: Value| {
        events.iter().any(|it| it["event"] == event && it[key] == value)
    };
    assert!(has("step", "text", "one".into()), "{events:?}");
    assert!(has("info", "text", "two\nlines".into()), "{events:?}");
    assert!(has("info", "text", "three".into()), "{events:?}");
    assert!(has("warn", "text", "four".into()), "{events:?}");
    assert!(has("table", "rows", serde_json::json!([{ "six": 6 }])), "{events:?}");
    assert!(has("host", "state", "started".into()) && has("host", "state", "done".into()), "{events:?}");
    assert!(
        events.iter().any(|it| it["text"].as_str().is_some_and(|text| text.contains("five"))),
        "{events:?}"
    );
    assert!(events.iter().all(|it| it["at_ms"].is_u64()), "{events:?}");
}

#[test]
fn json_error_has_kind_place_and_hint() {
    let lab = Lab::new();
    lab.write("recipes/x.rhai", "\nec2::instances(#{ cuont: 1 });");
    let found = events(&lab.labhost(&["recipes/x.rhai", "--json"]).expect(3)).remove(0);
    for (key, value) in [
        ("event", Value::from("error")),
        ("kind", "compile".into()),
        ("exit_code", 3.into()),
        ("file", "recipes/x.rhai".into()),
        ("line", 2.into()),
        ("column", 19.into()),
    ] {
        assert_eq!(found[key], value, "{found}");
    }
    assert!(found["hint"].as_str().unwrap().contains("did you mean `count`?"), "{found}");
    lab.recipe("").expect(0);
    let rows = events(&lab.labhost(&["status", "--json"]).expect(0));
    assert!(rows.iter().any(|it| it["rows"][0]["name"] == "app-1"), "{rows:?}");
}
