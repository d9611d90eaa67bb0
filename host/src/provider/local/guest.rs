//! `labhost-service`: how services are controlled on an instance, over SSH and by hand.
//!
//! This is an interface: another kind of instance has a program of the same name that understands the same
//! command lines and does the work with what it has (systemd, say).
//!
//! ```text
//! labhost-service apply NAME        definition on standard input; starts, restarts or leaves it
//! labhost-service start NAME
//! labhost-service stop NAME         SIGTERM, then SIGKILL after the definition's stop_timeout
//! labhost-service restart NAME
//! labhost-service reload NAME       SIGHUP to the main process
//! labhost-service status [NAME]     one service, or a list of all
//! labhost-service remove NAME       stops and forgets; no error when there is none
//! labhost-service logs NAME [-n LINES] [-f]
//! labhost-service host-key          the instance's new SSH host key on standard input (OpenSSH's private form)
//! labhost-service expires AT        the instance ends by itself at AT, in seconds since the epoch
//! labhost-service guard             fails unless there is something that ends the instance at its time
//! ```
//!
//! A definition is JSON: `exec` (one command, run by `/bin/sh -c 'exec COMMAND'` in the home directory), and if
//! wanted `env` (a map), `restart` (`always`, `on-failure`, `no`; always if not said), `hash` (any text; a new
//! one restarts the service), `reload_hash` (any text; when only it is new, the service gets SIGHUP),
//! `stop_timeout` (`"10s"`, at most 5 minutes), `handover` (`true` for a program that takes over from the one that
//! runs: a restart starts the new process first, and when that fails the old one goes on). A service that ends by
//! itself is started again after 100 ms, 200 ms, and so on; after five lives of under 5 s in a row it is `failed`.
//!
//! `apply` prints `{"changed": BOOL, "service": STATUS}`; `remove` prints `{"removed": NAME}`; `host-key` and
//! `expires` print `{}`, and connections that stand are kept; the others but `logs` print STATUS: `name`, `state`
//! (`running`, `starting`, `failed`, `stopped`), `pid`, `exit_status` (128 + the signal's number for a death by
//! signal), `restarts`, `since_s`, `hash`. NAME is 1 to 40 of a-z, 0-9 and `-`.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong command line; the reason is on stderr.
//!
//! `apply` and `start` do not wait until the service is ready for its clients: only its clients can tell.

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    keeper, log, unit,
    wire::{Act, Answer, REQUEST_BYTES_MAX, Request, ask_blocking},
};
use crate::{Error, Kind, error::Context};

/// Longer than the longest stop and the longest hand-over.
const PATIENCE: Duration =
    Duration::from_secs(unit::STOP_TIMEOUT_MAX.as_secs() + keeper::HAND_OVER_PATIENCE.as_secs() + 10);

/// Lines that `logs` shows if not told.
const LINES: usize = 100;

/// How often `logs -f` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

const USAGE: &str = "usage: labhost-service apply|start|stop|restart|reload|status|remove|logs NAME [-n LINES] [-f], \
                     host-key, expires AT, guard";

/// Runs one command line (without the program's name) and returns the exit status.
pub fn guest_main(args: &[String]) -> i32 {
    match run(args) {
        Ok(()) => 0,
        Err(error) => {
            note!("labhost-service: {error}");
            if let Some(hint) = &error.hint {
                note!("  {hint}");
            }
            if error.kind == Kind::Usage { 2 } else { 1 }
        }
    }
}

fn run(args: &[String]) -> Result<(), Error> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let shown = match args[..] {
        ["status"] => ask(Act::Status { name: None })?,
        ["host-key"] => {
            ask_agent(&Request::HostKey { instance: instance()?, secret: host_key()? })?;
            return print(&serde_json::json!({}));
        }
        ["expires", at] => {
            let expires_at_s = at.parse().map_err(|_| Error::usage(format!("{at:?} is no time")))?;
            ask_agent(&Request::Extend { expires_at_s })?;
            return print(&serde_json::json!({}));
        }
        // The agent ends the instance; it is there when it answers.
        ["guard"] => {
            ask(Act::Status { name: None })?;
            return print(&serde_json::json!({}));
        }
        ["logs", name, ref options @ ..] => return show_log(&checked(name)?, options),
        ["remove", name] => {
            ask(Act::Remove { name: checked(name)? })?;
            return print(&serde_json::json!({ "removed": name }));
        }
        [verb, name] => ask(act(verb, checked(name)?)?)?,
        _ => return Err(Error::usage(USAGE)),
    };
    match shown {
        Answer::Applied { changed, service } => {
            print(&serde_json::json!({ "changed": changed, "service": service }))
        }
        Answer::Service { service } => print(&service),
        Answer::Services { services } => print(&services),
        other => Err(Error::internal(format!("the agent gave an answer that does not fit: {other:?}"))),
    }
}

fn act(verb: &str, name: String) -> Result<Act, Error> {
    Ok(match verb {
        "apply" => Act::Apply { definition: definition(&name)?, name },
        "start" => Act::Start { name },
        "stop" => Act::Stop { name },
        "restart" => Act::Restart { name },
        "reload" => Act::Reload { name },
        "status" => Act::Status { name: Some(name) },
        _ => return Err(Error::usage(format!("there is no {verb:?}; {USAGE}"))),
    })
}

