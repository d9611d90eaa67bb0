//! `labhost doctor`: what this machine lacks for running labs, and how to get it; and what the account that the lab
//! runs on permits.
//!
//! It repairs nothing and launches nothing.

use std::{path::Path, process::Command, sync::Arc};

use serde_json::{Value, json};

use crate::{
    Error, Kind,
    cli::Options,
    locate, programs,
    provider::{Permit, Trial},
    ui::Ui,
};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works without, but not as well.
    Weak,
    Missing,
}

struct Finding {
    what: &'static str,
    verdict: Verdict,
    text: String,
}

impl Finding {
    fn new(what: &'static str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { what, verdict, text: text.into() }
    }

    fn row(&self) -> Value {
        let verdict = match self.verdict {
            Verdict::Good => "good",
            Verdict::Weak => "weak",
            Verdict::Missing => "MISSING",
        };
        json!({ "check": self.what, "result": verdict, "detail": self.text })
    }
}

/// Descriptors that a burst of 1000 requests needs on both sides of the balancer, with room to spare.
const DESCRIPTORS_WANTED: u64 = 4096;

/// Prints tables of findings. Errors with `Kind::Host` when something is missing that every lab needs, and with
/// `Kind::Provider` when the account refuses what a run or a teardown calls.
pub fn run(options: &Options, ui: &Arc<Ui>) -> Result<(), Error> {
    match (machine(ui), account(options, ui)) {
        (Err(error), Err(more)) => Err(error.with_detail(more.message)),
        (machine, account) => machine.and(account),
    }
}

fn machine(ui: &Ui) -> Result<(), Error> {
    let findings = [
        rust(),
        c_compiler(),
        static_libc(),
        ssh(),
        sha256sum(),
        http_client(),
        descriptors(),
        io_uring(),
        loopback(),
    ];
    let rows: Vec<_> = findings.iter().map(Finding::row).collect();
    ui.table(&rows, &["check", "result", "detail"].map(str::to_owned));
    let missing: Vec<_> = findings.iter().filter(|f| f.verdict == Verdict::Missing).map(|f| f.what).collect();
    if missing.is_empty() {
        ui.info("this machine can run labs");
        return Ok(());
    }
    Err(Error::new(Kind::Host, format!("missing: {}", missing.join(", ")))
        .with_hint("The table above says how to get each."))
}

/// Tries the calls of the provider that is named or that the lab here runs on.
fn account(options: &Options, ui: &Arc<Ui>) -> Result<(), Error> {
    let dir = match locate::state_dir(options, None) {
        Ok(dir) => dir,
        // Nobody asks for an account.
        Err(_) if options.provider.as_deref().is_none_or(|name| name == "local") => return Ok(()),
        Err(error) => return Err(error),
    };
    let provider = locate::provider(options, &dir, ui)?;
    let trials = locate::runtime()?.block_on(provider.examine())?;
    if trials.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = trials.iter().map(trial_row).collect();
    ui.table(&rows, &["call", "answer", "detail"].map(str::to_owned));
    sum_up(&trials, ui)
}

fn trial_row(trial: &Trial) -> Value {
    let answer = match trial.permit {
        Permit::Permitted => "permitted",
        Permit::Refused => "REFUSED",
        Permit::Unclear => "unclear",
    };
    json!({ "call": trial.call, "answer": answer, "detail": trial.detail })
}

fn sum_up(trials: &[Trial], ui: &Ui) -> Result<(), Error> {
    let calls = |permit| {
        let calls: Vec<_> = trials.iter().filter(|it| it.permit == permit).map(|it| it.call).collect();
        calls.join(", ")
    };
    let (refused, unclear) = (calls(Permit::Refused), calls(Permit::Unclear));
    if !refused.is_empty() {
        // The table may have no room for them.
        let words = trials.iter().filter(|it| it.permit == Permit::Refused);
        let words: Vec<_> = words.map(|it| format!("{}: {}", it.call, it.detail)).collect();
        return Err(Error::provider(format!("refused: {refused}"))
            .with_detail(words.join("\n"))
            .with_hint("README lists the permissions that labhost needs."));
    }
    if unclear.is_empty() {
        ui.info("this account permits all that a run and a teardown call");
    } else {
        ui.info(&format!(
            "nothing is refused, and unclear is: {unclear}. What is tried on a lab's own things shows when there are \
             some: ask again after a first run of one instance"
        ));
    }
    Ok(())
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
    output.status.success().then_some(line)
}

