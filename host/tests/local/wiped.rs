//! Processes that wipe their environment, as programs do that show a title in lists of processes.

use std::fs;

use labhost::instance::Instance;
use labhost::provider::Provider;
use serde_json::json;

use crate::lab::{Lab, PATIENCE, is_alive, kill, number, until};

/// A service whose child is in a session of its own, in another directory, and without environment.
async fn start_service(lab: &Lab, instance: &Instance) -> (u64, u64) {
    let this = std::env::current_exe().unwrap();
    let line = format!(
        "sh -c 'setsid \"{}\" --ignored --exact wiped::a_process_without_environment & wait'",
        this.display()
    );
    let applied = lab.apply(instance, "titled", json!({ "exec": line })).await;
    let file = lab.home(instance).join("wiped");
    until("the service's child has wiped its environment", async || file.exists()).await;
    let child = fs::read_to_string(&file).unwrap().parse().unwrap();
    let environ = fs::read(format!("/proc/{child}/environ")).unwrap();
    assert!(!environ.is_empty() && environ.iter().all(|byte| *byte == 0));
    (number(&applied["service"]["pid"]), child)
}

async fn kill_agent(lab: &Lab, service: u64) {
    kill(lab.local.agent_pid().await.unwrap().into());
    until("the service dies with the agent", async || !is_alive(service)).await;
}

#[tokio::test]
async fn what_wiped_its_environment_ends_with_the_lab() {
    let (lab, instance) = Lab::with_instance().await;
    let (service, child) = start_service(&lab, &instance).await;
    kill_agent(&lab, service).await;
    assert!(is_alive(child), "there is nothing to find");
    let shown = format!("{child} (");
    assert!(lab.local.remains().await.unwrap().iter().any(|line| line.contains(&shown)));
    assert_eq!(lab.local.destroy(false).await.unwrap(), Vec::<String>::new());
    assert!(!is_alive(child));
}

#[tokio::test]
async fn what_wiped_its_environment_ends_with_the_lab_whose_files_are_gone() {
    let (lab, instance) = Lab::with_instance().await;
    let (service, child) = start_service(&lab, &instance).await;
    kill_agent(&lab, service).await;
    fs::remove_dir_all(lab.state()).unwrap();
    assert_eq!(lab.local.destroy(false).await.unwrap(), Vec::<String>::new());
    assert!(!is_alive(child));
}

#[tokio::test]
async fn what_wiped_its_environment_does_not_outlive_the_agent_s_successor() {
    let (lab, instance) = Lab::with_instance().await;
    let (service, child) = start_service(&lab, &instance).await;
    kill_agent(&lab, service).await;
    lab.local.start().await.unwrap();
    assert!(!is_alive(child));
}

#[tokio::test]
async fn what_wiped_its_environment_ends_with_its_instance_alone() {
    let lab = Lab::start().await;
    let instances = lab.launch(&[1, 2]).await;
    let (_, first) = start_service(&lab, &instances[0]).await;
    let (_, second) = start_service(&lab, &instances[1]).await;
    lab.local.terminate(std::slice::from_ref(&instances[0].id)).await.unwrap();
    assert!(!is_alive(first) && is_alive(second));
}

/// Another lab's, and one in no lab that stands in the lab's folder: neither is the lab's to kill.
#[tokio::test]
async fn what_is_not_of_the_lab_stays() {
    let (lab, instance) = Lab::with_instance().await;
    let (other, others_instance) = Lab::with_instance().await;
    let (_, theirs) = start_service(&other, &others_instance).await;
    let home = lab.home(&instance);
    let mut mine = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "wiped::a_process_without_environment"])
        .current_dir(&home)
        .env("STAYS", "")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("it has wiped its environment", async || home.join("wiped").exists()).await;
    assert_eq!(lab.local.destroy(false).await.unwrap(), Vec::<String>::new());
    let stayed = is_alive(mine.id().into());
    mine.kill().unwrap();
    mine.wait().unwrap();
    assert!(stayed && is_alive(theirs));
}

/// No test but the program of the services above. It ends by itself, should nobody end it.
#[test]
#[ignore = "the tests of this file run it as a service"]
fn a_process_without_environment() {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    let home = std::env::current_dir().unwrap();
    if std::env::var_os("STAYS").is_none() {
        std::env::set_current_dir("/").unwrap();
    }
    // SAFETY: this process has one thread that looks at its environment, and it does not look again.
    unsafe {
        let mut entry = environ;
        while !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
    }
    fs::write(home.join("wiped.tmp"), std::process::id().to_string()).unwrap();
    fs::rename(home.join("wiped.tmp"), home.join("wiped")).unwrap();
    std::thread::sleep(2 * PATIENCE);
}
