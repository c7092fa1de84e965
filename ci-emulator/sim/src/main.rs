//! `lunar-sim`: runs seeds, and says of a failing one what broke and how to see it again.

use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use lunar_sim::coverage::Coverage;
use lunar_sim::{Failure, Plan, Summary};

/// Runs the whole system (card, agent, initiators, disks) under seeds of one random generator, in
/// virtual time, and judges what initiators see and what lands on the media.
#[derive(Parser, Debug)]
#[command(name = "lunar-sim", version)]
struct Arguments {
    /// Seeds to run.
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    seeds: u64,
    /// The first of them.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Commands of one seed.
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    commands: u64,
    /// Run the deliberate mistakes, each until a seed catches it (needs the feature `mutants`).
    #[arg(long)]
    mutants: bool,
    /// Run the seeds with one deliberate mistake, by its name, to look at it.
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Fail when a disturbance missed a task state that it can meet.
    #[arg(long)]
    coverage: bool,
    /// Print every event.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!("commit {}", commit());
    if let Some(name) = &arguments.mutant
        && !choose_by_name(name)
    {
        return ExitCode::FAILURE;
    }
    let good = if arguments.mutants { run_mutants(&arguments) } else { run_seeds(&arguments) };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The commit this tree is at, for the report.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

fn run_seeds(arguments: &Arguments) -> bool {
    let start = Instant::now();
    let mut coverage = Coverage::default();
    let mut commands = 0;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        println!("seed {seed}");
        let plan = Plan { seed, commands: arguments.commands, trace: arguments.trace };
        match run_twice(plan) {
            Ok(summary) => {
                coverage.merge(&summary.coverage);
                commands += 2 * summary.commands;
                print_summary(&summary);
            }
            Err(failure) => {
                print_failure(&plan, &failure);
                return false;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} seeds, each twice with the same hash; {:.0} commands a second",
        arguments.seeds,
        commands as f64 / seconds
    );
    println!("\n{coverage}");
    judge_coverage(&coverage, arguments.coverage)
}

fn judge_coverage(coverage: &Coverage, required: bool) -> bool {
    let missed = coverage.missed();
    for (cause, state) in &missed {
        println!("not reached: {cause} in {state:?}");
    }
    let impossible = coverage.impossible();
    for (cause, state) in &impossible {
        println!("reached although said to be impossible: {cause} in {state:?}");
    }
    impossible.is_empty() && (missed.is_empty() || !required)
}

/// Runs a seed twice: both must agree in every event.
fn run_twice(plan: Plan) -> Result<Summary, Box<Failure>> {
    let first = lunar_sim::run(plan)?;
    let second = lunar_sim::run(Plan { trace: false, ..plan })?;
    assert_eq!(
        (first.hash, first.events),
        (second.hash, second.events),
        "seed {} gives two different runs",
        plan.seed
    );
    Ok(first)
}

fn print_summary(summary: &Summary) {
    let counts = &summary.counts;
    println!(
        "  hash {:016x} (twice), {} events, {} commands in {:.1} ms of virtual time",
        summary.hash,
        summary.events,
        summary.commands,
        summary.now as f64 / 1e6
    );
    println!(
        "  {} good, {} check conditions, {} busy or full, {} conflicts, {} aborted, {} lost; {} about reservations, {} copies; \
         {} functions; {} logins ({} refused); {} agents and {} cards died, {} control channels lost, {} revokes, {} cuts, {} configurations; {} landings",
        counts.good,
        counts.check_conditions,
        counts.refused,
        counts.conflicts,
        counts.aborted,
        counts.lost,
        counts.reserving,
        counts.copies,
        counts.functions,
        counts.logins,
        counts.rejects,
        counts.restarts,
        counts.card_restarts,
        counts.control_losses,
        counts.revokes,
        counts.cuts,
        counts.configurations,
        counts.landed
    );
}

fn print_failure(plan: &Plan, failure: &Failure) {
    println!("the last events:");
    for line in &failure.last {
        println!("  {line}");
    }
    println!("seed {} broke a law after {} commands", plan.seed, failure.commands);
    println!("  {}", failure.broken);
    println!(
        "again: cargo run --release -p lunar-sim -- --seed {} --seeds 1 --commands {} --trace",
        plan.seed, plan.commands
    );
}

#[cfg(feature = "mutants")]
mod mutants {
    use lunar_core::mutant::Mutant as Agent;
    use lunar_sim::laws::Law;
    use lunar_target::mutant::Mutant as Card;

