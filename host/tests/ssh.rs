//! One suite for every SSH server that labhost meets. Each test is a function over a [`Target`]; the list at the
//! end makes a module of tests for each server.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use labhost::{
    Kind,
    ssh::{Command, Stream, quote},
};
use tokio_util::sync::CancellationToken;

mod sshd;
use sshd::{DEADLINE, Target, alive, generate, kill, with_argument};

/// Waits until something is so; the deadline only bounds a failure.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < end, "never so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a file that a command on the host writes, with a process id in it.
async fn process_in(path: &Path) -> u32 {
    let read = || fs::read_to_string(path).ok()?.trim().parse().ok();
    until(&format!("a process id in {}", path.display()), || read().is_some()).await;
    read().unwrap()
}

async fn statuses_come_back_as_they_are(target: Target) {
    let session = target.connect().await;
    for code in [0, 1, 3, 126, 127, 128, 254, 255] {
        let output = session.run(&Command::new(format!("exit {code}")).unchecked()).await.unwrap();
        assert_eq!(output.code, code);
    }
    let missing = session.run(&Command::new("no-such-program-here").unchecked()).await.unwrap();
    assert_eq!(missing.code, 127);
    let syntax = session.run(&Command::new("if then").unchecked()).await.unwrap();
    assert_eq!(syntax.code, 2);
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11)] {
        let output = session.run(&Command::new(format!("kill -s {signal} $$")).unchecked()).await.unwrap();
        assert_eq!(output.code, 128 + number, "{signal}");
    }
}

async fn a_failing_check_names_command_host_and_last_words(target: Target) {
    let session = target.connect().await;
    let error =
        session.run(&Command::new("echo first >&2; echo 'disk on fire' >&2; exit 3")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Host);
    assert_eq!(error.message, "run `echo first >&2; echo 'disk on fire' >&2; exit 3` on app-1: exit 3");
    assert_eq!(error.detail.as_deref(), Some("first\ndisk on fire"));
    let error = session.run(&Command::new("kill -s KILL $$")).await.unwrap_err();
    assert!(error.message.ends_with("exit 137 (signal 9)"), "{error}");
}

async fn the_streams_stay_apart_and_whole(target: Target) {
    let session = target.connect().await;
    let output = session.run(&Command::new("printf 'out ü\\n\\0x'; printf 'err 漢' >&2")).await.unwrap();
    assert_eq!(output.stdout, "out ü\n\0x".as_bytes());
    assert_eq!(output.stderr, "err 漢".as_bytes());
}

async fn a_command_without_input_sees_its_end(target: Target) {
    let session = target.connect().await;
    let output = session.run(&Command::new("cat; echo end").timeout(DEADLINE)).await.unwrap();
    assert_eq!(output.text(), "end\n");
}

async fn input_of_any_size_and_content_arrives(target: Target) {
    let session = target.connect().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let output = session.run(&Command::new("cat").stdin(bytes.clone()).timeout(DEADLINE)).await.unwrap();
    assert!(output.stdout == bytes, "{} bytes came back", output.stdout.len());
    let ignored =
        session.run(&Command::new("exit 4").stdin(bytes).timeout(DEADLINE).unchecked()).await.unwrap();
    assert_eq!(ignored.code, 4, "a command need not read its input");
}

async fn output_beyond_the_limit_is_an_error_and_ends_the_command(target: Target) {
    let session = target.connect().await;
    let file = target.path("pid");
    let line = format!("echo $$ >{}; exec cat /dev/zero", quote(&target.remote("pid")));
    let error = session.run(&Command::new(line).timeout(DEADLINE)).await.unwrap_err();
    assert!(error.message.contains("more than 16 MiB on stdout"), "{error}");
    let process = process_in(&file).await;
    assert!(!alive(process));
}

async fn hostile_values_are_only_values(target: Target) {
    let session = target.connect().await;
    for value in ["$(touch pwned)", "'; touch pwned; '", "a\nb", "`id`", "\"$HOME\"", "\\", "!x", "-n", ""] {
        let mut command =
            Command::new(format!("printf '%s|%s|%s' {} \"$V\" \"$(basename \"$PWD\")\"", quote(value)));
        command.env.insert("V".into(), value.into());
        let name = format!("dir {}", value.replace('/', "_"));
        fs::create_dir(target.path(&name)).unwrap();
        command.cwd = Some(target.remote(&name));
        let output = session.run(&command).await.unwrap();
        assert_eq!(output.text(), format!("{value}|{value}|{}", name.trim_end_matches('\n')));
        assert!(!target.path(&name).join("pwned").exists());
    }
}

