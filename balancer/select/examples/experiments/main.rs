//! The experiments by which policies are judged, on the simulator.
//!
//! ```text
//! cargo run --release -p select --example experiments -- E0 E1 --seeds 20 --policies ours,least-outstanding
//! ```
//! Without names it runs all of them; `--only TEXT` picks the cases whose names contain it. Each case prints one table:
//! means over the seeds with bootstrap intervals of 95 %, the share of the gap between round-robin and the clairvoyant
//! that a policy closes, and how it compares with the best of the others. The last table says how the default policy
//! stands everywhere.

mod cases;
mod faults;
mod measure;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use select::PolicyKind;
use select::sim::{Contender, Order};

use crate::cases::Case;
use crate::measure::Measured;

/// What was asked for on the command line.
struct Options {
    experiments: Vec<String>,
    seeds: u64,
    policies: Vec<Contender>,
    /// Only cases whose names contain this.
    only: String,
    /// Only the last table.
    brief: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let mut verdicts = Vec::new();
    let (mut requests, mut seconds) = (0usize, 0.0);
    for case in cases::all().into_iter().filter(|case| options.wants(case)) {
        let begin = now();
        let measured: Vec<Measured> = options
            .policies
            .iter()
            .map(|contender| measure::measure(&case, contender, options.seeds))
            .collect();
        requests += measured.iter().map(|measured| measured.requests).sum::<usize>();
        seconds += begin.elapsed().as_secs_f64();
        if !options.brief {
            println!("{}", table::of_case(&case, &measured));
        }
        verdicts.extend(table::verdict(&case, &measured));
    }
    println!("{}", table::of_verdicts(&verdicts));
    println!(
        "{requests} requests in {seconds:.0} s: {:.2} million a second",
        requests as f64 / seconds / 1e6
    );
    ExitCode::SUCCESS
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        let named =
            self.experiments.is_empty() || self.experiments.iter().any(|name| name == case.experiment);
        named && case.name.contains(&self.only)
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how fast the simulation runs")]
fn now() -> Instant {
    Instant::now()
}

/// Everyone, the default policy first.
fn everyone() -> Vec<Contender> {
    let ours = PolicyKind::default();
    let others = PolicyKind::ALL.into_iter().filter(|&kind| kind != ours);
    let mut all: Vec<Contender> = std::iter::once(ours).chain(others).map(Contender::Real).collect();
    all.extend([
        Contender::Prequal { hot_quantile: 0.6 },
        Contender::Prequal { hot_quantile: 0.84 },
        Contender::C3,
        Contender::WeightedRoundRobin,
        Contender::Oracle(Order::Arrival),
        Contender::Oracle(Order::Work),
    ]);
    all
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        experiments: Vec::new(),
        seeds: 20,
        policies: everyone(),
        only: String::new(),
        brief: false,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--brief" => options.brief = true,
            "--only" => options.only = arguments.next().ok_or("--only takes a part of a case's name")?,
            "--seeds" => {
                let count = arguments.next().and_then(|count| count.parse().ok()).filter(|&count| count > 0);
                options.seeds = count.ok_or("--seeds takes a number above 0")?;
            }
            "--policies" => {
                let names = arguments.next().ok_or("--policies takes names with commas between them")?;
                options.policies = names.split(',').map(by_name).collect::<Result<_, _>>()?;
            }
            name if cases::all().iter().any(|case| case.experiment == name) => {
                options.experiments.push(argument);
            }
            other => return Err(format!("no experiment or option is called `{other}`; there are E0 to E13")),
        }
    }
    Ok(options)
}

fn by_name(name: &str) -> Result<Contender, String> {
    if let Ok(kind) = name.parse::<PolicyKind>() {
        return Ok(Contender::Real(kind));
    }
    let known: Vec<String> = everyone().iter().map(Contender::name).collect();
    let found = everyone().into_iter().find(|contender| contender.name() == name);
    found.ok_or_else(|| format!("no policy is called `{name}`; there are {}", known.join(", ")))
}
