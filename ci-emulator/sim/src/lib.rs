//! The whole system under one seed: the real card (poll groups, coordinator, agent link), the real
//! agent core and ring pairs, model initiators and memory disks, in one thread and in virtual time.
//!
//! Everything that could be otherwise (latencies, the order of ticks, lost hints, faults, load) is
//! drawn from one generator, so a seed replays exactly: the hash over all events is the same. What is
//! judged is in [`laws`]; no decision of the product may be repeated here.
#![forbid(unsafe_code)]

mod agent;
mod card;
mod channel;
pub mod coverage;
#[cfg(test)]
mod directed;
mod disk;
mod faults;
mod journal;
pub mod laws;
mod load;
mod order;
mod random;
mod reserving;
mod seen;
mod units;
mod wire;
mod world;

pub use world::{Counts, Failure, Plan, Summary};

/// Runs one seed.
///
/// # Errors
/// The first law that was broken, with the last events.
pub fn run(plan: Plan) -> Result<Summary, Box<Failure>> {
    world::World::new(plan).run()
}