    /// A mistake of either side.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Mutant {
        Card(Card),
        Agent(Agent),
    }

    impl Mutant {
        pub(crate) fn name(self) -> String {
            match self {
                Self::Card(mutant) => format!("{mutant:?}"),
                Self::Agent(mutant) => format!("{mutant:?}"),
            }
        }

        /// Makes this mistake from now on, and no other.
        pub(crate) fn choose(self) {
            let (card, agent) = match self {
                Self::Card(mutant) => (mutant, Agent::None),
                Self::Agent(mutant) => (Card::None, mutant),
            };
            lunar_target::mutant::choose(card);
            lunar_core::mutant::choose(agent);
        }
    }

    pub(crate) const NONE: Mutant = Mutant::Card(Card::None);

    // Each with the laws that it breaks: another one's alarm would be a mistake of ours.
    pub(crate) const MUTANTS: [(Mutant, &[Law]); 12] = [
        (Mutant::Card(Card::NoRecheckAtSubmit), &[Law::ReadOnly, Law::Reservation]),
        // An aborted command may also be answered late.
        (Mutant::Card(Card::GoodBeforeDrain), &[Law::LateWrite, Law::Protocol, Law::Order]),
        (Mutant::Card(Card::NoFlush), &[Law::ReadData]),
        (Mutant::Card(Card::UnitAttentionAfterGood), &[Law::UnitAttention]),
        (Mutant::Card(Card::LateWriteAfterAbort), &[Law::LateWrite]),
        (Mutant::Card(Card::TaskSetsApart), &[Law::Order]),
        // The nexus that should have ended goes on, without the unit attention of a new one.
        (Mutant::Card(Card::LoginBeforeDrain), &[Law::LateWrite, Law::UnitAttention]),
        // Whatever closes a LUN to writes waits for too little.
        (Mutant::Card(Card::DrainOfOneChannel), &[Law::ReadOnly, Law::Reservation]),
        // The unit attentions are late as well.
        (Mutant::Agent(Agent::GoodBeforeEnforced), &[Law::Reservation, Law::UnitAttention]),
        (Mutant::Agent(Agent::GoodBeforeKept), &[Law::Reservation, Law::UnitAttention]),
        (Mutant::Agent(Agent::ReadBeforeEnforced), &[Law::Reservation]),
        (Mutant::Agent(Agent::CopyNotFenced), &[Law::Reservation]),
    ];
}

#[cfg(feature = "mutants")]
fn choose_by_name(name: &str) -> bool {
    let known = mutants::MUTANTS.iter().find(|(mutant, _)| mutant.name() == name);
    match known {
        Some((mutant, _)) => mutant.choose(),
        None => println!("no mutant is called {name}"),
    }
    known.is_some()
}

#[cfg(not(feature = "mutants"))]
fn choose_by_name(_: &str) -> bool {
    run_mutants_hint()
}

#[cfg(feature = "mutants")]
fn run_mutants(arguments: &Arguments) -> bool {
    let mut all = true;
    for (mutant, laws) in mutants::MUTANTS {
        mutant.choose();
        let seeds = arguments.seed..arguments.seed.saturating_add(arguments.seeds);
        let caught = seeds.into_iter().find_map(|seed| {
            let plan = Plan { seed, commands: arguments.commands, trace: false };
            lunar_sim::run(plan).err().map(|failure| (seed, failure))
        });
        mutants::NONE.choose();
        let name = mutant.name();
        match caught {
            Some((seed, failure)) => {
                let as_expected = laws.contains(&failure.broken.law);
                all &= as_expected;
                println!(
                    "{name}: caught by seed {seed} after {} commands{}: {}",
                    failure.commands,
                    if as_expected { "" } else { ", BUT BY ANOTHER LAW" },
                    failure.broken
                );
            }
            None => {
                all = false;
                println!("{name}: NOT caught by {} seeds", arguments.seeds);
            }
        }
    }
    all
}

#[cfg(not(feature = "mutants"))]
fn run_mutants(_: &Arguments) -> bool {
    run_mutants_hint()
}

#[cfg(not(feature = "mutants"))]
fn run_mutants_hint() -> bool {
    println!(
        "this build has no mutants: cargo run --release -p lunar-sim --features mutants -- --mutants"
    );
    false
}
