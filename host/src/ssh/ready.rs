//! Waiting until a service on a host answers HTTP, asked from the host itself.
//!
//! The poll is one remote command, so an answer is noticed within a poll and a round trip, and no connection goes
//! from this machine to the instance except SSH's.

use std::{net::SocketAddr, time::Duration};

use super::{Command, Session, Stream, capture::Lines, quote, running::Input};
use crate::{Error, units::Span};

/// Between two polls. A service becomes ready once; 20 ms is below what a person or a run of seconds notices.
const POLL: &str = "0.02";
/// For one answer, so that a service that accepts and says nothing is asked again.
const ANSWER_MAX_S: u32 = 2;

/// Prints `status N` or a reason each time what it sees changes, and exits 0 at the wanted status.
///
/// Variables set before: `h` host, `p` port, `t` path, `w` wanted status, `o` poll, `a` answer's limit, `f` 1 when
/// the first look decides (exit 10 is no).
/// bash's /dev/tcp needs no other program: one poll costs a tenth of what starting curl does, which matters when
/// nine hosts share two cores. Its `read` on a pipe that stays silent is a sleep without a process.
const WITH_BASH: &str = r#"
trap '' PIPE; s=; y=; exec 4<> <(:)
n() { read -rt $o -u 4; }
say() { [ "$1" = "$s" ] || printf '%s\n' "$1"; s=$1; }
while :; do
  if { exec 3<>"/dev/tcp/$h/$p"; } 2>/dev/null; then
    y=; l=; printf 'GET %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n\r\n' "$t" "$h" "$p" >&3 2>/dev/null
    IFS= read -rt $a -u 3 l; exec 3>&-
    case $l in
      HTTP/*) l=${l#* }; say "status ${l:0:3}"; [ "${l:0:3}" = "$w" ] && exit 0 ;;
      '') say 'connected, no answer' ;;
      *) say 'an answer that is not HTTP' ;;
    esac
  elif [ -z "$y" ]; then
    y=$( (exec 3<>"/dev/tcp/$h/$p") 2>&1 ); y=${y##*: }
    case $y in *'No such file'*) exit 9 ;; '') ;; *) say "$y" ;; esac
  fi
  [ $f = 1 ] && exit 10
  n
done
"#;

const WITH_CURL: &str = r#"
s=
while :; do
  c=$(curl -s -o /dev/null -m $a -w '%{http_code}' "$u"); e=$?
  case $c in 000|'') l="no answer (curl exit $e)"; [ $e = 7 ] && l='connection refused' ;; *) l="status $c" ;; esac
  [ "$l" = "$s" ] || printf '%s\n' "$l"; s=$l
  [ "$c" = "$w" ] && exit 0; [ $f = 1 ] && exit 10; sleep $o
done
"#;

const WITH_WGET: &str = r#"
s=
while :; do
  r=$(wget -S -O /dev/null -T $a -t 1 "$u" 2>&1)
  c=$(printf '%s\n' "$r" | sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p' | head -n 1)
  case $c,$r in
    ,*refused*) l='connection refused' ;; ,*) l='no answer' ;; *) l="status $c" ;;
  esac
  [ "$l" = "$s" ] || printf '%s\n' "$l"; s=$l
  [ "$c" = "$w" ] && exit 0; [ $f = 1 ] && exit 10; sleep $o
done
"#;

/// Exit status when the host has nothing to ask with.
const NO_TOOL: i32 = 8;
/// Exit status of a single look that did not see the wanted status.
const NOT_NOW: i32 = 10;

fn poll_script(address: SocketAddr, path: &str, status: u16, is_once: bool) -> String {
    format!(
        "h={} p={} t={} w={status} o={POLL} a={ANSWER_MAX_S} u={} f={}; export h p t w o a u f\n\
         if command -v bash >/dev/null; then bash -c {}; r=$?; [ $r = 9 ] || exit $r; fi\n\
         if command -v curl >/dev/null; then {WITH_CURL}\nfi\n\
         if command -v wget >/dev/null; then {WITH_WGET}\nfi\nexit {NO_TOOL}",
        address.ip(),
        address.port(),
        quote(path),
        quote(&format!("http://{address}{path}")),
        u8::from(is_once),
        quote(WITH_BASH),
    )
}

impl Session {
    /// Waits until `GET path` at `address`, asked from the host, is answered with `status`; asks every 20 ms, and
    /// returns the status seen. At the deadline the error says what was seen last (`connection refused`,
    /// `status 503`).
    pub async fn wait_http(
        &self,
        address: SocketAddr,
        path: &str,
        status: u16,
        deadline: Duration,
    ) -> Result<u16, Error> {
        let operation = format!("wait for http://{address}{path} on {}", self.host());
        check_path(&operation, path)?;
        let mut seen = String::from("nothing");
        let mut on_line = |stream: Stream, line: &str| {
            if stream == Stream::Stdout {
                seen = line.to_lowercase();
            }
        };
        let mut lines = Lines::new(&mut on_line);
        let mut sink = |stream: Stream, bytes: &[u8]| {
            lines.push(stream, bytes);
            Ok(())
        };
        let command = Command::new(poll_script(address, path, status, false));
        // Dropped at the deadline, the poll is killed on the host in the background.
        let work = self.perform(&operation, &command, Input::Nothing, &mut sink);
        let result = tokio::time::timeout(deadline, work).await;
        match result {
            Ok(Ok((0, _))) => Ok(status),
            Ok(Ok((code, _))) => Err(poll_failed(&operation, code)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(not_ready(&operation, &seen, deadline)),
        }
    }

    /// Whether `GET path` at `address`, asked once from the host, is answered with `status` now.
    pub async fn answers(&self, address: SocketAddr, path: &str, status: u16) -> Result<bool, Error> {
        let operation = format!("ask http://{address}{path} on {}", self.host());
        check_path(&operation, path)?;
        let command = Command::new(poll_script(address, path, status, true));
        match self.perform(&operation, &command, Input::Nothing, &mut |_, _| Ok(())).await? {
            (0, _) => Ok(true),
            (NOT_NOW, _) => Ok(false),
            (code, _) => Err(poll_failed(&operation, code)),
        }
    }
}

fn check_path(operation: &str, path: &str) -> Result<(), Error> {
    if path.starts_with('/') && !path.chars().any(|c| c.is_control() || c == ' ') {
        return Ok(());
    }
    Err(Error::usage(format!("{operation}: the path must begin with `/` and hold no blanks")))
}

fn poll_failed(operation: &str, code: i32) -> Error {
    if code == NO_TOOL {
        return Error::host(format!("{operation}: the host has nothing to ask with"))
            .with_hint("install bash, curl or wget on the image");
    }
    Error::host(format!("{operation}: the poll ended with exit {code}"))
}

fn not_ready(operation: &str, seen: &str, deadline: Duration) -> Error {
    Error::host(format!("{operation}: not ready after {}; last seen: {seen}", Span(deadline)))
        .with_hint("the service's log says why: `labhost logs HOST SERVICE`")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        os::unix::fs::symlink,
        process::{Command, Stdio},
    };

    use super::*;

    /// Answers these statuses one after the other, then refuses.
    fn serve(answers: &'static [&'static str]) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                let head = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
            }
        });
        (address, server)
    }

    /// What the script prints on a host that has only these programs, and its exit status.
    fn poll_with(tools: &[&str], answers: &'static [&'static str]) -> (String, Option<i32>) {
        let programs = tempfile::tempdir().unwrap();
        for tool in ["sh", "sleep", "sed", "head"].iter().chain(tools) {
            let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap();
            let path = String::from_utf8(found.stdout).unwrap();
            assert!(!path.is_empty(), "this test needs {tool}: apt-get install {tool}");
            symlink(path.trim(), programs.path().join(tool)).unwrap();
        }
        let (address, server) = serve(answers);
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(poll_script(address, "/ready?a=b", 200, false));
        command.env_clear().env("PATH", programs.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        server.join().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    }

    fn installed(tool: &str) -> bool {
        Command::new("sh")
            .args(["-c", &format!("command -v {tool} >&2")])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    /// bash must be there; of the fallbacks those that are not installed are named in the test's output.
    #[test]
    fn each_tool_sees_the_same() {
        for tool in ["bash", "curl", "wget"] {
            if tool != "bash" && !installed(tool) {
                eprintln!("not tested, because it is not installed: waiting with {tool}");
                continue;
            }
            let seen = poll_with(&[tool], &["503 Busy", "503 Busy", "200 OK"]);
            assert_eq!(seen, ("status 503\nstatus 200\n".to_owned(), Some(0)), "with {tool}");
        }
    }

    #[test]
    fn a_host_without_any_tool_is_told_apart() {
        assert_eq!(poll_with(&[], &[]), (String::new(), Some(NO_TOOL)));
    }
}