async fn a_missing_directory_is_named(target: Target) {
    let session = target.connect().await;
    let mut command = Command::new("echo never");
    command.cwd = Some("/no/such/directory".into());
    let error = session.run(&command).await.unwrap_err();
    assert_eq!(error.message, "run `echo never` on app-1: cannot enter the directory `/no/such/directory`");
}

async fn a_long_command_line_arrives(target: Target) {
    let session = target.connect().await;
    let output =
        session.run(&Command::new(format!("printf %s {} | wc -c", "x".repeat(100_000)))).await.unwrap();
    assert_eq!(output.text().trim(), "100000");
}

/// A command of three processes, the last of which ignores SIGTERM; their ids are in the files a, b and c.
fn stubborn(target: &Target) -> Command {
    let file = |name: &str| quote(&target.remote(name));
    Command::new(format!(
        "echo $$ >{}; sh -c 'echo $$ >{}; exec sleep 300' & sh -c 'trap \"\" TERM; echo $$ >{}; sleep 300; sleep 300' & wait",
        file("a"),
        file("b"),
        file("c")
    ))
}

async fn stubborn_processes(target: &Target) -> Vec<u32> {
    let mut all = Vec::new();
    for name in ["a", "b", "c"] {
        all.push(process_in(&target.path(name)).await);
    }
    all
}

async fn at_its_timeout_the_whole_group_is_killed(target: Target) {
    let session = target.connect().await;
    let command = stubborn(&target).timeout(Duration::from_secs(1));
    let error = session.run(&command).await.unwrap_err();
    assert_eq!(error.kind, Kind::Host);
    assert!(error.message.ends_with("still running after 1s"), "{error}");
    for process in stubborn_processes(&target).await {
        assert!(!alive(process), "{process} is still there");
    }
    session.run(&Command::new("true")).await.unwrap();
}

async fn cancelled_the_whole_group_is_killed(target: Target) {
    let cancel = CancellationToken::new();
    let session = target.connect_for(DEADLINE, &cancel).await.unwrap();
    let command = stubborn(&target);
    let (result, processes) = tokio::join!(session.run(&command), async {
        let processes = stubborn_processes(&target).await;
        assert!(processes.iter().all(|process| alive(*process)));
        cancel.cancel();
        processes
    });
    assert_eq!(result.unwrap_err().kind, Kind::Interrupted);
    for process in processes {
        assert!(!alive(process), "{process} is still there");
    }
}

async fn nobody_waiting_any_more_the_whole_group_is_killed(target: Target) {
    let session = target.connect().await;
    let command = stubborn(&target);
    let processes = tokio::select! {
        result = session.run(&command) => panic!("ended by itself: {result:?}"),
        processes = stubborn_processes(&target) => processes,
    };
    session.close().await;
    for process in processes {
        assert!(!alive(process), "{process} is still there");
    }
}

async fn given_up_while_it_starts_a_command_is_killed_too(target: Target) {
    let session = target.connect().await;
    for tenths in 0..20u64 {
        let command = Command::new("sleep 299.25");
        let wait = Duration::from_micros(tenths * 200);
        let _ = tokio::time::timeout(wait, session.run(&command)).await;
    }
    session.close().await;
    let own = with_argument("sleep 299.25");
    assert!(own.is_empty(), "{own:?} are still there");
}

async fn a_background_process_does_not_hold_its_command(target: Target) {
    let session = target.connect().await;
    let file = quote(&target.remote("pid"));
    let line = format!("sleep 300 & echo $! >{file}; echo started");
    let output = session.run(&Command::new(line).timeout(DEADLINE)).await.unwrap();
    assert_eq!(output.text(), "started\n");
    let process = process_in(&target.path("pid")).await;
    assert!(alive(process), "what a command leaves in the background goes on");
    kill(process);
}

async fn eight_run_at_once_and_more_wait(target: Target) {
    let session = target.connect().await;
    let running = target.path("running");
    fs::create_dir(&running).unwrap();
    let peak = Arc::new(AtomicUsize::new(0));
    let line = format!(
        "f={}/$$; : >$f; while ! [ -e {} ]; do sleep 0.01; done; rm $f",
        quote(&target.remote("running")),
        quote(&target.remote("go"))
    );
    let commands: Vec<_> = (0..20)
        .map(|_| {
            let (session, command) = (session.clone(), Command::new(line.clone()).timeout(DEADLINE));
            tokio::spawn(async move { session.run(&command).await })
        })
        .collect();
    let count = || fs::read_dir(&running).unwrap().count();
    until("eight at once", || peak.fetch_max(count(), Ordering::Relaxed) >= 8).await;
    fs::write(target.path("go"), "").unwrap();
    for command in commands {
        command.await.unwrap().unwrap();
    }
    assert_eq!(peak.load(Ordering::Relaxed), 8);
}

