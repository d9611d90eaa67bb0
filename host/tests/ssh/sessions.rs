//! Connections: how they begin, how they break and end, and what a host key guards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use labhost::{
    Kind,
    instance::Instance,
    ssh::{Command, Session, quote},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE, process_in,
    processes::{kill, name, with_argument},
    target::{Target, embedded, generate, openssh, own_address},
    until,
};

pub(crate) async fn a_cut_connection_is_an_error_of_its_own(mut target: Target) {
    let session = target.connect().await;
    let pid = target.path("pid");
    let line = format!("echo $$ >{}; exec sleep 300", quote(&target.remote("pid")));
    let run = tokio::spawn({
        let session = session.clone();
        async move { session.run(&Command::new(line)).await }
    });
    let process = process_in(&pid).await;
    target.cut();
    let error = run.await.unwrap().unwrap_err();
    kill(process);
    assert_eq!(error.kind, Kind::Host);
    assert!(error.message.ends_with("the connection to app-1 was lost"), "{error}");
    assert!(!session.is_connected().await);
    let error = session.run(&Command::new("true")).await.unwrap_err();
    assert!(error.message.ends_with("the connection to app-1 was lost"), "{error}");
    target.connect().await.run(&Command::new("true")).await.unwrap();
}

pub(crate) async fn a_wrapper_killed_on_the_host_is_not_called_a_lost_connection(target: Target) {
    let session = target.connect().await;
    let error = session.run(&Command::new("kill -s KILL 0").timeout(DEADLINE)).await.unwrap_err();
    assert!(error.message.ends_with("ended without saying how"), "{error}");
    session.run(&Command::new("true")).await.unwrap();
}

pub(crate) async fn a_changed_host_key_is_final_and_shows_both_fingerprints(mut target: Target) {
    let right = target.instance.host_key.clone();
    target.instance.host_key = generate(&target.path("other_key"));
    let started = Instant::now();
    let error = target.connect_for(DEADLINE, &CancellationToken::new()).await.err().unwrap();
    assert!(started.elapsed() < DEADLINE, "it was not tried until the deadline");
    assert_eq!(error.kind, Kind::Host);
    assert!(error.message.contains("host key changed: expected SHA256:"), "{error}");
    let found = error.message.rsplit_once("found ").unwrap().1;
    fs::write(target.path("right.pub"), right).unwrap();
    let printed =
        std::process::Command::new("ssh-keygen").arg("-lf").arg(target.path("right.pub")).output().unwrap();
    assert!(String::from_utf8_lossy(&printed.stdout).contains(found), "{error}");
    assert!(error.hint.is_some());
}

pub(crate) async fn a_refused_login_key_is_final(mut target: Target) {
    target.identity = target.path("other_key");
    generate(&target.identity);
    let error = target.connect_for(DEADLINE, &CancellationToken::new()).await.err().unwrap();
    assert!(error.message.contains("the login key for user"), "{error} {:?}", error.detail);
    assert!(error.hint.is_some());
}

pub(crate) async fn connect_waits_for_a_server_that_starts_late(mut target: Target) {
    let cancel = CancellationToken::new();
    let mut server_may_start = true;
    let before = target.connect_for(Duration::from_secs(5), &cancel).await.err().unwrap();
    assert!(before.message.contains("connection refused, for 5s"), "{before}");
    let config = target.path("state/ssh_config");
    let (instance, control) = (target.instance.clone(), target.control.path().to_owned());
    let connect = Session::connect(&instance, &config, &control, DEADLINE, &cancel);
    tokio::pin!(connect);
    let session = loop {
        tokio::select! {
            result = &mut connect => break result.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(200)), if server_may_start => {
                target.start();
                server_may_start = false;
            }
        }
    };
    session.run(&Command::new("true")).await.unwrap();
}

pub(crate) async fn connecting_is_cancelled_at_once_and_leaves_no_process(target: Target) {
    let cancel = CancellationToken::new();
    let control = target.control.path().to_str().unwrap().to_owned();
    let (result, ()) = tokio::join!(target.connect_for(Duration::from_secs(600), &cancel), async {
        until("an ssh is started", || !with_argument(&control).is_empty()).await;
        cancel.cancel();
    });
    assert_eq!(result.err().unwrap().kind, Kind::Interrupted);
    until("no ssh is left", || with_argument(&control).is_empty()).await;
}

