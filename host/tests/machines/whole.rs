//! The repository's own recipes with nine machines, from `run` to `stop`.

use std::{process::Command, time::Instant};

use labhost::instance::Instance;

use crate::{
    fake::Cloud,
    isolate::{isolated, say},
    lab::{Ended, Lab, WHOLE},
    nspawn::Machines,
    wait_for,
};

/// One worker less than [`WHOLE`].
const EIGHT: &str = r#"
    #{ name: "large", type: "t2.large", count: 3, cluster: "cluster1" },
    #{ name: "micro", type: "t2.micro", count: 4, cluster: "cluster2" },
    #{ name: "lb",    type: "t2.large", count: 1, role: "balancer" },"#;

/// Says how long a step took; nothing is judged by it.
fn timed(what: &str, step: impl FnOnce() -> Ended) -> Ended {
    let begun = Instant::now();
    let ended = step();
    say(&format!("{what}: {:.1} s", begun.elapsed().as_secs_f64()));
    ended
}

/// The answer to a GET, if there is one with a good status.
fn get(url: &str) -> Option<String> {
    let output = Command::new("curl").args(["--silent", "--fail", "--max-time", "2", url]).output();
    let output = output.expect("curl starts");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn balancer(lab: &Lab) -> Instance {
    lab.instances().into_iter().find(|it| it.role.as_deref() == Some("balancer")).expect("a balancer")
}

/// The balancer's process.
#[track_caller]
fn pid(lab: &Lab) -> String {
    let line = "systemctl show --property=MainPID --value labhost-balancer";
    lab.labhost(&["ssh", "lb-1", line]).expect(0).stdout.trim().to_owned()
}

#[test]
fn nine_machines_from_run_to_stop() {
    isolated("whole::nine_machines_from_run_to_stop", || {
        let cloud = Cloud::on(Box::new(Machines::new()));
        let mut lab = Lab::on_machines(&cloud, &Machines::caller());
        // As over a slow uplink: the worker is sent once, and seven machines fetch it from the eighth.
        lab.env.push(("LABHOST_COPY_AFTER".to_owned(), "0".to_owned()));
        lab.set_topology(WHOLE);
        let run = timed("run of nine machines", || lab.run()).expect(0).says("The lab is up");
        run.says("upload worker: 8 changed (7 copied from ");
        let lb = balancer(&lab).public_ip.unwrap();
        answers_come_through_the_balancer_only(&lab, &format!("http://{lb}"));
        timed("run again", || lab.run()).expect(0).says("8 as it should be").says("1 as it should be");
        timed("benchmark", || lab.labhost(&["recipes/bench.rhai", "--requests", "200"])).expect(0);
        a_worker_less_is_a_reload(&lab, &cloud);
        killed_balancer_comes_back(&lab, &format!("http://{lb}"));
        lab.labhost(&["status"]).expect(0).says("lb-1");
        timed("stop", || lab.stop()).expect(0);
        assert_eq!(cloud.left(), Vec::<String>::new());
    });
}

/// Workers are asked at their private addresses, and nobody else gets through to them.
fn answers_come_through_the_balancer_only(lab: &Lab, url: &str) {
    for cluster in ["cluster1", "cluster2"] {
        let answer = get(&format!("{url}/{cluster}")).expect("an answer");
        assert!(answer.contains(cluster), "{answer}");
    }
    let workers: Vec<_> = lab.instances().into_iter().filter(|it| it.cluster.is_some()).collect();
    let status = get(&format!("{url}/status")).expect("the balancer's status");
    for worker in &workers {
        let (private, public) = (worker.private_ip.unwrap(), worker.public_ip.unwrap());
        assert!(status.contains(&format!("{private}:8000")), "{status}");
        assert!(!status.contains(&public.to_string()), "{status}");
    }
    assert_eq!(get(&format!("http://{}:8000/", workers[0].private_ip.unwrap())), None, "its group is closed");
}

fn a_worker_less_is_a_reload(lab: &Lab, cloud: &Cloud) {
    let before = pid(lab);
    lab.set_topology(EIGHT);
    timed("a worker less", || lab.run()).expect(0).says("drained and terminated");
    assert_eq!(cloud.living().len(), 8);
    assert_eq!(pid(lab), before, "the balancer went on");
    let lb = balancer(lab).public_ip.unwrap();
    let status = get(&format!("http://{lb}/status")).expect("the balancer's status");
    assert_eq!(status.matches(":8000").count(), 7, "{status}");
}

fn killed_balancer_comes_back(lab: &Lab, url: &str) {
    let before = pid(lab);
    lab.labhost(&["ssh", "lb-1", &format!("sudo kill -KILL {before}")]).expect(0);
    wait_for("the balancer", || get(&format!("{url}/cluster1")));
    assert_ne!(pid(lab), before);
}