async fn lines_come_while_the_command_runs(target: Target) {
    let session = target.connect().await;
    let seen = Mutex::new(Vec::new());
    let go = target.path("go");
    let line = format!(
        "echo one; echo two >&2; while ! [ -e {} ]; do sleep 0.01; done; printf three; exit 3",
        quote(&target.remote("go"))
    );
    let mut on_line = |stream: Stream, line: &str| seen.lock().unwrap().push((stream, line.to_owned()));
    let command = Command::new(line).timeout(DEADLINE);
    let (result, ()) = tokio::join!(session.run_streaming(&command, &mut on_line), async {
        until("two lines", || seen.lock().unwrap().len() == 2).await;
        fs::write(go, "").unwrap();
    });
    let error = result.unwrap_err();
    assert!(error.message.ends_with("exit 3"), "{error}");
    assert_eq!(error.detail.as_deref(), Some("two"));
    let mut lines = seen.into_inner().unwrap();
    assert_eq!(lines.pop(), Some((Stream::Stdout, "three".to_owned())));
    assert!(lines.contains(&(Stream::Stderr, "two".to_owned())));
}

async fn an_upload_sends_only_what_is_not_there(target: Target) {
    let session = target.connect().await;
    let local = target.path("local");
    let remote = target.remote("new directory/it's here");
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&local, &content).unwrap();
    let first = session.upload(&local, &remote, 0o755).await.unwrap();
    assert!(first.changed);
    assert_eq!(first.bytes, 2_000_000);
    assert!(fs::read(&remote).unwrap() == content);
    assert_eq!(fs::metadata(&remote).unwrap().permissions().mode() & 0o7777, 0o755);
    let second = session.upload(&local, &remote, 0o700).await.unwrap();
    assert_eq!((second.changed, &second.sha256), (false, &first.sha256));
    assert_eq!(
        fs::metadata(&remote).unwrap().permissions().mode() & 0o7777,
        0o700,
        "the mode is set all the same"
    );
    fs::write(&local, "other").unwrap();
    assert!(session.upload(&local, &remote, 0o755).await.unwrap().changed);
    assert_eq!(fs::read_to_string(&remote).unwrap(), "other");
    assert_eq!(fs::read_dir(target.path("new directory")).unwrap().count(), 1, "no temporary file is left");
}

async fn a_text_is_written_and_a_file_downloaded(target: Target) {
    let session = target.connect().await;
    let remote = target.remote("-n");
    assert!(session.write(&remote, "ünï\n".as_bytes(), 0o600).await.unwrap().changed);
    assert!(!session.write(&remote, "ünï\n".as_bytes(), 0o600).await.unwrap().changed);
    let local = target.path("copy");
    assert_eq!(session.download(&remote, &local).await.unwrap(), 6);
    assert_eq!(fs::read_to_string(&local).unwrap(), "ünï\n");
    let error = session.download(&target.remote("absent"), &local).await.unwrap_err();
    assert!(error.message.ends_with("does not exist there"), "{error}");
    assert_eq!(fs::read_to_string(&local).unwrap(), "ünï\n", "a failed download leaves the old file");
    let error = session.download(&target.remote("programs"), &local).await.unwrap_err();
    assert!(error.message.ends_with("is a directory there"), "{error}");
}

async fn what_cannot_be_uploaded_is_said_plainly(target: Target) {
    let session = target.connect().await;
    let local = target.path("local");
    fs::write(&local, "x").unwrap();
    let absent = target.path("absent");
    let error = session.upload(&absent, &target.remote("x"), 0o644).await.unwrap_err();
    assert_eq!(error.message, format!("upload absent to app-1: {}: no such file", absent.display()));
    let error = session.upload(target.directory.path(), &target.remote("x"), 0o644).await.unwrap_err();
    assert!(error.message.contains("it is a directory"), "{error}");
    let error = session.upload(&local, &target.remote("programs"), 0o644).await.unwrap_err();
    assert!(error.message.ends_with("is a directory there"), "{error}");
    let error = session.upload(&local, &target.remote("local/x"), 0o644).await.unwrap_err();
    assert!(error.message.ends_with("not a directory"), "{error} {:?}", error.detail);
    let error = session.upload(&local, "/proc/labhost-test", 0o644).await.unwrap_err();
    assert!(error.detail.is_some(), "{error}");
    for name in ["", "dir/"] {
        assert_eq!(session.upload(&local, name, 0o644).await.unwrap_err().kind, Kind::Recipe);
    }
}

