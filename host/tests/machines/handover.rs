//! The balancer replaced under systemd while it serves: no request fails, and the unit stays what systemd thinks it is.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    fake::Cloud,
    isolate::{isolated, say},
    lab::{Ended, Lab, SMALL, programs},
    nspawn::Machines,
    wait_for,
};

/// Replacements under load.
const ROUNDS: usize = 4;
/// A request that takes longer has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Between two requests of one client: load, and not a benchmark.
const PAUSE: Duration = Duration::from_millis(2);

/// A lab whose programs can be changed.
struct Site {
    cloud: Cloud,
    lab: Lab,
    programs: PathBuf,
    address: Ipv4Addr,
}

impl Site {
    fn new() -> Self {
        let cloud = Cloud::on(Box::new(Machines::new()));
        let mut lab = Lab::on_machines(&cloud, &Machines::caller());
        let folder = lab.file("programs");
        fs::create_dir(&folder).unwrap();
        for name in ["worker", "balancer"] {
            fs::copy(programs().join(name), folder.join(name)).unwrap();
        }
        lab.env.push(("LABHOST_PROGRAMS".to_owned(), folder.display().to_string()));
        lab.run().expect(0).says("The lab is up");
        let balancer = lab.instances().into_iter().find(|it| it.role.as_deref() == Some("balancer"));
        let address = balancer.and_then(|it| it.public_ip).expect("a balancer");
        Self { cloud, lab, programs: folder, address }
    }

    /// What follows a program's own bytes changes nothing in it.
    fn change_balancer(&self) {
        let mut file = fs::File::options().append(true).open(self.programs.join("balancer")).unwrap();
        file.write_all(b"changed").unwrap();
    }

    #[track_caller]
    fn says(&self, line: &str) -> String {
        self.lab.labhost(&["ssh", "lb-1", line]).expect(0).stdout.trim().to_owned()
    }

    #[track_caller]
    fn property(&self, name: &str) -> String {
        self.says(&format!("systemctl show --property={name} --value labhost-balancer"))
    }

    #[track_caller]
    fn pid(&self) -> String {
        self.property("MainPID")
    }

    /// Ids of the unit's processes.
    #[track_caller]
    fn processes(&self) -> Vec<String> {
        let group = self.property("ControlGroup");
        let line = format!("[ -z '{group}' ] || cat /sys/fs/cgroup{group}/cgroup.procs 2>/dev/null || true");
        self.says(&line).lines().map(str::to_owned).collect()
    }

    fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://{}{path}", self.address);
        let output = Command::new("curl").args(["--silent", "--fail", "--max-time", "2", &url]).output();
        let output = output.expect("curl starts");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The unit as systemd sees it, with `main` as its process, which may use port 80 and nothing else.
    #[track_caller]
    fn is_in_order(&self, main: &str, restarts: &str) {
        let shown = ["ActiveState", "SubState", "Result", "NRestarts", "MainPID"].map(|it| self.property(it));
        assert_eq!(shown.each_ref().map(String::as_str), ["active", "running", "success", restarts, main]);
        let status = self.says(&format!("cat /proc/{main}/status"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        assert_eq!(field("CapEff:"), "0000000000000400", "CAP_NET_BIND_SERVICE alone");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert!((61184..=65519).contains(&field("Uid:").parse().unwrap()), "a dynamic user");
        let said: serde_json::Value =
            serde_json::from_str(&self.says("labhost-service status balancer")).unwrap();
        assert_eq!((said["state"].as_str(), said["pid"].to_string().as_str()), (Some("running"), main));
    }

    /// Waits until the process that was replaced has answered everything and ended.
    #[track_caller]
    fn only_process_is(&self, main: &str) {
        wait_for("the predecessor's end", || (self.processes() == [main]).then_some(()));
    }
}

/// Clients that ask all the time, on kept connections and on fresh ones.
struct Load {
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(address: Ipv4Addr) -> Self {
        let address = SocketAddr::from((address, 80));
        let mut load = Self {
            is_over: Arc::default(),
            answers: Arc::default(),
            failures: Arc::default(),
            clients: Vec::new(),
        };
        for number in 0..4 {
            let (is_over, answers, failures) =
                (load.is_over.clone(), load.answers.clone(), load.failures.clone());
            load.clients.push(std::thread::spawn(move || {
                let mut kept = None;
                while !is_over.load(Ordering::Relaxed) {
                    match ask(address, kept.take()) {
                        Ok(connection) => {
                            answers.fetch_add(1, Ordering::Relaxed);
                            kept = connection.filter(|_| number % 2 == 0);
                        }
                        Err(error) => {
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                        }
                    }
                    std::thread::sleep(PAUSE);
                }
            }));
        }
        load
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits for some more answers, so that it is known to go on.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.answers();
        wait_for("answers", || (self.answers() >= before + 100).then_some(()));
    }

    /// Ends it; returns the number of answers and what failed.
    fn end(mut self) -> (usize, Vec<String>) {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.drain(..).for_each(|client| client.join().unwrap());
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.answers(), failures)
    }
}

/// One request. Returns the connection if it may be used again.
fn ask(address: SocketAddr, kept: Option<TcpStream>) -> std::io::Result<Option<TcpStream>> {
    let mut stream = match kept {
        Some(stream) => stream,
        None => TcpStream::connect_timeout(&address, ANSWER_WITHIN)?,
    };
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(b"GET /cluster1 HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut reader = BufReader::new(&stream);
    let (mut line, mut length, mut is_kept) = (String::new(), 0, true);
    let mut status = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other("closed before the answer"));
        }
        let text = line.trim_end().to_ascii_lowercase();
        if text.is_empty() {
            break;
        }
        status.get_or_insert_with(|| text.clone());
        if let Some(value) = text.strip_prefix("content-length: ") {
            length = value.parse().map_err(std::io::Error::other)?;
        }
        is_kept &= text != "connection: close";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    match status {
        Some(status) if status.contains(" 200 ") => Ok(is_kept.then_some(stream)),
        status => Err(std::io::Error::other(format!("{status:?}"))),
    }
}