fn rust() -> Finding {
    match first_line("cargo", &["--version"]) {
        Some(version) => Finding::new("rust", Verdict::Good, version),
        None => {
            Finding::new("rust", Verdict::Missing, "cargo was not found; install it from https://rustup.rs")
        }
    }
}

fn c_compiler() -> Finding {
    match first_line("cc", &["--version"]) {
        Some(version) => Finding::new("c compiler", Verdict::Good, version),
        None => Finding::new(
            "c compiler",
            Verdict::Missing,
            "cc was not found; Debian: apt install gcc libc6-dev",
        ),
    }
}

fn static_libc() -> Finding {
    let found = first_line("cc", &["-print-file-name=libc.a"]).filter(|path| Path::new(path).is_absolute());
    match found {
        Some(path) => {
            Finding::new("static libc", Verdict::Good, format!("{path}, for {}", programs::target()))
        }
        None => {
            let how = "libc.a was not found; Debian: apt install libc6-dev, Fedora: dnf install glibc-static";
            Finding::new("static libc", Verdict::Missing, how)
        }
    }
}

fn ssh() -> Finding {
    match first_line("ssh", &["-V"]) {
        Some(version) => Finding::new("ssh client", Verdict::Good, version),
        None => Finding::new(
            "ssh client",
            Verdict::Missing,
            "ssh was not found; Debian: apt install openssh-client",
        ),
    }
}

fn sha256sum() -> Finding {
    match first_line("sha256sum", &["--version"]) {
        Some(version) => Finding::new("sha256sum", Verdict::Good, version),
        None => Finding::new(
            "sha256sum",
            Verdict::Missing,
            "sha256sum was not found; Debian: apt install coreutils",
        ),
    }
}

fn http_client() -> Finding {
    let found = [("bash", "--version"), ("curl", "--version"), ("wget", "--version")]
        .into_iter()
        .find_map(|(program, flag)| first_line(program, &[flag]));
    match found {
        Some(version) => Finding::new("bash or curl", Verdict::Good, version),
        None => {
            let how = "readiness is checked on the hosts with bash, curl or wget, and none was found";
            Finding::new("bash or curl", Verdict::Missing, how)
        }
    }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let text = format!("soft {}, hard {hard}", limit.current.unwrap_or(u64::MAX));
    if hard >= DESCRIPTORS_WANTED {
        return Finding::new(
            "descriptors",
            Verdict::Good,
            format!("{text}; the soft limit is raised when needed"),
        );
    }
    let how = format!(
        "{text}; large bursts need {DESCRIPTORS_WANTED}: raise `nofile` in /etc/security/limits.conf"
    );
    Finding::new("descriptors", Verdict::Weak, how)
}

/// Asks the kernel to set up a ring with invalid arguments: a kernel that allows rings answers "invalid" or "bad
/// address", one that does not "not permitted" or "no such call".
fn io_uring() -> Finding {
    // SAFETY: the kernel checks the pointer and refuses it; nothing is written.
    let answer = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<libc::c_void>()) };
    let cause = std::io::Error::last_os_error();
    match (answer, cause.raw_os_error()) {
        (-1, Some(libc::EPERM | libc::ENOSYS | libc::EACCES)) => Finding::new(
            "io_uring",
            Verdict::Weak,
            format!("refused ({cause}); the balancer uses epoll instead"),
        ),
        _ => Finding::new("io_uring", Verdict::Good, "allowed"),
    }
}

fn loopback() -> Finding {
    match std::net::TcpListener::bind("127.77.0.10:0") {
        Ok(_) => Finding::new("loopback", Verdict::Good, "addresses in 127.77.0.0/16 can be used"),
        Err(cause) => {
            let how = format!(
                "127.77.0.10 cannot be bound ({cause}); local instances need the whole of 127.0.0.0/8"
            );
            Finding::new("loopback", Verdict::Missing, how)
        }
    }
}