/// The host's `cat` is replaced by one that writes a part and then meets a full disk, as the real one says it.
async fn a_full_disk_leaves_the_old_file_and_nothing_else(target: Target) {
    let session = target.connect().await;
    let cat = target.programs().join("cat");
    fs::write(&cat, "#!/bin/sh\nhead -c 100000\nexec /bin/cat >/dev/full\n").unwrap();
    fs::set_permissions(&cat, fs::Permissions::from_mode(0o755)).unwrap();
    let remote = target.remote("there/program");
    fs::create_dir(target.path("there")).unwrap();
    fs::write(&remote, "old").unwrap();
    let local = target.path("worker");
    fs::write(&local, vec![7; 1_000_000]).unwrap();
    let error = session.upload(&local, &remote, 0o755).await.unwrap_err();
    assert_eq!(error.message, "upload worker to app-1: no space left on device");
    assert_eq!(fs::read_to_string(&remote).unwrap(), "old");
    assert_eq!(fs::read_dir(target.path("there")).unwrap().count(), 1, "no temporary file is left");
}

/// The host's `cat` takes a part and waits, so that the upload is surely in its middle.
async fn stalled_upload(target: &Target) -> (std::path::PathBuf, String) {
    let cat = target.programs().join("cat");
    let pid = quote(&target.remote("pid"));
    fs::write(&cat, format!("#!/bin/sh\nhead -c 100000\necho $$ >{pid}\nwhile ! [ -e {} ]; do sleep 0.01; done\nexec /bin/cat\n",
        quote(&target.remote("go")))).unwrap();
    fs::set_permissions(&cat, fs::Permissions::from_mode(0o755)).unwrap();
    let remote = target.remote("there/program");
    fs::create_dir(target.path("there")).unwrap();
    fs::write(&remote, "old").unwrap();
    let local = target.path("worker");
    fs::write(&local, vec![7; 1_000_000]).unwrap();
    (local, remote)
}

async fn only_the_old_file_is_left(target: &Target, remote: &str) {
    let directory = target.path("there");
    until("the temporary file is gone", || fs::read_dir(&directory).unwrap().count() == 1).await;
    assert_eq!(fs::read_to_string(remote).unwrap(), "old");
}

async fn an_upload_given_up_in_the_middle_leaves_the_old_file(target: Target) {
    let session = target.connect().await;
    let (local, remote) = stalled_upload(&target).await;
    let pid = target.path("pid");
    let process = tokio::select! {
        result = session.upload(&local, &remote, 0o755) => panic!("ended by itself: {result:?}"),
        process = process_in(&pid) => process,
    };
    session.close().await;
    assert!(!alive(process));
    only_the_old_file_is_left(&target, &remote).await;
}

async fn an_upload_killed_on_the_host_leaves_the_old_file(target: Target) {
    let session = target.connect().await;
    let (local, remote) = stalled_upload(&target).await;
    let pid = target.path("pid");
    let (result, ()) = tokio::join!(session.upload(&local, &remote, 0o755), async {
        kill(process_in(&pid).await);
    });
    assert!(result.is_err(), "{result:?}");
    only_the_old_file_is_left(&target, &remote).await;
}

async fn an_upload_cut_in_the_middle_leaves_the_old_file(mut target: Target) {
    let session = target.connect().await;
    let (local, remote) = stalled_upload(&target).await;
    let pid = target.path("pid");
    let upload = tokio::spawn({
        let (session, remote) = (session.clone(), remote.clone());
        async move { session.upload(&local, &remote, 0o755).await }
    });
    process_in(&pid).await;
    target.cut();
    let error = upload.await.unwrap().unwrap_err();
    assert!(error.message.contains("the connection to app-1 was lost"), "{error}");
    fs::write(target.path("go"), "").unwrap();
    only_the_old_file_is_left(&target, &remote).await;
}

