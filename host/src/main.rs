//! Arguments -> engine -> run -> exit code; nothing else.

use std::{process::ExitCode, sync::Arc};

use labhost::{
    Error, Kind,
    cli::{self, Cli, Command},
    commands, docs, doctor,
    failure::Problem,
    locate,
    provider::local,
    runner::{self, Outcome},
    status,
    ui::Ui,
};

/// The exit code of a `--plan` that found something to do.
const WOULD_CHANGE: u8 = 10;

fn main() -> ExitCode {
    let Cli { options, command } = cli::parse();
    let ui = Arc::new(Ui::new(options.json));
    let one = |result: Result<(), Error>| result.map_err(|error| vec![Problem::from(error)]);
    let result = match command {
        Command::Recipe(words) => match runner::run(&options, &words, &ui) {
            Ok(Outcome::WouldChange) => return ExitCode::from(WOULD_CHANGE),
            result => result.map(drop),
        },
        Command::Check { recipe } => commands::check(&recipe, &ui),
        Command::Docs { name } => one(docs::show(name.as_deref(), &ui)),
        Command::Status => one(status::run(&options, &ui)),
        Command::Ssh { host, command } => one(commands::ssh(&options, &host, &command, &ui)),
        Command::Logs { host, service, follow, lines } => {
            one(commands::logs(&options, &host, &service, lines, follow, &ui))
        }
        Command::Extend { ttl } => one(commands::extend(&options, ttl, &ui)),
        Command::Doctor => one(doctor::run(&options, &ui)),
        Command::Agent => one(locate::state_dir(&options, None).and_then(|dir| local::agent_main(&dir))),
        Command::Guest { words } => {
            return ExitCode::from(u8::try_from(local::guest_main(&words)).unwrap_or(1));
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => report(&ui, &problems),
    }
}

fn report(ui: &Ui, problems: &[Problem]) -> ExitCode {
    for problem in problems {
        ui.error(&problem.failure.render(), problem.event());
    }
    ExitCode::from(problems.first().map_or(Kind::Internal, |problem| problem.kind).exit_code())
}