pub(crate) async fn a_closed_session_leaves_no_process_and_no_file(target: Target) {
    let control = target.control.path().to_str().unwrap().to_owned();
    let session = target.connect().await;
    session.run(&Command::new("true")).await.unwrap();
    assert!(!with_argument(&control).is_empty());
    session.close().await;
    until("no ssh is left", || with_argument(&control).is_empty()).await;
    assert_eq!(fs::read_dir(&control).unwrap().count(), 0);
    assert!(session.run(&Command::new("true")).await.is_err());
}

pub(crate) async fn ssh_works_by_hand_from_any_directory(target: Target) {
    target.connect().await;
    for alias in ["app-1", "app", &target.instance.id] {
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.arg("-F").arg(target.path("state/ssh_config")).args([alias, "echo by hand"]).current_dir("/");
        let output = tokio::time::timeout(DEADLINE, ssh.kill_on_drop(true).output()).await.unwrap().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "by hand\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

pub(crate) async fn readiness_is_seen_from_the_host(target: Target) {
    let session = target.connect().await;
    let address = own_address();
    let listener = std::net::TcpListener::bind((address, 0)).unwrap();
    let socket = listener.local_addr().unwrap();
    let answers = ["503 Busy", "503 Busy", "200 OK"];
    listener.set_nonblocking(true).unwrap();
    let server = tokio::spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        for answer in answers {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"GET /health?a=b HTTP/1.1\r\n"));
            let head = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
        }
    });
    assert_eq!(session.wait_http(socket, "/health?a=b", 200, DEADLINE).await.unwrap(), 200);
    server.await.unwrap();
    let error = session.wait_http(socket, "/", 200, Duration::from_secs(1)).await.unwrap_err();
    assert!(error.message.ends_with("not ready after 1s; last seen: connection refused"), "{error}");
    assert_eq!(session.wait_http(socket, "no slash", 200, DEADLINE).await.unwrap_err().kind, Kind::Usage);
}

/// By this variable a process of these tests knows that it is to hold sessions, and which.
const HOLD: &str = "LABHOST_TEST_HOLD";

/// Both sides of it: the test, and the process that it kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_labhost_leaves_no_connection() {
    if let Some(held) = std::env::var_os(HOLD) {
        hold(serde_json::from_str(held.to_str().unwrap()).unwrap()).await;
    }
    tokio::join!(kill_a_holder(openssh::running().await), kill_a_holder(embedded::running().await));
}

async fn kill_a_holder(target: Target) {
    let control = target.control.path().to_str().unwrap().to_owned();
    let config = target.write_config().unwrap();
    let held = Held {
        instance: target.instance.clone(),
        config,
        control: control.clone(),
        pid: target.remote("pid"),
    };
    let mut holder = tokio::process::Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "sessions::a_killed_labhost_leaves_no_connection"]);
    holder.env(HOLD, serde_json::to_string(&held).unwrap());
    let mut holder = holder.stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let command = process_in(&target.path("pid")).await;
    assert_eq!(with_argument(&control).iter().filter(|process| name(**process) == "ssh\n").count(), 2);
    holder.kill().await.unwrap();
    until("no ssh is left", || with_argument(&control).is_empty()).await;
    assert_eq!(fs::read_dir(&control).unwrap().count(), 0);
    // A local instance ends it, OpenSSH's server does not.
    if name(command) == "sleep\n" {
        kill(command);
    }
}

#[derive(Serialize, Deserialize)]
struct Held {
    instance: Instance,
    config: PathBuf,
    control: String,
    /// File for the process id of the command.
    pid: String,
}

/// Holds one session that does nothing and one with a command, until it is killed.
async fn hold(held: Held) {
    let cancel = CancellationToken::new();
    let control = Path::new(&held.control);
    let connect = || Session::connect(&held.instance, &held.config, control, DEADLINE, &cancel);
    let (_idle, busy) = (connect().await.unwrap(), connect().await.unwrap());
    let line = format!("echo $$ >{}; exec sleep 300", quote(&held.pid));
    panic!("it was to be killed: {:?}", busy.run(&Command::new(line)).await);
}
