//! Bad input: the exit code, what is said, where it points, what it suggests, and that nothing was launched.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crate::support::{Ended, Lab};

/// One mistake, and what must be said about it.
struct Mistake {
    /// Line 2 of the recipe and what follows; line 1 is left empty.
    text: &'static str,
    code: i32,
    says: &'static str,
    /// LINE:COLUMN, and the word above the caret.
    place: (&'static str, &'static str),
    hint: &'static str,
}

#[track_caller]
fn check_place(ended: &Ended, (place, word): (&str, &str)) {
    let text = &ended.stderr;
    assert!(text.contains(&format!("--> recipes/x.rhai:{place}")), "not at {place}:\n{ended}");
    let mut lines = text.lines().skip_while(|line| !line.contains("--> recipes/x.rhai"));
    let (source, carets) = (lines.nth(2).unwrap_or_default(), lines.next().unwrap_or_default());
    let start = carets.find('^').unwrap_or_else(|| panic!("no caret\n{ended}"));
    assert!(source[start..].starts_with(word), "the caret does not stand under {word}:\n{ended}");
}

const INSTANCES_2: &str = "2:6";

/// Mistakes that can be seen in the recipe, or when it asks for instances.
const BEFORE_A_LAUNCH: &[Mistake] = &[
    Mistake { text: "let x = ;", code: 3, says: "unexpected", place: ("2:9", ";"), hint: "" },
    Mistake { text: "let x = [1, 2", code: 3, says: "expecting", place: ("2:14", ""), hint: "" },
    Mistake {
        text: "ec2::instanses(#{});",
        code: 3,
        says: "unknown function `ec2::instanses`",
        place: (INSTANCES_2, "instanses"),
        hint: "did you mean `ec2::instances`?",
    },
    Mistake {
        text: "ec2::list().uplaod(\"a\", \"b\");",
        code: 3,
        says: "unknown method `uplaod`",
        place: ("2:13", "uplaod"),
        hint: "did you mean `upload`?",
    },
    Mistake {
        text: "ec::list();",
        code: 3,
        says: "unknown module `ec`",
        place: ("2:1", "ec"),
        hint: "did you mean `ec2`?",
    },
    Mistake {
        text: "ec2::instances(#{\n    name: \"a\",\n    type: \"t2.micro\",\n    cuont: 4,\n});",
        code: 3,
        says: "unknown option `cuont` of ec2::instances",
        place: ("5:5", "cuont"),
        hint: "did you mean `count`?",
    },
    Mistake {
        text: "ec2::wait(1, 2, 3);",
        code: 3,
        says: "`ec2::wait` takes 1 or 2 arguments, not 3",
        place: (INSTANCES_2, "wait"),
        hint: "It is ec2::wait(hosts: list)",
    },
    Mistake {
        text: "let key = \"cuont\"; let fleet = #{ name: \"a\", type: \"t2.micro\" }; fleet[key] = 4;\nec2::instances(fleet);",
        code: 3,
        says: "unknown option `cuont` of ec2::instances",
        place: ("3:6", "instances"),
        hint: "did you mean `count`?",
    },
    Mistake { text: "print(hots);", code: 3, says: "hots", place: ("2:7", "hots"), hint: "" },
    Mistake {
        text: "ec2::instances(#{ name: \"a\", type: \"t2.micro\", count: \"four\" });",
        code: 1,
        says: "option `count`: invalid type: string \"four\"",
        place: (INSTANCES_2, "instances"),
        hint: "`labhost docs ec2::instances` shows every option",
    },
    Mistake {
        text: "ec2::instances(#{ name: \"a\", type: \"t2.mirco\", count: 1 });",
        code: 1,
        says: "unknown instance type `t2.mirco`",
        place: (INSTANCES_2, "instances"),
        hint: "did you mean `t2.micro`?",
    },
    Mistake {
        text: "ec2::instances(#{ name: \"a\", type: \"t2.micro\", count: -1 });",
        code: 1,
        says: "option `count`: invalid value: integer `-1`",
        place: (INSTANCES_2, "instances"),
        hint: "",
    },
    Mistake {
        text: "ec2::instances(#{ name: \"a\", type: \"t2.micro\", count: 4000 });",
        code: 1,
        says: "4000 members of a are too many",
        place: (INSTANCES_2, "instances"),
        hint: "at most 200",
    },
    Mistake {
        text: "ec2::instances(#{ name: \"a b\", type: \"t2.micro\", count: 1 });",
        code: 1,
        says: "\"a b\" cannot be a name",
        place: (INSTANCES_2, "instances"),
        hint: "lower-case letters",
    },
    Mistake {
        text: "ec2::instances(#{ name: \"a\", type: \"t2.micro\" });",
        code: 1,
        says: "missing field `count`",
        place: (INSTANCES_2, "instances"),
        hint: "",
    },
    Mistake {
        text: "import \"../outside\" as outside;",
        code: 3,
        says: "it lies outside",
        place: ("2:1", "import"),
        hint: "its own recipes folder only",
    },
    Mistake {
        text: "import \"/etc/passwd\" as users;",
        code: 3,
        says: "it lies outside",
        place: ("2:1", "import"),
        hint: "its own recipes folder only",
    },
    Mistake {
        text: "import \"topolgy\" as topology;",
        code: 3,
        says: "recipes/topolgy.rhai",
        place: ("2:1", "import"),
        hint: "looked for in the recipes folder",
    },
    Mistake { text: "[1, 2][5];", code: 1, says: "5", place: ("2:8", "5"), hint: "" },
    Mistake { text: "throw \"no luck\";", code: 1, says: "no luck", place: ("2:1", "throw"), hint: "" },
    Mistake {
        text: "fail(\"slo\", \"too slow\");",
        code: 6,
        says: "too slow",
        place: ("2:1", "fail"),
        hint: "",
    },
];

