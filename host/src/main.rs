use std::{path::Path, process::ExitCode};

use labhost::provider::local;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["agent", "--state", state] => match local::agent_main(Path::new(state)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(error.kind.exit_code())
            }
        },
        ["guest", ..] => ExitCode::from(local::guest_main(&args[1..]) as u8),
        _ => ExitCode::from(2),
    }
}
