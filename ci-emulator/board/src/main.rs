//! `emulate`: runs Lunar on the emulator. The processes of a run are this program under other names.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lunar_board::demonstration::{self, Interrupted, Options};
use lunar_board::pieces::Role;
use lunar_board::report::thousands;

/// Runs Lunar on the emulator: starts the card, the host and an SRP initiator as processes of their
/// own, verifies an image over SRP and measures every kind of LUN.
#[derive(Debug, Parser)]
#[command(name = "emulate", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measures what two processes can do at most that move the same bytes with the same copies.
    Floor {
        /// How long, in seconds.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Speaks to the agent of a run that was started with --serve: `emulate lunar show`.
    #[command(disable_help_flag = true)]
    Lunar {
        /// What `lunar` is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let name = |word: &String| word.rsplit('/').next().unwrap_or("").to_owned();
    // As a piece of a run: by the program's name, or by its first argument.
    for from in 0..words.len().min(2) {
        if let Some(role) = Role::from_name(&name(&words[from])) {
            return finish(role.name(), role.run(&words[from..]));
        }
    }
    let Arguments { options, command } = Arguments::parse();
    match command {
        None => finish("emulate", demonstration::run(&options)),
        Some(Command::Floor { seconds }) => finish("emulate floor", floor(seconds)),
        Some(Command::Lunar { arguments }) => lunar(&arguments),
    }
}

fn finish(name: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // 128 + SIGINT, as shells say it.
        Err(error) if error.is::<Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn floor(seconds: f64) -> anyhow::Result<()> {
    let iops = lunar_board::floor::measure(Duration::try_from_secs_f64(seconds)?, 3)?;
    println!(
        "floor: {} transfers of 4 KiB a second at depth {}",
        thousands(iops),
        lunar_board::floor::DEPTH
    );
    Ok(())
}

fn lunar(arguments: &[String]) -> ExitCode {
    let name = std::iter::once("lunar".to_owned());
    let mut options = lunar_cli::Options::parse_from(name.chain(arguments.iter().cloned()));
    if options.api == Path::new(lunar_agent::api::SOCKET_DEFAULT)
        && let Some(serving) = demonstration::serving()
    {
        options.api = serving;
    }
    match lunar_cli::run(&options) {
        Ok(text) => lunar_cli::print(&text),
        Err(failure) => {
            eprintln!("lunar: {failure}");
            failure.exit_code()
        }
    }
}
