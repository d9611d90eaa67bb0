//! A file that hosts give to each other: who gets it from whom, what is refused, and what happens when it fails.
//!
//! The first of three hosts is made the first to be served by holding its `cat`, which receives an upload.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::Duration,
};

use labhost::{
    Error,
    ssh::{COPY_PORT, Session, Spread, Uploaded, quote},
};

use crate::{DEADLINE, process_in, target::Target, until};

const ALWAYS: Duration = Duration::ZERO;
/// Characters of a token.
const TOKEN: usize = 64;
/// The system's own.
const PYTHON: &str = "exec /usr/bin/env -i PATH=/usr/bin:/bin python3 \"$@\"";

struct Trio {
    hosts: Vec<Target>,
    sessions: Vec<Session>,
    file: PathBuf,
    content: Vec<u8>,
}

type Results = Vec<Result<Uploaded, Error>>;

impl Trio {
    async fn new(first: Target) -> Self {
        let mut hosts = vec![first];
        for number in 2..=3 {
            let mut host = hosts[0].beside().await;
            host.instance.name = format!("app-{number}");
            hosts.push(host);
        }
        let mut sessions = Vec::new();
        for host in &hosts {
            sessions.push(host.connect().await);
        }
        let content: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let file = hosts[0].path("program");
        fs::write(&file, &content).unwrap();
        let trio = Self { hosts, sessions, file, content };
        let (pid, go) = (quote(&trio.hosts[0].remote("pid")), quote(&trio.hosts[0].remote("go")));
        let wait = format!("echo $$ >{pid}\nwhile [ -e {pid} ] && ! [ -e {go} ]; do sleep 0.01; done");
        trio.hosts[0].replace_program("cat", &format!("#!/bin/sh\n{wait}\nexec /bin/cat\n"));
        trio
    }

    /// Replaces python3 on a host.
    fn python(&self, host: usize, script: &str) {
        self.hosts[host].replace_program("python3", &format!("#!/bin/sh\n{script}\n"));
    }

    fn target(&self, host: usize) -> PathBuf {
        self.hosts[host].path("there/program")
    }

    fn old_files(&self) {
        for host in 0..3 {
            fs::create_dir(self.hosts[host].path("there")).unwrap();
            fs::write(self.target(host), "old").unwrap();
        }
    }

    async fn upload(&self, spread: &Spread, host: usize, mode: u32) -> Result<Uploaded, Error> {
        let (address, path) = (self.hosts[host].instance.private_ip, self.target(host));
        spread.upload(&self.sessions[host], address, &self.file, path.to_str().unwrap(), mode).await
    }

    /// Uploads to all three, with host 0 as the first; `meanwhile` begins when the others wait for it.
    async fn spread(&self, spread: &Spread, mode: u32, meanwhile: impl Future<Output = ()>) -> Results {
        let others = async {
            process_in(&self.hosts[0].path("pid")).await;
            tokio::join!(
                self.upload(spread, 1, mode),
                self.upload(spread, 2, mode),
                async { fs::write(self.hosts[0].path("go"), "").unwrap() },
                meanwhile
            )
        };
        let (first, (second, third, (), ())) = tokio::join!(self.upload(spread, 0, mode), others);
        vec![first, second, third]
    }

    /// Everybody has the whole file, and nobody serves any more.
    #[track_caller]
    fn all_have_it(&self) {
        for host in 0..3 {
            assert!(fs::read(self.target(host)).unwrap() == self.content, "host {host}");
            assert_eq!(fs::read_dir(self.hosts[host].path("there")).unwrap().count(), 1);
            assert!(!self.serves(host), "host {host}");
        }
    }

    fn port(&self, host: usize) -> SocketAddr {
        (self.hosts[host].instance.private_ip.unwrap(), COPY_PORT).into()
    }

    fn serves(&self, host: usize) -> bool {
        TcpStream::connect_timeout(&self.port(host), DEADLINE).is_ok()
    }

    /// What the server gives to somebody who says this.
    fn given(&self, said: &[u8]) -> Vec<u8> {
        let mut peer = TcpStream::connect_timeout(&self.port(0), DEADLINE).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        // The server may hang up before it has read everything.
        let _ = peer.write_all(said).and_then(|()| peer.shutdown(std::net::Shutdown::Write));
        let mut got = Vec::new();
        // Reset or ended: nothing comes.
        let _ = peer.read_to_end(&mut got);
        got
    }

