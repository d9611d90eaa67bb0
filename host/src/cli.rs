//! The command line.
//!
//! `labhost RECIPE [ARGUMENTS]` and a few commands around it. Options of labhost may stand before or after the
//! recipe; what labhost does not know belongs to the recipe.

use std::{ffi::OsString, net::Ipv4Addr, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::units::Span;

/// Boots a lab, deploys to it, benchmarks it and tears it down, as a recipe says.
#[derive(Debug, Parser)]
#[command(
    name = "labhost",
    version,
    override_usage = "labhost [OPTIONS] RECIPE [ARGUMENTS]...\n       labhost [OPTIONS] COMMAND",
    after_help = "RECIPE is a Rhai script, for example recipes/run.rhai; `labhost RECIPE --help` says what it takes.\n\
                  Exit codes: 0 done, 1 recipe error, 2 usage, 3 recipe does not compile, 4 provider refused, 5 a host \
                  failed,\n6 objective failed, 7 confirmation missing, 8 teardown incomplete, 9 locked, 10 --plan found \
                  changes, 70 internal, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that hold for every command.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Where instances come from: `local` (this machine) or `ec2` [default: as in the last run here, else local].
    #[arg(long, global = true, env = "LABHOST_PROVIDER", value_name = "NAME")]
    pub provider: Option<String>,
    /// The folder for the lab's state, keys and results [default: `artifacts` beside `recipes`].
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How long a new lab lives before it ends by itself [default: 2h].
    #[arg(long, global = true, value_name = "TIME")]
    pub ttl: Option<Span>,
    /// The most that --ttl and `extend` may ask for.
    #[arg(long, global = true, default_value = "12h", value_name = "TIME")]
    pub max_ttl: Span,
    /// The most instances that the lab may have [default: 9 on ec2, 64 on this machine].
    #[arg(long, global = true, value_name = "COUNT")]
    pub max_instances: Option<usize>,
    /// The most that the lab may cost per hour, in US dollars.
    #[arg(long, global = true, value_name = "DOLLARS")]
    pub max_hourly: Option<f64>,
    /// Show what a recipe would change, and change nothing; exit code 10 when there is something.
    #[arg(long, global = true)]
    pub plan: bool,
    /// Terminate fleets that the recipe no longer names.
    #[arg(long, global = true)]
    pub prune: bool,
    /// End the recipe after this time.
    #[arg(long, global = true, default_value = "1h", value_name = "TIME")]
    pub time_limit: Span,
    /// Make a saved benchmark result that is invalid, or does not show an objective, a failure (exit code 6).
    #[arg(long, global = true)]
    pub strict: bool,
    /// One JSON event per line on standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub ec2: Ec2Options,
}

/// Options of the ec2 provider; the others ignore them.
#[derive(Debug, Clone, Default, Args)]
pub struct Ec2Options {
    /// ec2: the region [default: from the environment or the AWS profile, else us-east-1].
    #[arg(long, global = true, value_name = "NAME")]
    pub region: Option<String>,
    /// ec2: this machine's public IPv4 address, for rules from "me" [default: AWS's checkip.amazonaws.com is asked].
    #[arg(long, global = true, env = "LABHOST_MY_IP", value_name = "ADDRESS")]
    pub my_ip: Option<Ipv4Addr>,
    /// ec2: whose instances these are, for accounts that several people share [default: the caller's identity].
    #[arg(long, global = true, env = "LABHOST_OWNER", value_name = "NAME")]
    pub owner: Option<String>,
    /// ec2: act on the lab with this tag labhost:lab instead of this folder's.
    #[arg(long, global = true, value_name = "ID")]
    pub lab: Option<String>,
}

/// How long a lab lives unless told otherwise: forgotten machines are what labs cost most.
const TTL: Span = Span(Duration::from_secs(2 * 3600));

