//! `lunar-firmware`: the card's process with the real providers. They sit behind features; a build
//! without any of them starts and says what is missing.
#![forbid(unsafe_code)]

use clap::Parser;

/// The data path of Lunar on the card: SRP over RDMA in, the host agent's backends out.
#[derive(Debug, Parser)]
#[command(name = "lunar-firmware", version)]
struct Arguments {
    #[command(flatten)]
    options: lunar_firmware::Options,
}

fn main() -> anyhow::Result<()> {
    let Arguments { options } = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    anyhow::bail!(
        "this lunar-firmware was built without a hardware provider, so there is no HCA to serve \
         (control channel {}); build it with the provider of your card, or run the emulator: \
         cargo run --release",
        options.control.display()
    )
}