#[test]
fn mistake_is_shown_at_its_place_and_nothing_is_launched() {
    let lab = Lab::new();
    std::fs::write(lab.file("outside.rhai"), "").unwrap();
    for mistake in BEFORE_A_LAUNCH {
        lab.write("recipes/x.rhai", &format!("\n{}\n", mistake.text));
        let ended = lab.labhost(&["recipes/x.rhai"]).expect(mistake.code);
        let ended = ended.expect_says(mistake.says).expect_says(mistake.hint);
        check_place(&ended, mistake.place);
        assert!(!lab.file("artifacts/local").exists(), "an agent was started for {}", mistake.text);
        lab.stop();
        lab.assert_nothing_left();
    }
}

#[test]
fn mistake_anywhere_is_found_before_the_first_launch() {
    let lab = Lab::new();
    lab.recipe("if false { host.exce(\"true\"); }").expect(3).expect_says("did you mean `exec`?");
    lab.assert_nothing_left();
    let run = lab.read("recipes/run.rhai");
    lab.write("recipes/run.rhai", &run.replace("ready: \"/status\"", "raedy: \"/status\""));
    let ended = lab.labhost(&["recipes/run.rhai"]).expect(3);
    ended.expect_says("did you mean `ready`?").expect_says("recipes/run.rhai:");
    lab.write("recipes/provision.rhai", "let x = ;");
    lab.labhost(&["recipes/run.rhai"]).expect(3).expect_says("recipes/provision.rhai:1:9");
    lab.assert_nothing_left();
}

