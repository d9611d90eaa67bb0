//! The embedded SSH server, met with OpenSSH's client.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Stdio};

use labhost::instance::{Instance, State};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::lab::{Lab, is_alive, until, within};

#[tokio::test]
async fn a_command_runs_in_its_instance() {
    let (lab, instance) = Lab::with_instance().await;
    assert_eq!(instance.state, State::Running);
    let output = lab.run(&instance, "echo out; echo err >&2; exit 7").await;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let line = "echo $INSTANCE_ID $CLUSTER_NAME $LABHOST_EMULATE; pwd; echo $HOME; umask";
    let home = lab.home(&instance);
    let expected = format!("{} cluster1 t2.micro\n{1}\n{1}\n0077\n", instance.id, home.display());
    assert_eq!(lab.ok(&instance, line).await, expected);
    let environment = lab.ok(&instance, "env").await;
    assert!(!environment.contains("CARGO"), "{environment}");
    assert_eq!(lab.run(&instance, "kill -TERM $$").await.status.code(), Some(128 + 15));
}

#[tokio::test]
async fn input_arrives_whole_and_its_end_ends_only_the_input() {
    let (lab, instance) = Lab::with_instance().await;
    let scramble = |index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8;
    let bytes: Vec<u8> = (0..20_000_000).map(scramble).collect();
    let output = lab.run_with_input(&instance, "cat > file && wc -c < file && cat file", &bytes).await;
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(output.stdout.starts_with(b"20000000\n"));
    assert!(output.stdout[9..] == bytes);
    // Both directions at once: the command waits to be read from while its input piles up.
    let output = lab.run_with_input(&instance, "sleep 0.2; cat", &bytes).await;
    assert!(output.stdout == bytes);
    let output = lab.run_with_input(&instance, "read line; echo got $line; cat; echo end", b"one\n").await;
    assert_eq!(output.stdout, b"got one\nend\n");
    assert_eq!(lab.run_with_input(&instance, "exit 4", &bytes).await.status.code(), Some(4));
}

#[tokio::test]
async fn eight_commands_share_a_connection_with_one_that_does_not_read() {
    let (lab, instance) = Lab::with_instance().await;
    let control = format!("-oControlPath={}", lab.file("control").display());
    let options = [control.as_str(), "-oControlMaster=no"];
    let _master = lab.ssh(&instance, &[&control, "-oControlMaster=yes", "-N"], "").spawn().unwrap();
    until("the connection is there", async || lab.file("control").exists()).await;
    let mut deaf = lab.ssh(&instance, &options, "sleep 1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = deaf.stdin.take().unwrap();
    within(input.write_all(&vec![b'x'; 10_000_000])).await.unwrap();
    let line =
        |number| format!("touch ready-{number}; while [ ! -e go ]; do sleep 0.01; done; echo {number}");
    let running: Vec<_> =
        (0..8).map(|number| lab.ssh(&instance, &options, &line(number)).spawn().unwrap()).collect();
    let home = lab.home(&instance);
    let is_ready = |number| home.join(format!("ready-{number}")).exists();
    until("all eight run at once", async || (0..8).all(is_ready)).await;
    fs::write(home.join("go"), "").unwrap();
    for (number, child) in running.into_iter().enumerate() {
        let output = within(child.wait_with_output()).await.unwrap();
        assert_eq!(output.stdout, format!("{number}\n").as_bytes());
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let (lab, instance) = Lab::with_instance().await;
    lab.make_key("other");
    let other = lab.file("other").display().to_string();
    let output = within(lab.ssh(&instance, &["-i", &other], "true").output()).await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied (publickey)"), "{output:?}");
    let root = Instance { user: "root".to_owned(), ..instance.clone() };
    assert_eq!(lab.run(&root, "true").await.status.code(), Some(255));
    let wrong = Instance {
        host_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPgmNc8kBk4mxSxZNAQvDs2OVYxjtyJgm8hXUzZRB5pb"
            .to_owned(),
        ..instance.clone()
    };
    let output = lab.run(&wrong, "true").await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("Host key verification failed"), "{output:?}");
}

#[tokio::test]
async fn forwarding_is_refused() {
    let (lab, instance) = Lab::with_instance().await;
    let options = ["-oExitOnForwardFailure=yes", "-R", "127.0.0.1:0:127.0.0.1:9", "-N"];
    let output = within(lab.ssh(&instance, &options, "").output()).await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("forwarding failed"), "{output:?}");
    let address = format!("{}:2222", instance.public_ip.unwrap());
    let output = within(lab.ssh(&instance, &["-W", &address], "").output()).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("administratively prohibited"), "{output:?}");
}

#[tokio::test]
async fn what_others_must_not_read_is_private() {
    let (lab, instance) = Lab::with_instance().await;
    let socket = PathBuf::from(lab.ok(&instance, "echo $LABHOST_AGENT").await.trim());
    let home = lab.state().join("local").join(&instance.id);
    let runtime = socket.parent().unwrap().to_owned();
    for (path, mode) in [
        (runtime, 0o700),
        (socket, 0o600),
        (lab.state().join("local"), 0o700),
        (home.clone(), 0o700),
        (home.join("host_key"), 0o600),
        (home.join("root"), 0o700),
    ] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[tokio::test]
async fn a_terminal_is_one() {
    let (lab, instance) = Lab::with_instance().await;
    let command = lab.ssh(&instance, &["-tt"], "tty && stty size && echo $TERM").output();
    let output = within(command).await.unwrap();
    assert!(output.stdout.starts_with(b"/dev/pts/") && output.status.success(), "{output:?}");
    let mut shell = lab.ssh(&instance, &["-tt"], "").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    stdin.write_all(b"echo $((6*7)); exit 3\n").await.unwrap();
    let output = within(shell.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("42\r\n"), "{output:?}");
}

#[tokio::test]
async fn a_command_ends_when_its_client_goes() {
    let (lab, instance) = Lab::with_instance().await;
    let file = lab.home(&instance).join("pid");
    let line = "trap '' HUP; echo $$ > pid.tmp; mv pid.tmp pid; sleep 1000; sleep 1000";
    let mut client = lab.ssh(&instance, &[], line).spawn().unwrap();
    until("the command runs", async || file.exists()).await;
    let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    assert!(is_alive(pid));
    client.kill().await.unwrap();
    until("the command ends", async || !is_alive(pid)).await;
}

#[tokio::test]
async fn with_ssh_stopped_nothing_gets_in() {
    let (lab, instance) = Lab::with_instance().await;
    let mut open = lab.ssh(&instance, &[], "echo in; cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(open.stdout.take().unwrap()).lines();
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "in");
    lab.local.set_ssh(false).await.unwrap();
    assert_eq!(within(open.wait()).await.unwrap().code(), Some(255));
    let output = lab.run(&instance, "true").await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("Connection refused"), "{output:?}");
    lab.local.set_ssh(true).await.unwrap();
    lab.ok(&instance, "true").await;
}
