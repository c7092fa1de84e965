//! `lunar-agent` as a program of its own.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    lunar_agent::run(&lunar_agent::Options::parse())
}