#[test]
fn failure_in_an_imported_recipe_names_both_places() {
    let lab = Lab::new();
    lab.set_topology(&["#{ name: \"a\", type: \"t2.mirco\", count: 1, cluster: \"c\" }"]);
    let ended = lab.labhost(&["recipes/run.rhai"]).expect(1).expect_says("did you mean `t2.micro`?");
    ended.expect_says("recipes/provision.rhai:").expect_says("called from import in recipes/run.rhai:");
    assert_eq!(lab.agent().is_some(), lab.file("artifacts/local").exists());
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

/// What is said where the ec2 provider, or credentials for it, are missing.
const NO_EC2: &str = if cfg!(feature = "ec2") { "AWS credentials" } else { "cargo lab-ec2" };

#[test]
fn wrong_command_line_is_refused() {
    let lab = Lab::new();
    for (words, code, says) in [
        (&["recipes/nun.rhai"][..], 2, "recipe recipes/nun.rhai: No such file"),
        (&["recipes"], 2, "is no file"),
        (&["recipes/stop.rhai", "--confrim"], 2, "did you mean --confirm?"),
        (&["recipes/bench.rhai", "--mode"], 2, "--mode needs a value"),
        (&["recipes/bench.rhai", "--requests", "many"], 2, "not a whole number"),
        (&["recipes/stop.rhai", "-confirm"], 2, "did you mean --confirm?"),
        (&["recipes/stop.rhai", "confirm"], 2, "one argument too many"),
        (&["recipes/bench.rhai", "127.0.0.1:1"], 5, "127.0.0.1:1/status"),
        (&["recipes/bench.rhai", "127.0.0.1:1", "--clusters", "a"], 5, "answered no request well"),
        (&["recipes/bench.rhai", "127.77"], 2, "is no balancer's address"),
        (&["recipes/bench.rhai", "https://127.0.0.1/"], 2, "TLS is not supported"),
        (&["recipes/bench.rhai"], 1, "this lab has no balancer"),
        (&["recipes/run.rhai", "--ttl", "soon"], 2, "soon"),
        (&["recipes/run.rhai", "--provider", "ec2"], 4, NO_EC2),
        (&["recipes/run.rhai", "--provider", "azure"], 2, "unknown provider `azure`"),
        (&["recipes/run.rhai", "--max-instances", "0"], 4, "the ceiling is 0"),
        (&["recipes/run.rhai", "--ttl", "13h"], 2, "a lab may live for 12h at most, and 13h was asked for"),
        (&["statsu"], 2, "recipe statsu"),
        (&["--help-me"], 2, "--help-me"),
    ] {
        lab.labhost(words).expect(code).expect_says(says);
    }
    assert!(!lab.file("artifacts/instances.json").exists() || lab.instances().is_empty());
    lab.stop();
    lab.assert_nothing_left();
}

/// Mistakes and failures that a host shows; the recipe's line 1 has made it.
const ON_A_HOST: &[Mistake] = &[
    Mistake {
        text: "host.upload(\"nothing/here\", \"worker\");",
        code: 1,
        says: "nothing/here: no such file",
        place: ("2:6", "upload"),
        hint: "",
    },
    Mistake {
        text: "host.exec(\"echo all was well; echo disk is on fire >&2; exit 3\");",
        code: 5,
        says: "  | disk is on fire",
        place: ("2:6", "exec"),
        hint: "",
    },
    Mistake {
        text: "host.exec(\"sleep 60\", #{ timeout: \"100ms\" });",
        code: 5,
        says: "100ms",
        place: ("2:6", "exec"),
        hint: "",
    },
    Mistake {
        text: "host.service(#{ name: \"web\", exec: \"./web --listen {privat_ip}:80\" });",
        code: 1,
        says: "unknown placeholder {privat_ip}",
        place: ("2:6", "service"),
        hint: "did you mean {private_ip}?",
    },
    Mistake {
        text: "host.service(#{ name: \"dies\", exec: \"sh -c 'echo no configuration found; exit 1'\", ready: \"/\" });",
        code: 5,
        says: "  | no configuration found",
        place: ("2:6", "service"),
        hint: "labhost logs app-1 dies",
    },
    Mistake {
        text: "host.service(#{ name: \"mute\", exec: \"sh -c 'echo still thinking; sleep 60'\", ready: \"/\", timeout: \"300ms\" });",
        code: 5,
        says: "  | still thinking",
        place: ("2:6", "service"),
        hint: "labhost logs app-1 mute",
    },
    Mistake {
        text: "host.service(#{ name: \"Bad Name\", exec: \"true\" });",
        code: 5,
        says: "Bad Name",
        place: ("2:6", "service"),
        hint: "",
    },
    Mistake {
        text: "host.wait_http(\"/\", #{ port: 9, timeout: \"200ms\" });",
        code: 5,
        says: "app-1",
        place: ("2:6", "wait_http"),
        hint: "",
    },
    Mistake {
        text: "host.download(\"missing\", \"artifacts/missing\");",
        code: 5,
        says: "`missing` does not exist there",
        place: ("2:6", "download"),
        hint: "",
    },
    Mistake {
        text: "host.download(\".profile\", \"../../escaped\");",
        code: 1,
        says: "outside the lab's folder",
        place: ("2:6", "download"),
        hint: "",
    },
    Mistake {
        text: "host.logs(\"nun\");",
        code: 5,
        says: "there is no service \"nun\"",
        place: ("2:6", "logs"),
        hint: "",
    },
];

#[test]
fn failure_on_a_host_is_shown_with_its_cause() {
    let lab = Lab::with_host();
    let ids = lab.ids();
    for mistake in ON_A_HOST {
        let ended = lab.recipe(mistake.text).expect(mistake.code);
        let ended = ended.expect_says(mistake.says).expect_says(mistake.hint);
        check_place(&ended, mistake.place);
    }
    assert_eq!(lab.ids(), ids, "a failure lost the host");
}

/// A program that is at an address already and says 200 to everybody, until dropped.
struct Squatter {
    address: SocketAddr,
    is_leaving: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Squatter {
    fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let is_leaving = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_leaving);
        let answer = move || {
            for mut stream in listener.incoming().flatten().take_while(|_| !seen.load(Ordering::Acquire)) {
                // Who asked may have gone away.
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        };
        Self { address, is_leaving, thread: Some(std::thread::spawn(answer)) }
    }
}

impl Drop for Squatter {
    /// Another test's lab may get the address next, so it must be free when this returns.
    fn drop(&mut self) {
        self.is_leaving.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn taken_port_is_noticed_though_another_program_answers() {
    let lab = Lab::with_host();
    let address = SocketAddr::from((lab.instance("app-1").private_ip.unwrap(), 8000));
    let _squatter = Squatter::at(address);
    let text = "host.upload(build::program(\"worker\"), \"worker\"); host.service(#{ name: \"worker\", exec: \"./worker --listen {private_ip}:8000 --cluster c --instance-id {id}\", port: 8000, ready: \"/\" });";
    let ended = lab.recipe(text).expect(5);
    ended.expect_says(&format!("service worker on app-1: its address {address} is in use"));
}

#[test]
fn changed_host_key_is_refused() {
    let lab = Lab::with_host();
    let key = lab.home("app-1").join("host_key");
    std::fs::remove_file(&key).unwrap();
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.expect("ssh-keygen is installed").success());
    // The next agent reads the key anew.
    lab.kill_agent();
    let ended = lab.recipe("host.exec(\"touch reached\");").expect(5);
    ended.expect_says("host key changed").expect_says("expected SHA256:");
    assert!(!lab.home("app-1").join("root/reached").exists());
    lab.stop().expect(0);
    lab.assert_nothing_left();
}
