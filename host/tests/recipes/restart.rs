//! A new balancer takes over from the old one while clients send.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::support::{Lab, programs};

/// Requests of two clients, one on a kept connection and one on fresh ones, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<usize, String>>>,
}

impl Load {
    fn start(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |keeps| {
            let (stop, address) = (Arc::clone(&stop), address.to_owned());
            std::thread::spawn(move || {
                let (mut count, mut kept) = (0, None);
                while !stop.load(SeqCst) {
                    kept = request(&address, kept.take(), keeps)?;
                    count += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(count)
            })
        };
        let clients = vec![client(true), client(false)];
        Self { stop, clients }
    }

    fn finish(self) -> Vec<Result<usize, String>> {
        self.stop.store(true, SeqCst);
        self.clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    }
}

type Stream = BufReader<TcpStream>;

/// One request; the connection comes back if it may carry another.
fn request(address: &str, kept: Option<Stream>, keeps: bool) -> Result<Option<Stream>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = match kept {
        Some(stream) => stream,
        None => BufReader::new(TcpStream::connect(address).map_err(failed)?),
    };
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(20))).map_err(failed)?;
    stream.get_mut().write_all(b"GET /cluster1 HTTP/1.1\r\nHost: lab\r\n\r\n").map_err(failed)?;
    let (mut head, mut line) = (Vec::new(), String::new());
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).map_err(failed)? == 0 {
            return Err(format!("the connection ended after {head:?}"));
        }
        head.push(line.trim().to_ascii_lowercase());
    }
    if !head[0].contains(" 200 ") {
        return Err(head.remove(0));
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.and_then(|length| length.trim().parse().ok()).expect("a length");
    stream.read_exact(&mut vec![0; length]).map_err(failed)?;
    let keeps = keeps && !head.iter().any(|line| line == "connection: close");
    Ok(keeps.then_some(stream))
}

#[test]
fn new_balancer_program_takes_over_without_a_failed_request() {
    let lab = Lab::up();
    let address = lab.url("").trim_start_matches("http://").to_owned();
    let folder = lab.file("programs");
    fs::create_dir(&folder).unwrap();
    for name in ["worker", "balancer"] {
        fs::copy(programs::folder().join(name), folder.join(name)).unwrap();
    }
    let load = Load::start(&address);
    let mut pids = vec![pid(&lab)];
    for _ in 0..2 {
        // Another program that does the same: what stands behind the last section is not loaded.
        let mut file = fs::OpenOptions::new().append(true).open(folder.join("balancer")).unwrap();
        file.write_all(b"+").unwrap();
        drop(file);
        let mut command = lab.command(&["recipes/run.rhai"]);
        command.env("LABHOST_PROGRAMS", &folder);
        crate::support::Running::start(command).end().expect(0).expect_says("1 started or changed");
        pids.push(pid(&lab));
    }
    assert!(pids[0] != pids[1] && pids[1] != pids[2], "{pids:?}");
    for ended in load.finish() {
        assert!(ended.as_ref().is_ok_and(|&count| count > 0), "{ended:?}");
    }
    // One that cannot start changes nothing, and the recipe says so.
    let recipe = lab.read("recipes/run.rhai");
    lab.write("recipes/run.rhai", &recipe.replace("--replace", "--replace --no-such-option"));
    let mut command = lab.command(&["recipes/run.rhai"]);
    command.env("LABHOST_PROGRAMS", &folder);
    crate::support::Running::start(command).end().expect(5).expect_says("its successor ended with status 2");
    assert_eq!(pid(&lab), pids[2]);
    lab.assert_serves("cluster1");
}

fn pid(lab: &Lab) -> u64 {
    let answer = crate::support::get(&lab.url("/status"));
    answer.json()["pid"].as_u64().expect("a number")
}
