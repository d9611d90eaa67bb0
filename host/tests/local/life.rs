//! Launching, losing and removing instances, and the agent's own life.

use std::{
    fs,
    path::{Path, PathBuf},
};

use labhost::instance::State;
use labhost::provider::{Launch, Provider, local::Local};
use serde_json::json;

use crate::lab::{Lab, is_alive, kill, launch, now_s, number, signal, until};

#[tokio::test]
async fn a_repeated_launch_makes_nothing_new() {
    let lab = Lab::start().await;
    let asked = launch("once", &[1, 2]);
    let first = lab.local.launch(&asked).await.unwrap();
    let later = Launch { expires_at_s: asked.expires_at_s + 9, ..asked };
    assert_eq!(lab.local.launch(&later).await.unwrap(), first);
    assert_eq!(lab.local.list().await.unwrap(), first);
    let error = lab.local.launch(&launch("once", &[3])).await.unwrap_err();
    assert!(error.message.contains("another launch"), "{error}");
    let wrong = Launch { instance_type: "t2.larg".to_owned(), ..launch("wrong", &[1]) };
    let error = lab.local.launch(&wrong).await.unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("did you mean `t2.large`?"));
    lab.local.terminate(&[first[0].id.clone(), "i-unknown".to_owned()]).await.unwrap();
    assert_eq!(lab.local.list().await.unwrap(), first[1..]);
    assert_eq!(lab.launch(&[9]).await[0].public_ip, first[0].public_ip);
}

