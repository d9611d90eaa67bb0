//! Arguments, then the balancer, then an exit code.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use balancer::config::Config;
use balancer::log::{self, LogFormat, LogLevel};
use balancer::{AccessOptions, AskError, DriverChoice, Options, StartError};
use clap::Parser;

const AFTER_HELP: &str = r#"A whole configuration:
{ "listen": "127.0.0.1:8080",
  "clusters": { "app": { "backends": [
    { "id": "a", "address": "127.0.0.1:9000" },
    { "id": "b", "address": "127.0.0.1:9001" } ] } } }

With it, http://127.0.0.1:8080/app/x goes, as /app/x, to whichever of the two
is expected to answer sooner. A cluster named `*` takes all other paths.
--check says what is wrong in a configuration and what could be meant.

Pages on the public address: / (the clusters), /status (JSON), /metrics
(Prometheus).

Signals:
  HUP        Read the configuration again, without dropping a request. One that
             does not check is refused, and the log says why; `listen`,
             `threads` and `admin` change only with a restart. The access log
             is opened again.
  USR2       Start this program anew, maybe in a new version, and hand the
             listening sockets over to it. If it cannot start, this process
             goes on.
  TERM, INT  Accept nobody else, answer what is under way, and exit after
             `drain_ms` (5 s) at the latest. A second one ends at once.

Exit codes:
  0  stopped as told, handed over, or nothing wrong with --check
  1  cannot start, or a thread was lost
  2  wrong arguments or a wrong configuration

Files:
  FILE       the configuration; only read
  FILE.sock  the admin socket, mode 0600 (elsewhere with the key `admin`):
             curl --unix-socket FILE.sock http://admin/status
             curl --unix-socket FILE.sock -X POST \
               http://admin/clusters/app/backends/a/drain      (or readmit)
  The log goes to standard error.
"#;

/// An HTTP/1.1 load balancer: requests for /NAME/... go to the cluster NAME of the configuration, each to the backend
/// that is expected to answer soonest.
///
/// Backends are probed, failing ones are passed over, and what can be sent again safely is. Runs in the foreground.
#[derive(Parser)]
#[command(version, after_long_help = AFTER_HELP)]
struct Arguments {
    /// The configuration, JSON
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration
    #[arg(long)]
    check: bool,
    /// Print what the balancer that runs with this configuration says at PATH of its admin socket: /status,
    /// /metrics, or /decisions, the last 64 choices with the costs compared
    #[arg(long, value_name = "PATH", conflicts_with_all = ["check", "replace"])]
    ask: Option<String>,
    /// What to run on
    #[arg(long, value_enum, default_value_t)]
    driver: DriverChoice,
    /// Take the listening sockets over from the balancer that runs with the same admin socket, if one does; it then
    /// drains and exits. SOCKET is its admin socket where that is not the configuration's
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true)]
    replace: Option<Option<PathBuf>>,
    /// How lines of the log are written, and those of the access log
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// The least important events that are logged
    #[arg(long, value_enum, default_value_t)]
    log_level: LogLevel,
    /// Write a line per request to FILE, or to standard output: time, client, method, target, status, cluster, backend,
    /// microseconds from the request's head to the answer's end, bytes sent, and what went wrong. Lines that the disk
    /// does not take in time are dropped, and counted in /metrics
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    access_log: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = arguments.log_format;
    log::init(format, arguments.log_level);
    if let Some(path) = &arguments.ask {
        return ask(&arguments.config, path, format);
    }
    let result = if arguments.check {
        Config::read(&arguments.config).map(drop).map_err(StartError::from)
    } else {
        balancer::run(&Options {
            config: arguments.config,
            driver: arguments.driver,
            replace: arguments.replace,
            access: arguments.access_log.map(|path| AccessOptions { path, format }),
        })
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, format);
            // As everywhere: 2 is for what the caller can put right in the arguments or the configuration.
            ExitCode::from(if matches!(error, StartError::Config(_)) { 2 } else { 1 })
        }
    }
}

fn ask(config: &Path, path: &str, format: LogFormat) -> ExitCode {
    match balancer::ask(config, path) {
        Ok(answer) => {
            // Whoever reads may have seen enough and closed the pipe.
            let _ = std::io::stdout().write_all(answer.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(&error, format);
            ExitCode::from(if matches!(error, AskError::Unreached { .. }) { 1 } else { 2 })
        }
    }
}

fn report(error: &dyn Error, format: LogFormat) {
    let mut message = format!("balancer: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    match format {
        // A standard error that takes nothing must not change the exit code.
        LogFormat::Text => drop(writeln!(std::io::stderr(), "{message}")),
        LogFormat::Json => tracing::error!("{message}"),
    }
}
