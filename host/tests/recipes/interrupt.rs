//! Ctrl-C and the time limit: the run ends with 130, says what exists, and leaves no command behind on a host.

use std::{net::TcpListener, time::Duration};

use rustix::process::Signal;

use crate::support::{Ended, Found, Lab, Running, kill, until};

/// A second Ctrl-C must not wait for what the first one waits for: 20 s for an answer, 30 s for a change.
const AT_ONCE: Duration = Duration::from_secs(8);

/// Sends Ctrl-C and returns how the run ended.
#[track_caller]
fn interrupt(run: Running) -> Ended {
    run.signal(Signal::INT);
    run.end().expect(130).expect_says("interrupted")
}

/// Waits until no command with this text runs on a host of the lab: what a busy machine does not kill while labhost
/// waits for it is killed right after.
#[track_caller]
fn until_it_is_gone(lab: &Lab, text: &str) {
    until(&format!("{text} is gone"), || {
        lab.processes().iter().all(|it| !it.command.contains(text)).then_some(())
    });
}

/// Waits until a command with this text runs on a host of the lab.
#[track_caller]
fn until_it_runs(lab: &Lab, text: &str) -> Found {
    until(text, || lab.processes().into_iter().find(|it| it.command.contains(text)))
}

#[test]
fn recipe_that_sleeps_is_ended_and_says_what_exists() {
    let lab = Lab::with_host();
    lab.write_recipe("print(\"asleep\"); sleep(3600);");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let run = lab.start(&["recipes/x.rhai"]);
        run.wait_for("asleep");
        run.signal(signal);
        let ended = run.end().expect(130).expect_says("1 instances exist: app-1");
        ended.expect_says("labhost recipes/stop.rhai --confirm").expect_says("end by themselves in");
    }
}

#[test]
fn command_on_a_host_is_gone_after_ctrl_c() {
    let lab = Lab::with_host();
    lab.write_recipe("host.exec(\"sleep 3601 & sleep 3602; echo not reached\");");
    let run = lab.start(&["recipes/x.rhai"]);
    until_it_runs(&lab, "sleep 3601");
    until_it_runs(&lab, "sleep 3602");
    interrupt(run).expect_says("1 instances exist: app-1");
    until_it_is_gone(&lab, "sleep");
}

#[test]
fn commands_on_all_hosts_are_gone_after_ctrl_c() {
    let lab = Lab::new();
    let fleet = "ec2::key_pair(#{ name: \"lab\" }); let hosts = ec2::wait(ec2::instances(#{ name: \"app\", type: \"t2.micro\", count: 3 }));";
    lab.write("recipes/x.rhai", &format!("{fleet}\nhosts.par(|host| host.exec(`sleep 360${{host.slot}}`));"));
    let run = lab.start(&["recipes/x.rhai"]);
    for slot in 1..=3 {
        until_it_runs(&lab, &format!("sleep 360{slot}"));
    }
    interrupt(run).expect_says("3 instances exist");
    until_it_is_gone(&lab, "sleep");
}

#[test]
fn waiting_for_a_service_is_ended_by_ctrl_c() {
    let lab = Lab::with_host();
    lab.write_recipe(
        "host.service(#{ name: \"mute\", exec: \"sleep 3603\", ready: \"/\", timeout: \"1h\" });",
    );
    let run = lab.start(&["recipes/x.rhai"]);
    until_it_runs(&lab, "sleep 3603");
    interrupt(run);
    // The service is the user's and stays; what asked for it does not.
    until_it_is_gone(&lab, "/dev/tcp");
    assert_eq!(lab.processes().iter().filter(|it| it.command == "sleep 3603").count(), 1);
}

#[test]
fn benchmark_is_ended_by_ctrl_c() {
    let lab = Lab::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let load = "connections: 2, timeout: \"10m\"";
    let texts = [
        format!("bench::http(\"{url}\", #{{ mode: \"closed\", duration: \"1h\", {load} }});"),
        format!(
            "bench::compare([\"{url}\", \"{url}2\"], #{{ mode: \"closed\", duration: \"4m\", {load} }});"
        ),
        format!("bench::capacity(\"{url}\", #{{ slo: #{{ p99_ms: 5 }}, {load} }});"),
    ];
    for text in texts {
        lab.write("recipes/x.rhai", &text);
        let run = lab.start(&["recipes/x.rhai"]);
        let _connection = silent.accept().unwrap();
        interrupt(run).expect_says("no instances exist");
        silent.set_nonblocking(true).unwrap();
        while silent.accept().is_ok() {}
        silent.set_nonblocking(false).unwrap();
    }
}

#[test]
fn endless_loop_is_ended_by_ctrl_c() {
    let lab = Lab::new();
    lab.write("recipes/x.rhai", "print(\"spinning\"); while true {}");
    let run = lab.start(&["recipes/x.rhai"]);
    run.wait_for("spinning");
    interrupt(run);
}

#[test]
fn interruption_cannot_be_caught() {
    let lab = Lab::with_host();
    for work in
        ["while true {}", "sleep(3600);", "host.exec(\"sleep 3604\");", "[1, 2].par(|x| sleep(3600));"]
    {
        lab.write_recipe(&format!(
            "print(\"begun\"); try {{ {work} }} catch (e) {{ print(\"caught\"); }} print(\"went on\");"
        ));
        let run = lab.start(&["recipes/x.rhai"]);
        run.wait_for("begun");
        assert_eq!(interrupt(run).stdout, "begun\n");
    }
}

#[test]
fn time_limit_ends_a_recipe_and_says_so() {
    let lab = Lab::with_host();
    for work in ["while true {}", "sleep(3600);", "host.exec(\"sleep 3605\");"] {
        lab.write_recipe(&format!("try {{ {work} }} catch (e) {{ print(\"caught\"); }}"));
        let ended = lab.labhost(&["recipes/x.rhai", "--time-limit", "2s"]).expect(130);
        assert_eq!(ended.stdout, "");
        let ended = ended.expect_says("took longer than its time limit of 2s");
        ended.expect_says("--time-limit 2h").expect_says("1 instances exist: app-1");
    }
    until_it_is_gone(&lab, "sleep 3605");
}

#[test]
fn second_ctrl_c_does_not_wait_for_a_launch() {
    let lab = Lab::with_host();
    let fleet = "ec2::instances(#{ name: \"app\", type: \"t2.micro\", count: 2 });";
    lab.write("recipes/x.rhai", fleet);
    let agent = lab.agent().unwrap();
    kill(agent, Signal::STOP);
    let run = lab.start(&["recipes/x.rhai"]);
    // The launch begins with taking the lock.
    let holder = format!("\"pid\":{},", run.pid());
    until("the launch has begun", || lab.read("artifacts/lock").contains(&holder).then_some(()));
    run.signal(Signal::INT);
    run.wait_for("interrupted: waiting for the launch of instances");
    run.signal(Signal::INT);
    let ended = run.end_within(AT_ONCE);
    kill(agent, Signal::CONT);
    ended.unwrap_or_else(|late| panic!("{late}")).expect(130);
    // What the launch came to is found by the next run.
    lab.labhost(&["recipes/x.rhai"]).expect(0);
    lab.assert_exactly(&["app-1", "app-2"]);
}
