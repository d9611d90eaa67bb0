//! Successors that are given nothing, and balancers that are none.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::common::{self, DEADLINE, Stub, config_over};
use crate::line::{Line, pid_at};
use crate::on_both_drivers;

on_both_drivers! {
    fn successor_that_cannot_start_changes_nothing(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let line = Line::new(driver, &config);
        let old = line.start(&[]).up();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut elsewhere = config.clone();
        elsewhere["listen"] = json!(taken.local_addr().expect("bound").to_string());
        for (bad, status) in [("{ nonsense".to_owned(), 2), (elsewhere.to_string(), 1)] {
            line.write(&bad);
            assert_eq!(line.succeed().wait_exit().code(), Some(status));
            assert_eq!(old.get("/app").text(), "a");
        }
        // One that dies after it was given the sockets.
        let mut half_way = UnixStream::connect(line.admin()).expect("the admin socket is still there");
        half_way.write_all(b"POST /handover HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = [0; 15];
        half_way.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        drop(half_way);
        old.wait_log("not handed over, this process goes on");
        assert_eq!(old.get("/app").text(), "a");
        line.write(&config.to_string());
        let new = line.succeed().up();
        assert_eq!(new.get("/app").text(), "a");
    }

    fn killed_balancer_does_not_block_the_next(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        for arguments in [[].as_slice(), &["--replace"], &[]] {
            let process = line.start(arguments).up();
            assert_eq!(process.get("/app").status, 200);
            process.signal("KILL");
        }
        assert!(line.admin().exists());
    }

    fn second_balancer_takes_nothing_unless_it_is_told_to(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        let first = line.start(&[]).up();
        let mut second = line.start(&[]);
        second.wait_log("with --replace");
        assert_eq!(second.wait_exit().code(), Some(1));
        // Another configuration is another balancer.
        let other = Line::new(driver, &config_over(&[&stub], json!({})));
        let third = other.succeed().up();
        assert_ne!(third.address(), first.address());
        assert_eq!(pid_at(first.address()), first.child.id());
    }
}

#[test]
fn another_user_is_given_nothing() {
    let stub = Stub::named("a");
    let line = Line::new("epoll", &config_over(&[&stub], json!({})));
    let process = line.start(&[]).up();
    // Wide open, so that nothing but the check of the peer's user is left.
    for (path, mode) in [(line.directory.path(), 0o777), (&line.admin(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    let admin = line.admin();
    let asked = std::thread::spawn(move || {
        // SAFETY: the system call, unlike the library's function, changes the user of this thread alone.
        if unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) } != 0 {
            return None;
        }
        let mut stream = UnixStream::connect(admin).expect("the socket is open to all");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(b"POST /handover HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and the end");
        Some(answer)
    });
    match asked.join().expect("no panic") {
        Some(answer) => assert!(answer.starts_with("HTTP/1.1 403"), "{answer}"),
        None => return eprintln!("skipped: only root can become another user"),
    }
    process.wait_log("asked by user 65534");
    assert_eq!(process.get("/app").text(), "a");
}