#[tokio::test]
async fn a_launch_cut_short_leaves_all_instances_or_none() {
    let lab = Lab::start().await;
    for round in 0..4 {
        let before = lab.local.list().await.unwrap().len();
        let agent = lab.local.agent_pid().await.unwrap().into();
        let asked = launch(&format!("round-{round}"), &(1..=20).collect::<Vec<_>>());
        let cut = async {
            for _ in 0..round * 20 {
                tokio::task::yield_now().await;
            }
            kill(agent);
        };
        let _ = tokio::join!(lab.local.launch(&asked), cut);
        lab.local.start().await.unwrap();
        let after = lab.local.list().await.unwrap();
        assert!([before, before + 20].contains(&after.len()), "{before} {}", after.len());
        let again = lab.local.launch(&asked).await.unwrap();
        let all = lab.local.list().await.unwrap();
        assert_eq!((all.len(), again.len()), (before + 20, 20));
        let names = fs::read_dir(lab.state().join("local")).unwrap().flatten().map(|it| it.file_name());
        assert_eq!(names.filter(|it| it.to_string_lossy().starts_with("i-")).count(), all.len());
        lab.ok(&again[19], "true").await;
    }
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error_and_leaves_nothing() {
    let (lab, first) = Lab::with_instance().await;
    let next = std::net::Ipv4Addr::from(u32::from(first.public_ip.unwrap()) + 1);
    let _squatter = std::net::TcpListener::bind((next, first.ssh_port)).unwrap();
    let error = lab.local.launch(&launch("squat", &[2])).await.unwrap_err();
    assert!(error.message.contains(&format!("{next}:2222")), "{error}");
    assert_eq!(lab.local.list().await.unwrap().len(), 1);
    let names = fs::read_dir(lab.state().join("local")).unwrap().flatten().map(|it| it.file_name());
    assert_eq!(names.filter(|it| it.to_string_lossy().starts_with("i-")).count(), 1);
}

#[tokio::test]
async fn a_killed_agent_is_a_power_cut() {
    let lab = Lab::start().await;
    let before = lab.launch(&[1, 2]).await;
    let line = "sh -c 'setsid sleep 1000 & echo $! > escaped.tmp; mv escaped.tmp escaped; wait'";
    let applied = lab.apply(&before[0], "web", json!({ "exec": line })).await;
    let service = number(&applied["service"]["pid"]);
    let file = lab.home(&before[0]).join("escaped");
    until("the service has started another process", async || file.exists()).await;
    let escaped = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    kill(lab.local.agent_pid().await.unwrap().into());
    until("the service dies with the agent", async || !is_alive(service)).await;
    assert_eq!(lab.local.agent_pid().await, None);
    let stopped = lab.local.list().await.unwrap();
    assert_eq!(stopped.len(), 2);
    assert!(stopped.iter().all(|instance| instance.state == State::Stopped));
    lab.local.start().await.unwrap();
    assert!(!is_alive(escaped));
    assert_eq!(lab.local.list().await.unwrap(), before);
    let status = lab.wait_for_state(&before[0], "web", "running").await;
    assert_ne!(number(&status["pid"]), service);
    assert_eq!(lab.ok(&before[1], "echo $INSTANCE_ID").await.trim(), before[1].id);
}

#[tokio::test]
async fn an_agent_whose_socket_was_cleaned_away_comes_back() {
    let (lab, instance) = Lab::with_instance().await;
    let agent = lab.local.agent_pid().await;
    let socket = PathBuf::from(lab.ok(&instance, "echo $LABHOST_AGENT").await.trim());
    fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    until("the agent answers again", async || lab.local.agent_pid().await == agent).await;
    assert_eq!(lab.local.list().await.unwrap(), [instance]);
}

#[tokio::test]
async fn a_running_agent_finds_its_state_gone_and_goes_on() {
    let (lab, _) = Lab::with_instance().await;
    fs::remove_dir_all(lab.state()).unwrap();
    lab.local.start().await.unwrap();
    assert_eq!(lab.local.list().await.unwrap(), []);
    let instance = &lab.launch(&[7]).await[0];
    let applied = lab.apply(instance, "web", json!({ "exec": "sleep 1000" })).await;
    assert_eq!(applied["changed"], true);
}

#[tokio::test]
async fn an_agent_told_to_end_keeps_the_instances() {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    let agent = lab.local.agent_pid().await.unwrap().into();
    signal("-TERM", agent);
    until("the agent ends", async || !is_alive(agent)).await;
    assert!(!is_alive(number(&applied["service"]["pid"])));
    lab.local.start().await.unwrap();
    assert_eq!(lab.local.list().await.unwrap(), [instance]);
}

#[tokio::test]
async fn a_lab_ends_when_its_time_is_over() {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    let later = now_s() + 7200;
    lab.local.extend(later).await.unwrap();
    assert_eq!(lab.local.list().await.unwrap()[0].expires_at_s, later);
    lab.local.extend(now_s()).await.unwrap();
    until("nothing remains", async || lab.local.remains().await.unwrap().is_empty()).await;
    assert!(!is_alive(number(&applied["service"]["pid"])));
    assert!(!lab.state().join("local").exists());
}

/// Damages a lab that has an instance with a service, destroys it, and looks whether anything is left.
async fn destroyed_after(damage: impl AsyncFnOnce(&Lab)) {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    let agent = lab.local.agent_pid().await.unwrap();
    assert!(lab.local.remains().await.unwrap().len() >= 4);
    damage(&lab).await;
    assert_eq!(lab.local.destroy(true).await.unwrap(), Vec::<String>::new());
    assert_eq!(lab.local.remains().await.unwrap(), Vec::<String>::new());
    assert!(!is_alive(number(&applied["service"]["pid"])) && !is_alive(agent.into()));
    assert!(!lab.state().join("local").exists());
    assert_eq!(lab.local.destroy(true).await.unwrap(), Vec::<String>::new());
    assert_eq!(lab.local.list().await.unwrap(), []);
}

#[tokio::test]
async fn destroy_removes_what_was_made_and_nothing_else() {
    let lab = Lab::start().await;
    lab.launch(&[1]).await;
    fs::write(lab.state().join("bench-1.json"), "{}").unwrap();
    assert_eq!(lab.local.destroy(false).await.unwrap(), Vec::<String>::new());
    assert_eq!(fs::read_dir(lab.state()).unwrap().count(), 1);
    destroyed_after(async |_| ()).await;
}

#[tokio::test]
async fn destroy_works_with_the_agent_dead() {
    destroyed_after(async |lab| kill(lab.local.agent_pid().await.unwrap().into())).await;
}

#[tokio::test]
async fn destroy_works_with_the_agent_wedged() {
    destroyed_after(async |lab| signal("-STOP", lab.local.agent_pid().await.unwrap().into())).await;
}

#[tokio::test]
async fn destroy_works_with_the_state_gone() {
    destroyed_after(async |lab| fs::remove_dir_all(lab.state()).unwrap()).await;
}

#[tokio::test]
async fn destroy_works_with_the_agent_dead_and_the_state_gone() {
    destroyed_after(async |lab| {
        kill(lab.local.agent_pid().await.unwrap().into());
        fs::remove_dir_all(lab.state()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_instance_without_its_directory_is_terminated() {
    let lab = Lab::start().await;
    let instances = lab.launch(&[1, 2]).await;
    let applied = lab.apply(&instances[0], "web", json!({ "exec": "sleep 1000" })).await;
    fs::remove_dir_all(lab.state().join("local").join(&instances[0].id)).unwrap();
    assert_eq!(lab.local.list().await.unwrap(), instances[1..]);
    assert!(!is_alive(number(&applied["service"]["pid"])));
}

#[tokio::test]
async fn two_labs_do_not_collide() {
    let (one, two) = tokio::join!(Lab::start(), Lab::start());
    let (mine, theirs) = (one.launch(&[1]).await, two.launch(&[1]).await);
    assert_ne!(mine[0].public_ip, theirs[0].public_ip);
    assert_ne!(mine[0].host_key, theirs[0].host_key);
    drop(two);
    assert_eq!(one.local.list().await.unwrap(), mine);
    one.ok(&mine[0], "true").await;
}

#[tokio::test]
async fn an_agent_that_cannot_start_is_reported() {
    let lab = Lab::start().await;
    lab.local.destroy(false).await.unwrap();
    let broken = Local::new(&lab.state(), Path::new("/bin/false")).unwrap();
    let error = broken.start().await.unwrap_err();
    assert!(error.message.contains("does not answer"), "{error}");
}