    /// Lets fetching wait until [`Trio::release`].
    fn hold_fetching(&self) {
        let (pid, go) = (quote(&self.hosts[0].remote("pid")), quote(&self.hosts[0].remote("fetch")));
        let wait = format!("while [ -e {pid} ] && ! [ -e {go} ]; do sleep 0.01; done");
        for host in 1..3 {
            self.python(host, &format!("{wait}\n{PYTHON}"));
        }
    }

    fn release(&self) {
        fs::write(self.hosts[0].path("fetch"), "").unwrap();
    }
}

fn sources(results: &Results) -> Vec<Option<&str>> {
    results.iter().map(|result| result.as_ref().unwrap().copied_from.as_deref()).collect()
}

pub(crate) async fn the_first_gives_the_others_what_it_got(target: Target) {
    let trio = Trio::new(target).await;
    let spread = Spread::with_threshold(3, ALWAYS);
    let results = trio.spread(&spread, 0o755, async {}).await;
    assert_eq!(spread.trouble(), None);
    assert_eq!(sources(&results), [None, Some("app-1"), Some("app-1")]);
    assert!(results.iter().flatten().all(|it| it.changed && it.bytes == trio.content.len() as u64));
    trio.all_have_it();
    for host in 0..3 {
        assert_eq!(fs::metadata(trio.target(host)).unwrap().permissions().mode() & 0o7777, 0o755);
    }
    let again = Spread::with_threshold(3, ALWAYS);
    for host in 0..3 {
        assert!(!trio.upload(&again, host, 0o755).await.unwrap().changed);
    }
}

pub(crate) async fn it_is_sent_to_each_where_that_is_fast(target: Target) {
    let trio = Trio::new(target).await;
    let spread = Spread::with_threshold(3, Duration::MAX);
    let results = trio.spread(&spread, 0o755, async {}).await;
    assert_eq!((sources(&results), spread.trouble()), (vec![None; 3], None));
    trio.all_have_it();
}

pub(crate) async fn what_is_not_for_everybody_is_never_served(target: Target) {
    let trio = Trio::new(target).await;
    let spread = Spread::with_threshold(3, ALWAYS);
    let results = trio.spread(&spread, 0o750, async {}).await;
    assert_eq!((sources(&results), spread.trouble()), (vec![None; 3], None));
    trio.all_have_it();
}

pub(crate) async fn only_the_token_opens(target: Target) {
    let trio = Trio::new(target).await;
    trio.hold_fetching();
    let spread = Spread::with_threshold(3, ALWAYS);
    let intrude = async {
        until("somebody serves", || trio.serves(0)).await;
        let wrong = "0".repeat(TOKEN);
        let texts = ["", "\n", &wrong[1..], &wrong, &format!("{wrong}{wrong}"), "GET / HTTP/1.1\r\n\r\n"];
        for text in texts {
            assert_eq!(trio.given(text.as_bytes()), b"", "{text:?}");
        }
        trio.release();
    };
    let results = trio.spread(&spread, 0o755, intrude).await;
    assert_eq!(spread.trouble(), None);
    assert_eq!(sources(&results), [None, Some("app-1"), Some("app-1")]);
    trio.all_have_it();
}

pub(crate) async fn a_host_that_never_asks_holds_nobody(target: Target) {
    let trio = Trio::new(target).await;
    let spread = Spread::with_threshold(5, ALWAYS);
    let results = trio.spread(&spread, 0o755, async {}).await;
    assert_eq!(sources(&results), [None, Some("app-1"), Some("app-1")]);
    trio.all_have_it();
}