async fn a_cut_connection_is_an_error_of_its_own(mut target: Target) {
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

async fn a_wrapper_killed_on_the_host_is_not_called_a_lost_connection(target: Target) {
    let session = target.connect().await;
    let error = session.run(&Command::new("kill -s KILL 0").timeout(DEADLINE)).await.unwrap_err();
    assert!(error.message.ends_with("ended without saying how"), "{error}");
    session.run(&Command::new("true")).await.unwrap();
}

async fn a_changed_host_key_is_final_and_shows_both_fingerprints(mut target: Target) {
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

async fn a_refused_login_key_is_final(mut target: Target) {
    target.identity = target.path("other_key");
    generate(&target.identity);
    let error = target.connect_for(DEADLINE, &CancellationToken::new()).await.err().unwrap();
    assert!(error.message.contains("the login key for user"), "{error} {:?}", error.detail);
    assert!(error.hint.is_some());
}

async fn connect_waits_for_a_server_that_starts_late(mut target: Target) {
    let cancel = CancellationToken::new();
    let mut server_may_start = true;
    let before = target.connect_for(Duration::from_millis(300), &cancel).await.err().unwrap();
    assert!(before.message.contains("connection refused, for 300ms"), "{before}");
    let config = target.path("state/ssh_config");
    let (instance, control) = (target.instance.clone(), target.control.path().to_owned());
    let connect = labhost::ssh::Session::connect(&instance, &config, &control, DEADLINE, &cancel);
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

async fn connecting_is_cancelled_at_once_and_leaves_no_process(target: Target) {
    let cancel = CancellationToken::new();
    let control = target.control.path().to_str().unwrap().to_owned();
    let (result, ()) = tokio::join!(target.connect_for(Duration::from_secs(600), &cancel), async {
        until("an ssh is started", || !with_argument(&control).is_empty()).await;
        cancel.cancel();
    });
    assert_eq!(result.err().unwrap().kind, Kind::Interrupted);
    until("no ssh is left", || with_argument(&control).is_empty()).await;
}

async fn a_closed_session_leaves_no_process_and_no_file(target: Target) {
    let control = target.control.path().to_str().unwrap().to_owned();
    let session = target.connect().await;
    session.run(&Command::new("true")).await.unwrap();
    assert_eq!(with_argument(&control).len(), 1);
    session.close().await;
    until("no ssh is left", || with_argument(&control).is_empty()).await;
    assert_eq!(fs::read_dir(&control).unwrap().count(), 0);
    assert!(session.run(&Command::new("true")).await.is_err());
}

async fn ssh_works_by_hand_from_any_directory(target: Target) {
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

async fn readiness_is_seen_from_the_host(target: Target) {
    let session = target.connect().await;
    let address = sshd::own_address();
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

/// A module of tests for each kind of server; a line of the lists is a function above.
macro_rules! suite {
    (started: $($started:ident)*; stopped: $($stopped:ident)*;) => {
        mod openssh {
            use super::sshd::Target;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $started() {
                super::$started(Target::openssh()).await;
            })*
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $stopped() {
                super::$stopped(Target::openssh_stopped()).await;
            })*
        }
        // The embedded server of provider::local becomes a second module here, with constructors of its own.
    };
}

suite! {
    started:
        statuses_come_back_as_they_are
        a_failing_check_names_command_host_and_last_words
        the_streams_stay_apart_and_whole
        a_command_without_input_sees_its_end
        input_of_any_size_and_content_arrives
        output_beyond_the_limit_is_an_error_and_ends_the_command
        hostile_values_are_only_values
        a_missing_directory_is_named
        a_long_command_line_arrives
        at_its_timeout_the_whole_group_is_killed
        cancelled_the_whole_group_is_killed
        nobody_waiting_any_more_the_whole_group_is_killed
        given_up_while_it_starts_a_command_is_killed_too
        a_background_process_does_not_hold_its_command
        eight_run_at_once_and_more_wait
        lines_come_while_the_command_runs
        an_upload_sends_only_what_is_not_there
        a_text_is_written_and_a_file_downloaded
        what_cannot_be_uploaded_is_said_plainly
        a_full_disk_leaves_the_old_file_and_nothing_else
        an_upload_given_up_in_the_middle_leaves_the_old_file
        an_upload_killed_on_the_host_leaves_the_old_file
        an_upload_cut_in_the_middle_leaves_the_old_file
        a_cut_connection_is_an_error_of_its_own
        a_wrapper_killed_on_the_host_is_not_called_a_lost_connection
        a_changed_host_key_is_final_and_shows_both_fingerprints
        a_refused_login_key_is_final
        a_closed_session_leaves_no_process_and_no_file
        ssh_works_by_hand_from_any_directory
        readiness_is_seen_from_the_host;
    stopped:
        connect_waits_for_a_server_that_starts_late
        connecting_is_cancelled_at_once_and_leaves_no_process;
}
