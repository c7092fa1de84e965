//! `lunar` as a program of its own.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match lunar_cli::run(&lunar_cli::Options::parse()) {
        Ok(text) => lunar_cli::print(&text),
        Err(failure) => {
            eprintln!("lunar: {failure}");
            failure.exit_code()
        }
    }
}