impl Options {
    /// The lifetime of a new lab.
    #[must_use]
    pub fn lifetime(&self) -> Span {
        self.ttl.unwrap_or_else(|| TTL.min(self.max_ttl))
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find mistakes in a recipe without running it.
    Check { recipe: String },
    /// Show what recipes can call: everything, a module (`ec2`) or a function (`ec2::instances`).
    Docs { name: Option<String> },
    /// Show the lab's instances and services.
    Status,
    /// Log in to a host, or run a command on it.
    Ssh {
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Show what a service on a host has printed.
    Logs {
        host: String,
        service: String,
        /// Go on showing new lines until Ctrl-C.
        #[arg(long, short)]
        follow: bool,
        /// How many lines from the end.
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: u32,
    },
    /// Let the lab live for this long from now, for example 2h.
    Extend { ttl: Span },
    /// Say what is missing on this machine and how to get it, and on ec2 what the account permits.
    Doctor,
    #[command(hide = true)]
    Agent,
    #[command(hide = true)]
    Guest {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Anything else is a recipe and its arguments.
    #[command(external_subcommand)]
    Recipe(Vec<String>),
}

#[derive(Debug, Parser)]
#[command(name = "labhost", no_binary_name = true)]
struct OptionsOnly {
    #[command(flatten)]
    options: Options,
}

/// Reads the command line; prints help or a usage error and ends the process where clap does.
#[must_use]
pub fn parse() -> Cli {
    match parse_from(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    }
}

/// Words may be any bytes: clap says what is wrong where text is needed, and a path need not be text.
fn parse_from(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(&words)?;
    let Command::Recipe(recipe) = cli.command else { return Ok(cli) };
    let Some((name, rest)) = recipe.split_first() else {
        return Err(Cli::command().error(clap::error::ErrorKind::MissingSubcommand, "a recipe is missing"));
    };
    // The options before the recipe are read again together with those after it.
    let before = words.len() - recipe.len();
    let (own, rest) = hoist(rest);
    let own = own.into_iter().map(OsString::from);
    let options = OptionsOnly::try_parse_from(words[1..before].iter().cloned().chain(own))?.options;
    let command = Command::Recipe(std::iter::once(name.clone()).chain(rest).collect());
    Ok(Cli { options, command })
}

/// Takes labhost's own options out of a recipe's words; after `--` everything is the recipe's.
fn hoist(words: &[String]) -> (Vec<String>, Vec<String>) {
    let command = OptionsOnly::command();
    let (mut own, mut rest) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            rest.push(word.clone());
            rest.extend(words.by_ref().cloned());
            break;
        }
        let name = word.strip_prefix("--").map(|flag| flag.split('=').next().unwrap_or(flag));
        let known = command.get_arguments().find(|argument| name.is_some() && argument.get_long() == name);
        match known {
            None => rest.push(word.clone()),
            Some(argument) => {
                own.push(word.clone());
                if argument.get_action().takes_values() && !word.contains('=') {
                    own.extend(words.next().cloned());
                }
            }
        }
    }
    (own, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Cli, clap::Error> {
        parse_from(std::iter::once("labhost").chain(words.split_whitespace()).map(OsString::from).collect())
    }

    #[test]
    fn options_may_stand_on_either_side_of_the_recipe() {
        let cli = parsed("--ttl 1h recipes/run.rhai a --json --mode closed --state /x -- --prune").unwrap();
        assert!(cli.options.json && !cli.options.prune);
        assert_eq!(cli.options.ttl.unwrap().to_string(), "1h");
        assert_eq!(cli.options.state, Some(PathBuf::from("/x")));
        let Command::Recipe(words) = cli.command else { panic!("no recipe") };
        assert_eq!(words, ["recipes/run.rhai", "a", "--mode", "closed", "--", "--prune"]);
    }

    #[test]
    fn words_that_are_no_text_are_refused_where_text_is_needed() {
        use std::os::unix::ffi::OsStringExt as _;
        let parsed = |words: &[&[u8]]| -> Result<Cli, clap::Error> {
            let words = words.iter().map(|word| OsString::from_vec(word.to_vec()));
            parse_from(std::iter::once(OsString::from("labhost")).chain(words).collect())
        };
        let refused: [&[&[u8]]; 3] = [&[b"\xff.rhai"], &[b"x.rhai", b"\xff"], &[b"check", b"\xff"]];
        for words in refused {
            assert_eq!(parsed(words).unwrap_err().exit_code(), 2);
        }
        assert!(parsed(&[b"--state", b"/\xff", b"status"]).is_ok());
    }

    #[test]
    fn commands_are_told_from_recipes() {
        assert!(matches!(parsed("status --json").unwrap().command, Command::Status));
        assert!(matches!(parsed("check recipes/run.rhai").unwrap().command, Command::Check { .. }));
        assert!(parsed("").is_err());
        assert!(parsed("run.rhai --ttl soon").is_err());
    }
}
