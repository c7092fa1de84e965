//! `lunar-arena`: the keeper as a program of its own.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    let options = lunar_keeper::Options::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    lunar_keeper::run(&options)
}