/// Each of these takes the place of the server on the first host; python3 is there for its own texts.
pub(crate) async fn what_cannot_be_copied_is_sent_from_here(target: Target) {
    let short = "peer.sendall(b'x' * 1000)";
    let wrong = "peer.sendall(b'x' * 2800000)";
    let silent = "pass";
    let pretend = |answer: &str| {
        let text = format!(
            "import os, socket, sys, threading\nlistener = socket.create_server((sys.argv[1], {COPY_PORT}))\n\
             def serve():\n    while True:\n        peer, _ = listener.accept()\n        peer.recv({TOKEN})\n        \
             {answer}\n        peer.close()\n\
             threading.Thread(target=serve, daemon=True).start()\nprint('ready', flush=True)\nsys.stdin.read()\nos._exit(0)"
        );
        format!("set -- -I -c {} \"$4\"\n{PYTHON}", quote(&text))
    };
    let cases = [
        ("no python", "exit 127".to_owned(), "exit 127"),
        ("a server that fails", "echo nothing works >&2; exit 1".to_owned(), "nothing works"),
        ("a server that is gone", "echo ready; exit 0".to_owned(), ""),
        ("half a file", pretend(short), "bytes too early"),
        ("no file", pretend(silent), "bytes too early"),
        ("another file", pretend(wrong), "not the whole file"),
    ];
    let trio = Trio::new(target).await;
    for (name, script, says) in cases {
        trio.python(0, &script);
        for host in 0..3 {
            let _ = fs::remove_file(trio.target(host));
        }
        for file in ["pid", "go"] {
            let _ = fs::remove_file(trio.hosts[0].path(file));
        }
        let spread = Spread::with_threshold(3, ALWAYS);
        let results = trio.spread(&spread, 0o755, async {}).await;
        assert_eq!(sources(&results), [None; 3], "{name}");
        let trouble = spread.trouble().unwrap_or_else(|| panic!("{name}: it went well"));
        assert!(trouble.contains(says), "{name}: {trouble}");
        trio.all_have_it();
    }
}

pub(crate) async fn half_a_copy_never_takes_the_old_files_place(target: Target) {
    let trio = Trio::new(target).await;
    trio.old_files();
    for host in 1..3 {
        // Half of it arrives, and sending it from here fails as well.
        trio.python(host, "/usr/bin/head -c 1000 /dev/zero; exit 0");
        trio.hosts[host].replace_program("cat", "#!/bin/sh\nhead -c 100000\n");
    }
    let spread = Spread::with_threshold(3, ALWAYS);
    let results = trio.spread(&spread, 0o755, async {}).await;
    assert!(results[0].is_ok(), "{results:?}");
    for host in 1..3 {
        assert!(results[host].as_ref().unwrap_err().message.contains("not the whole file"), "{results:?}");
        assert_eq!(fs::read_to_string(trio.target(host)).unwrap(), "old");
        assert_eq!(fs::read_dir(trio.hosts[host].path("there")).unwrap().count(), 1);
    }
    assert!(!trio.serves(0));
}

/// Its connection is cut while it receives.
pub(crate) async fn a_first_host_that_dies_holds_nobody(target: Target) {
    let mut trio = Trio::new(target).await;
    let mut server = trio.hosts[0].take_server();
    let spread = Spread::with_threshold(3, ALWAYS);
    let first = async {
        let result = trio.upload(&spread, 0, 0o755).await;
        assert!(result.unwrap_err().message.contains("was lost"));
    };
    let others = async {
        process_in(&trio.hosts[0].path("pid")).await;
        tokio::join!(trio.upload(&spread, 1, 0o755), trio.upload(&spread, 2, 0o755), async { server.cut() })
    };
    let ((), (second, third, ())) = tokio::join!(first, others);
    assert_eq!(sources(&vec![second, third]), [None, None]);
    for host in 1..3 {
        assert!(fs::read(trio.target(host)).unwrap() == trio.content);
    }
}

pub(crate) async fn a_server_ends_with_its_connection(target: Target) {
    let mut trio = Trio::new(target).await;
    let mut server = trio.hosts[0].take_server();
    trio.hold_fetching();
    let spread = Spread::with_threshold(3, ALWAYS);
    let end = async {
        until("somebody serves", || trio.serves(0)).await;
        server.cut();
        until("nobody serves", || !trio.serves(0)).await;
        trio.release();
    };
    let results = trio.spread(&spread, 0o755, end).await;
    assert_eq!(sources(&results), [None; 3]);
    assert!(spread.trouble().is_some());
    trio.all_have_it();
}