#[test]
fn balancer_is_replaced_under_systemd_and_no_request_fails() {
    isolated("handover::balancer_is_replaced_under_systemd_and_no_request_fails", || {
        let site = Site::new();
        let load = Load::on(site.address);
        load.goes_on();
        let mut main = site.pid();
        for _ in 0..ROUNDS {
            main = replaced(&site, &main, |site| {
                site.change_balancer();
                site.lab.run().expect(0).says("service balancer: 1 started or changed")
            });
            load.goes_on();
        }
        main = replaced(&site, &main, |site| {
            site.lab.labhost(&["ssh", "lb-1", "labhost-service restart balancer"]).expect(0)
        });
        load.goes_on();
        successor_that_cannot_start_changes_nothing(&site, &main);
        load.goes_on();
        let (answers, failures) = load.end();
        say(&format!("{} replacements under {answers} requests: {} failed", ROUNDS + 1, failures.len()));
        assert_eq!(failures, Vec::<String>::new());
        site.only_process_is(&main);
        reload_reaches(&site, &main);
        main = killed_one_is_started_again(&site, &main, "1");
        killed_while_its_predecessor_drains(&site, &main);
        stop_ends_all(&site);
        site.lab.stop_clean(&site.cloud);
    });
}

/// Returns the new main process.
#[track_caller]
fn replaced(site: &Site, before: &str, replace: impl FnOnce(&Site) -> Ended) -> String {
    replace(site);
    let main = site.pid();
    assert_ne!(main, before, "another process serves");
    site.is_in_order(&main, "0");
    main
}

fn successor_that_cannot_start_changes_nothing(site: &Site, main: &str) {
    site.says(
        "mv balancer kept && printf '#!/bin/sh\necho cannot >&2; exit 1\n' >balancer && chmod 755 balancer",
    );
    site.lab
        .labhost(&["ssh", "lb-1", "labhost-service restart balancer"])
        .expect(1)
        .says("goes on as it was");
    site.is_in_order(main, "0");
    site.says("mv kept balancer");
}

/// A worker less is only a reload, and the process that took over gets it.
fn reload_reaches(site: &Site, main: &str) {
    site.lab.set_topology(&SMALL.replace("count: 2", "count: 1"));
    site.lab.run().expect(0).says("drained and terminated");
    let status = site.get("/status").expect("the balancer's status");
    assert_eq!(status.matches(":8000").count(), 1, "{status}");
    site.is_in_order(main, "0");
}

/// Returns the new main process.
fn killed_one_is_started_again(site: &Site, main: &str, restarts: &str) -> String {
    site.says(&format!("sudo kill -KILL {main}"));
    wait_for("the balancer", || site.get("/cluster1"));
    let next = site.pid();
    assert_ne!(next, main);
    site.is_in_order(&next, restarts);
    next
}

/// Then the main process is not yet a child of systemd.
fn killed_while_its_predecessor_drains(site: &Site, main: &str) {
    // Held open, so that the predecessor waits for it as long as it waits for anything.
    let idle = ask((site.address, 80).into(), None).expect("an answer");
    assert!(idle.is_some());
    site.says("labhost-service restart balancer");
    let next = site.pid();
    assert_ne!(next, main);
    site.says(&format!("sudo kill -KILL {next}"));
    drop(idle);
    wait_for("the balancer", || site.get("/cluster1"));
    let last = wait_for("another main process", || Some(site.pid()).filter(|it| *it != next && *it != "0"));
    site.only_process_is(&last);
    assert_eq!(site.property("ActiveState"), "active");
}

/// In peace, also while a predecessor drains.
fn stop_ends_all(site: &Site) {
    let idle = ask((site.address, 80).into(), None).expect("an answer");
    site.says("labhost-service restart balancer");
    site.says("labhost-service stop balancer");
    drop(idle);
    assert_eq!(["ActiveState", "Result"].map(|it| site.property(it)), ["inactive", "success"]);
    assert_eq!(site.processes(), Vec::<String>::new());
    let log = site.says("labhost-service logs balancer -n 200");
    let last = log.lines().rfind(|line| line.contains(" INFO ")).unwrap_or_default();
    assert!(last.ends_with(" INFO stopped"), "{log}");
    assert_eq!(site.get("/status"), None);
    site.says("labhost-service start balancer");
    wait_for("the balancer", || site.get("/cluster1"));
}
