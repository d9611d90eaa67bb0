//! Successors that take over.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::common::{self, Client, DEADLINE, Stub, admin, config_over, eventually, ok};
use crate::line::{Line, Process, pid_at};
use crate::on_both_drivers;
use crate::open_loop::OpenLoop;

on_both_drivers! {
    fn fifty_restarts_under_load_fail_no_request(driver) {
        let stubs = [Stub::named("one"), Stub::named("two")];
        let line = Line::new(driver, &config_over(&[&stubs[0], &stubs[1]], json!({})));
        let mut current = line.start(&[]).up();
        let address = current.address();
        let load = OpenLoop::start(address);
        for _ in 0..50 {
            let mut idle: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
            idle.iter_mut().for_each(|client| assert_eq!(client.get("/app").status, 200));
            let next = line.succeed().up();
            // Right now the old one stops accepting; some send at once, the others when it is known to drain.
            for (index, client) in idle.iter_mut().enumerate() {
                if index == 2 {
                    current.wait_log("draining");
                }
                assert_eq!(client.get("/app").status, 200);
            }
            load.passes(20);
            drop(idle);
            assert!(current.wait_exit().success());
            current = next;
        }
        assert_eq!(load.finish(), Vec::<String>::new());
    }

    fn kept_connection_is_closed_with_its_next_answer(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        let mut old = line.start(&[]).up();
        let mut kept = Client::connect(old.address());
        assert_eq!(kept.get("/app").status, 200);
        let new = line.succeed().up();
        old.wait_log("draining");
        let response = kept.get("/app");
        assert_eq!((response.status, response.field("connection")), (200, Some("close")));
        assert!(kept.is_closed());
        assert!(old.wait_exit().success());
        assert_eq!(new.address(), old.address());
        assert_eq!(pid_at(new.address()), new.child.id());
    }

    fn answer_in_flight_outlives_the_hand_over(driver) {
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let stub = Stub::start(move |_, connection| {
            held.lock().expect("held").recv().expect("released");
            connection.send(&ok("late"));
        });
        let line = Line::new(driver, &config_over(&[&stub], json!({ "timeouts": { "drain_ms": 15_000 } })));
        let mut old = line.start(&[]).up();
        let mut client = Client::connect(old.address());
        client.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("it is in flight", || stub.requests().len() == 1);
        let _new = line.succeed().up();
        old.wait_log("draining");
        release.send(()).expect("the stub waits");
        assert_eq!(client.response().text(), "late");
        assert!(old.wait_exit().success());
    }

    fn number_of_threads_may_change(driver) {
        let stub = Stub::named("a");
        let config = |threads: usize| config_over(&[&stub], json!({ "threads": threads }));
        let line = Line::new(driver, &config(2));
        let mut current = line.start(&[]).up();
        let load = OpenLoop::start(current.address());
        for threads in [3, 1, 2] {
            line.write(&config(threads).to_string());
            let next = line.succeed().up();
            load.passes(50);
            assert!(current.wait_exit().success());
            current = next;
            let status: Value = serde_json::from_slice(&current.get("/status").body).expect("JSON");
            assert_eq!(status["threads"], threads);
        }
        assert_eq!(load.finish(), Vec::<String>::new());
    }

    fn successor_on_another_address_ends_the_old_one(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let line = Line::new(driver, &config);
        let mut old = line.start(&[]).up();
        let mut moved = config;
        moved["listen"] = json!("127.0.0.2:0");
        line.write(&moved.to_string());
        let new = line.succeed().up();
        assert_eq!(new.address().ip().to_string(), "127.0.0.2");
        assert_eq!(new.get("/app").text(), "a");
        assert!(old.wait_exit().success());
        assert!(TcpStream::connect(old.address()).is_err());
    }

    fn signal_starts_the_successor_and_systemd_hears_of_it(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({}));
        let line = Line::new(driver, &config);
        let notify = line.directory.path().join("notify");
        let socket = UnixDatagram::bind(&notify).expect("bound");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let word = || {
            let mut text = [0; 64];
            let count = socket.recv(&mut text).expect("a word");
            String::from_utf8_lossy(&text[..count]).into_owned()
        };
        let mut old = Process::start(&line.config(), driver, &[], &[("NOTIFY_SOCKET", &notify)]).up();
        assert_eq!(word(), "READY=1");
        line.write("{ nonsense");
        old.signal("USR2");
        old.wait_log("did not take over; this process goes on");
        line.write(&config.to_string());
        old.signal("USR2");
        let main = word();
        assert_ne!(parent_of(main.strip_prefix("MAINPID=").expect("the main process")), old.child.id().to_string());
        assert_eq!(word(), "READY=1");
        assert!(old.wait_exit().success());
        // Until it has left the queue the old process may still answer who came to it.
        let successor: u32 = main.strip_prefix("MAINPID=").expect("the main process").parse().expect("a number");
        assert_ne!(successor, old.child.id());
        eventually("the successor answers", || pid_at(old.address()) == successor);
        // The successor is nobody's child that we know: once more over the same way, then end it.
        let mut last = line.succeed().up();
        assert_eq!(word(), format!("MAINPID={}", last.child.id()));
        eventually("the last one answers", || pid_at(old.address()) == last.child.id());
        last.signal("TERM");
        assert!(last.wait_exit().success());
    }

    fn drained_backend_stays_drained(driver) {
        let (one, two) = (Stub::named("one"), Stub::named("two"));
        let line = Line::new(driver, &config_over(&[&one, &two], json!({ "policy": "round-robin" })));
        let mut current = line.start(&[]).up();
        let said = admin(&line.admin(), "POST /clusters/app/backends/i-0/drain");
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        for _ in 0..2 {
            let next = line.succeed().up();
            for _ in 0..6 {
                assert_eq!(next.get("/app").text(), "two");
            }
            assert!(current.wait_exit().success());
            current = next;
        }
        let said = admin(&line.admin(), "POST /clusters/app/backends/i-0/readmit");
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        let last = line.succeed().up();
        eventually("it is used again", || last.get("/app").text() == "one");
    }
}

/// systemd waits only for a main process that is its own child when it hears of it.
fn parent_of(pid: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("a parent").to_owned()
}