fn checked(name: &str) -> Result<String, Error> {
    unit::check_name(name).map_err(Error::usage)?;
    Ok(name.to_owned())
}

fn definition(name: &str) -> Result<unit::Definition, Error> {
    let mut text = Vec::new();
    let read = io::stdin().take(REQUEST_BYTES_MAX).read_to_end(&mut text);
    read.context(Kind::Host, || format!("apply service {name}: read standard input"))?;
    serde_json::from_slice(&text)
        .context(Kind::Usage, || format!("apply service {name}: read its definition"))
}

fn host_key() -> Result<String, Error> {
    let mut secret = String::new();
    let read = io::stdin().take(REQUEST_BYTES_MAX / 2).read_to_string(&mut secret);
    read.context(Kind::Host, || "host-key: read standard input".to_owned())?;
    Ok(secret)
}

fn outside(name: &str) -> Error {
    Error::usage(format!("{name} is not set: run this on an instance"))
}

fn instance() -> Result<String, Error> {
    env::var("INSTANCE_ID").map_err(|_| outside("INSTANCE_ID"))
}

fn ask(act: Act) -> Result<Answer, Error> {
    ask_agent(&Request::Service { instance: instance()?, act })
}

fn ask_agent(request: &Request) -> Result<Answer, Error> {
    let socket = env::var_os("LABHOST_AGENT").ok_or_else(|| outside("LABHOST_AGENT"))?;
    ask_blocking(Path::new(&socket), request, PATIENCE)
        .context(Kind::Host, || "ask the lab's agent".to_owned())?
        .checked()
}

fn print(value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string(value).context(Kind::Internal, || "write JSON".to_owned())?;
    writeln!(io::stdout(), "{text}").context(Kind::Host, || "print".to_owned())
}

fn show_log(name: &str, options: &[&str]) -> Result<(), Error> {
    let (lines, follow) = log_options(options)?;
    let Answer::Log { path } = ask(Act::Log { name: name.to_owned() })? else {
        return Err(Error::internal("the agent gave no path for the log"));
    };
    let failed = || format!("show log of {name}");
    let file = print_tail(&path, lines).context(Kind::Host, failed)?;
    if follow { print_on(&path, file).context(Kind::Host, failed) } else { Ok(()) }
}

fn log_options(options: &[&str]) -> Result<(usize, bool), Error> {
    let (mut lines, mut follow) = (LINES, false);
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        match *option {
            "-f" => follow = true,
            "-n" => {
                let number = rest.next().and_then(|text| text.parse().ok());
                lines = number.ok_or_else(|| Error::usage("-n takes a number of lines"))?;
            }
            other => return Err(Error::usage(format!("there is no option {other:?}; {USAGE}"))),
        }
    }
    Ok((lines, follow))
}

/// Prints the last lines, also from the file before the last rotation, and returns the log as read so far.
fn print_tail(path: &PathBuf, lines: usize) -> io::Result<Option<File>> {
    let mut text = fs::read(log::older(path)).unwrap_or_default();
    let mut file = match File::open(path) {
        Ok(file) => Some(file),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
        Err(cause) => return Err(cause),
    };
    if let Some(file) = &mut file {
        file.read_to_end(&mut text)?;
    }
    io::stdout().write_all(tail(&text, lines))?;
    Ok(file)
}

/// The last `lines` lines; an unfinished one at the end counts.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if lines == 0 || body.is_empty() {
        return b"";
    }
    let mut breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let start = breaks.nth(lines - 1).map_or(0, |at| at + 1);
    &text[start..]
}

/// Prints what is added, across rotations, until the reader goes away.
fn print_on(path: &PathBuf, mut file: Option<File>) -> io::Result<()> {
    loop {
        if let Some(file) = &mut file {
            io::copy(file, &mut io::stdout())?;
            io::stdout().flush()?;
        }
        std::thread::sleep(FOLLOW_EVERY);
        let Ok(current) = File::open(path) else { continue };
        let is_same = match &file {
            Some(file) => file.metadata()?.ino() == current.metadata()?.ino(),
            None => false,
        };
        if !is_same {
            if let Some(mut old) = file.replace(current) {
                io::copy(&mut old, &mut io::stdout())?;
            }
        } else if let Some(file) = &mut file
            && file.stream_position()? > file.metadata()?.len()
        {
            file.seek(SeekFrom::Start(0))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_whole_lines() {
        #[track_caller]
        fn check(text: &str, lines: usize, expected: &str) {
            assert_eq!(tail(text.as_bytes(), lines), expected.as_bytes());
        }
        check("", 3, "");
        check("a\nb\nc\n", 2, "b\nc\n");
        check("a\nb\nc", 2, "b\nc");
        check("a\nb\nc\n", 9, "a\nb\nc\n");
        check("a\n", 0, "");
        check("\n\n\n", 1, "\n");
    }

    #[test]
    fn wrong_command_lines_exit_2() {
        let exit = |args: &[&str]| guest_main(&args.iter().map(|&it| it.to_owned()).collect::<Vec<_>>());
        for args in [&[][..], &["start"], &["dance", "web"], &["start", "../web"], &["logs", "web", "-n"]] {
            assert_eq!(exit(args), 2, "{args:?}");
        }
    }
}
