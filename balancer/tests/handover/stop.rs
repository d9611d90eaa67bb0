//! Balancers that stop with nobody to take over.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;

use crate::common::{self, Client, DEADLINE, Stub, config_over, eventually};
use crate::line::Line;
use crate::on_both_drivers;

on_both_drivers! {
    fn stop_resets_nobody_who_has_connected(driver) {
        let stub = Stub::named("a");
        let config = config_over(&[&stub], json!({ "timeouts": { "drain_ms": 3000 } }));
        for _ in 0..10 {
            let line = Line::new(driver, &config);
            let mut process = line.start(&[]).up();
            let address = process.address();
            let answered = Arc::new(AtomicUsize::new(0));
            let clients: Vec<_> = (0..6)
                .map(|_| {
                    let answered = Arc::clone(&answered);
                    std::thread::spawn(move || {
                        // Until nobody listens any more.
                        while let Ok(stream) = TcpStream::connect_timeout(&address, DEADLINE) {
                            let mut client = Client::over(stream);
                            client.stream.write_all(b"GET /app HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                                .map_err(|error| error.to_string())?;
                            let response = client.try_response(false).ok_or("connected and not answered")?;
                            assert_eq!(response.status, 200);
                            answered.fetch_add(1, SeqCst);
                        }
                        Ok::<(), String>(())
                    })
                })
                .collect();
            eventually("requests go on", || answered.load(SeqCst) > 30);
            process.signal("TERM");
            assert!(process.wait_exit().success());
            for client in clients {
                assert_eq!(client.join().expect("no panic"), Ok(()));
            }
        }
    }

    fn those_who_wait_to_be_accepted_at_the_stop_are_answered(driver) {
        let stub = Stub::named("a");
        let line = Line::new(driver, &config_over(&[&stub], json!({})));
        let mut process = line.start(&[]).up();
        process.signal("STOP");
        let mut waiting: Vec<Client> = (0..20).map(|_| Client::connect(process.address())).collect();
        process.signal("TERM");
        process.signal("CONT");
        for client in &mut waiting {
            assert_eq!(client.get("/app").status, 200);
        }
        drop(waiting);
        assert!(process.wait_exit().success());
    }

    fn request_that_comes_at_the_very_end_of_the_drain_is_answered(driver) {
        let stub = Stub::named("a");
        let extra = json!({ "timeouts": { "drain_ms": 1000 } });
        let line = Line::new(driver, &config_over(&[&stub], extra));
        let mut process = line.start(&[]).up();
        let mut idle = Client::connect(process.address());
        assert_eq!(idle.get("/app").status, 200);
        process.signal("TERM");
        process.wait_log("draining");
        // It does not run while the request comes and the time for the drain passes, and finds both at once. Before,
        // it must have noticed the drain, which takes a tenth of a second.
        std::thread::sleep(Duration::from_millis(200));
        process.signal("STOP");
        idle.send("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
        std::thread::sleep(Duration::from_millis(1000));
        process.signal("CONT");
        let response = idle.response();
        assert_eq!((response.status, response.field("connection")), (200, Some("close")));
        assert!(process.wait_exit().success());
    }
}
