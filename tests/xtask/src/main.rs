//! `cargo xtask`: every check this project has, behind one command.
//!
//! Here live the command line and nothing else. What the checks are is in `stages`, what each
//! proves is told in docs/testing.md. xtask depends on no crate of the workspace, so that it builds
//! in seconds and still runs when they do not compile.

mod arrows;
mod child;
mod fuzz;
mod licences;
mod packages;
mod report;
mod source;
mod stages;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The checks of the Lunar workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test this machine can run, or only the named stages.
    Test {
        /// The stages to run, in the order of `--list`; all of them when none is named.
        stages: Vec<String>,
        /// Run the long forms: more seeds, longer fuzzing. Hours, not minutes.
        #[arg(long)]
        long: bool,
        /// List the stages and what each proves, and run nothing.
        #[arg(long)]
        list: bool,
    },
    /// Check which crate may depend on which.
    Arrows,
    /// Check the source text: unsafe, unfinished work, names, what a place may touch.
    Tidy,
    /// Check the licences and the origins of everything that is built.
    Licences,
    /// Boot the guest and run scenarios with Linux's own initiators in it; `vm --help` tells more.
    #[command(disable_help_flag = true)]
    Vm {
        /// What is passed on to lunar-conformance.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Fuzz one target until interrupted, or replay the given inputs once.
    Fuzz {
        /// A target of tests/fuzz; without one the targets are listed.
        target: Option<String>,
        /// Inputs to replay, each once, instead of fuzzing.
        inputs: Vec<PathBuf>,
        /// Stop after this many seconds; 0 runs until interrupted.
        #[arg(long, default_value_t = 0)]
        seconds: u32,
    },
}

fn main() -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match Arguments::parse().task {
        Task::Test { list: true, .. } => {
            stages::list();
            Ok(ExitCode::SUCCESS)
        }
        Task::Test { stages, long, .. } => stages::run(&workspace, &stages, long),
        Task::Arrows => verdict("arrows", arrows::check(&workspace)?),
        Task::Tidy => verdict("tidy", tidy::check(&workspace.root)?),
        Task::Licences => verdict("licences", licences::check(&workspace)?),
        Task::Vm { arguments } => {
            let status = workspace.conformance().args(arguments).status()?;
            Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        Task::Fuzz { target: None, .. } => {
            fuzz::targets(&workspace)?.iter().for_each(|name| println!("{name}"));
            Ok(ExitCode::SUCCESS)
        }
        Task::Fuzz { target: Some(target), inputs, seconds } => {
            if !fuzz::targets(&workspace)?.contains(&target) {
                bail!("no fuzz target `{target}`: `cargo xtask fuzz` lists them");
            }
            let ran = fuzz::run_one(&workspace, &target, &inputs, seconds)?;
            Ok(if ran { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Prints what a check found wrong; the exit code says whether there was anything.
fn verdict(check: &str, findings: Vec<String>) -> Result<ExitCode> {
    findings.iter().for_each(|finding| println!("{finding}"));
    println!("{check}: {} found", findings.len());
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
