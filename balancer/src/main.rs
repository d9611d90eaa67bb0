//! Arguments, then the balancer, then an exit code.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use balancer::config::Config;
use balancer::{AskError, DriverChoice, Options, StartError};
use clap::Parser;

/// An HTTP/1.1 load balancer: requests for /NAME/... go to the cluster NAME of the configuration.
///
/// Runs in the foreground. SIGHUP reads the configuration again without dropping a request; SIGTERM stops accepting,
/// answers what is in flight and exits 0. GET /status says how the backends fare.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration, JSON. The smallest: {"listen": "127.0.0.1:8080", "clusters": {"app": {"backends":
    /// [{"id": "a", "address": "127.0.0.1:9000"}]}}}
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    check: bool,
    /// Print what the balancer that runs with this configuration says at PATH of its admin socket: /status,
    /// /metrics, or /decisions, the last 64 choices with the costs compared.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["check", "replace"])]
    ask: Option<String>,
    /// What to run on.
    #[arg(long, value_enum, default_value_t)]
    driver: DriverChoice,
    /// Take the listening sockets over from the balancer that runs with the same admin socket, if one does; it then
    /// drains and exits. SOCKET is its admin socket where that is not the configuration's.
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true)]
    replace: Option<Option<PathBuf>>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.ask {
        return ask(&arguments.config, path);
    }
    let result = if arguments.check {
        Config::read(&arguments.config).map(drop).map_err(StartError::from)
    } else {
        balancer::run(&Options {
            config: arguments.config,
            driver: arguments.driver,
            replace: arguments.replace,
        })
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            // As everywhere: 2 is for what the caller can put right in the arguments or the configuration.
            ExitCode::from(if matches!(error, StartError::Config(_)) { 2 } else { 1 })
        }
    }
}

fn ask(config: &Path, path: &str) -> ExitCode {
    match balancer::ask(config, path) {
        Ok(answer) => {
            // Whoever reads may have seen enough and closed the pipe.
            let _ = std::io::stdout().write_all(answer.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(&error);
            ExitCode::from(if matches!(error, AskError::Unreached { .. }) { 1 } else { 2 })
        }
    }
}

fn report(error: &dyn Error) {
    let mut message = format!("balancer: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    eprintln!("{message}");
}
