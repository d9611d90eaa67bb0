//! Commands: what comes back, what goes in, and that they end when nobody waits for them any more.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use labhost::{
    Kind,
    ssh::{Command, Stream, quote},
};
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE, process_in,
    processes::{alive, kill, with_argument},
    target::{Target, own_address},
    until,
};

pub(crate) async fn statuses_come_back_as_they_are(target: Target) {
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

pub(crate) async fn a_failing_check_names_command_host_and_last_words(target: Target) {
    let session = target.connect().await;
    let error =
        session.run(&Command::new("echo first >&2; echo 'disk on fire' >&2; exit 3")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Host);
    assert_eq!(error.message, "run `echo first >&2; echo 'disk on fire' >&2; exit 3` on app-1: exit 3");
    assert_eq!(error.detail.as_deref(), Some("first\ndisk on fire"));
    let error = session.run(&Command::new("kill -s KILL $$")).await.unwrap_err();
    assert!(error.message.ends_with("exit 137 (signal 9)"), "{error}");
}

pub(crate) async fn the_streams_stay_apart_and_whole(target: Target) {
    let session = target.connect().await;
    let output = session.run(&Command::new("printf 'out ü\\n\\0x'; printf 'err 漢' >&2")).await.unwrap();
    assert_eq!(output.stdout, "out ü\n\0x".as_bytes());
    assert_eq!(output.stderr, "err 漢".as_bytes());
}

pub(crate) async fn a_command_without_input_sees_its_end(target: Target) {
    let session = target.connect().await;
    let output = session.run(&Command::new("cat; echo end").timeout(DEADLINE)).await.unwrap();
    assert_eq!(output.text(), "end\n");
}

pub(crate) async fn input_of_any_size_and_content_arrives(target: Target) {
    let session = target.connect().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let output = session.run(&Command::new("cat").stdin(bytes.clone()).timeout(DEADLINE)).await.unwrap();
    assert!(output.stdout == bytes, "{} bytes came back", output.stdout.len());
    let ignored =
        session.run(&Command::new("exit 4").stdin(bytes).timeout(DEADLINE).unchecked()).await.unwrap();
    assert_eq!(ignored.code, 4, "a command need not read its input");
}

pub(crate) async fn output_beyond_the_limit_is_an_error_and_ends_the_command(target: Target) {
    let session = target.connect().await;
    let file = target.path("pid");
    let line = format!("echo $$ >{}; exec cat /dev/zero", quote(&target.remote("pid")));
    let error = session.run(&Command::new(line).timeout(DEADLINE)).await.unwrap_err();
    assert!(error.message.contains("more than 16 MiB on stdout"), "{error}");
    let process = process_in(&file).await;
    assert!(!alive(process));
}

pub(crate) async fn hostile_values_are_only_values(target: Target) {
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

pub(crate) async fn a_missing_directory_is_named(target: Target) {
    let session = target.connect().await;
    let mut command = Command::new("echo never");
    command.cwd = Some("/no/such/directory".into());
    let error = session.run(&command).await.unwrap_err();
    assert_eq!(error.message, "run `echo never` on app-1: cannot enter the directory `/no/such/directory`");
}

pub(crate) async fn a_long_command_line_arrives(target: Target) {
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

pub(crate) async fn at_its_timeout_the_whole_group_is_killed(target: Target) {
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

pub(crate) async fn cancelled_the_whole_group_is_killed(target: Target) {
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

pub(crate) async fn nobody_waiting_any_more_the_whole_group_is_killed(target: Target) {
    let session = target.connect().await;
    let command = stubborn(&target);
    let processes = tokio::select! {
        result = session.run(&command) => panic!("ended by itself: {result:?}"),
        processes = stubborn_processes(&target) => processes,
    };
    session.close().await;
    until("nothing of it is alive", || !processes.iter().any(|&process| alive(process))).await;
}

pub(crate) async fn given_up_while_it_starts_a_command_is_killed_too(target: Target) {
    let session = target.connect().await;
    // A duration that no other test sleeps for, by which the processes are found.
    let line = format!("sleep 299.{}", own_address().to_bits());
    for step in 0..20u64 {
        let command = Command::new(&*line);
        let wait = Duration::from_micros(step * 200);
        let _ = tokio::time::timeout(wait, session.run(&command)).await;
    }
    session.close().await;
    until("nothing of them is alive", || with_argument(&line).is_empty()).await;
}

pub(crate) async fn a_background_process_does_not_hold_its_command(target: Target) {
    let session = target.connect().await;
    let file = quote(&target.remote("pid"));
    let line = format!("sleep 300 & echo $! >{file}; echo started");
    let output = session.run(&Command::new(line).timeout(DEADLINE)).await.unwrap();
    assert_eq!(output.text(), "started\n");
    let process = process_in(&target.path("pid")).await;
    // The channel is closed by now, and these follow it on the same connection.
    for _ in 0..10 {
        session.run(&Command::new("true")).await.unwrap();
    }
    assert!(alive(process), "what a command leaves in the background goes on");
    kill(process);
}

pub(crate) async fn eight_run_at_once_and_more_wait(target: Target) {
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

pub(crate) async fn lines_come_while_the_command_runs(target: Target) {
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

/// A server allows ten commands at once on a connection, and must forget each that has ended.
pub(crate) async fn ended_commands_make_room(target: Target) {
    let session = target.connect().await;
    for number in 0..50 {
        let output = session.run(&Command::new(format!("echo {number}"))).await.unwrap();
        assert_eq!(output.text(), format!("{number}\n"));
    }
    for _ in 0..10 {
        let commands: Vec<_> = (0..8)
            .map(|code| {
                let (session, command) = (session.clone(), Command::new(format!("exit {code}")).unchecked());
                tokio::spawn(async move { session.run(&command).await })
            })
            .collect();
        for (code, command) in (0..).zip(commands) {
            assert_eq!(command.await.unwrap().unwrap().code, code);
        }
    }
}
