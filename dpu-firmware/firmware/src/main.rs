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
    #[cfg(feature = "ibverbs")]
    #[command(flatten)]
    hardware: ibverbs::Hardware,
}

#[cfg(feature = "ibverbs")]
fn main() -> anyhow::Result<()> {
    let Arguments { options, hardware } = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    ibverbs::run(&options, &hardware)
}

#[cfg(not(feature = "ibverbs"))]
fn main() -> anyhow::Result<()> {
    let Arguments { options } = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    anyhow::bail!(
        "this lunar-firmware was built without a hardware provider, so there is no HCA to serve \
         (control channel {}); build it with the provider of your card, cargo build -p \
         lunar-firmware --features ibverbs, or run the emulator: cargo run --release",
        options.control
    )
}

/// The provider for RDMA devices of the kernel: rxe, ConnectX, BlueField and all others.
#[cfg(feature = "ibverbs")]
mod ibverbs {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::{Context as _, ensure};
    use lunar_firmware::{Card, GroupHardware, Options, Stop};
    use lunar_platform::HcaAttributes;
    use lunar_verbs_ibv::{Device, GroupPieces, HcaName, IbvListener, Ibverbs};

    /// Send-queue entries a channel may ask for, outstanding RDMA READs, and bytes of a transfer: as
    /// far as the device goes.
    const SEND_QUEUE_DEPTH_MAX: u32 = 4096;
    const RDMA_READS_MAX: u32 = 16;
    const MESSAGE_BYTES_MAX: u32 = 16 << 20;

    /// Which RDMA hardware is used.
    #[derive(Clone, Debug, clap::Args)]
    pub struct Hardware {
        /// RDMA device that serves initiators, as `rdma link` names it, and one of its ports if only
        /// that is to be used: rxe0, mlx5_0:1.
        #[arg(long, value_name = "DEVICE[:PORT]")]
        hca: HcaName,
        /// Address and RDMA port where initiators log in; may be given several times. 0.0.0.0 and
        /// [::] stand for all addresses of the device. The RDMA port is what they write behind the
        /// address in `dest=`.
        #[arg(
            long,
            value_name = "ADDRESS:PORT",
            default_value = "0.0.0.0:5555",
            value_delimiter = ','
        )]
        listen: Vec<SocketAddr>,
        /// Poll groups without pinned cores; with --cores there is one for each core.
        #[arg(long, value_name = "COUNT", default_value_t = 1, conflicts_with = "cores")]
        groups: u16,
    }

    /// Opens the hardware and runs the card until SIGTERM, SIGINT, or the end of standard input where
    /// the options say so.
    pub fn run(options: &Options, hardware: &Hardware) -> anyhow::Result<()> {
        let stop = Stop::default();
        stop.on_signals()?;
        if options.exit_with_parent {
            stop.with_parent()?;
        }
        let mut card = open(options, hardware)?;
        let removed = Arc::new(AtomicBool::new(false));
        card.listener.when_removed({
            let (removed, stop) = (Arc::clone(&removed), stop.clone());
            move || {
                removed.store(true, Ordering::Release);
                stop.request();
            }
        });
        lunar_firmware::run(card, options, &stop)?;
        ensure!(
            !removed.load(Ordering::Acquire),
            "RDMA device {} was removed; start lunar-firmware again when it is back",
            hardware.hca
        );
        Ok(())
    }

    fn open(options: &Options, hardware: &Hardware) -> anyhow::Result<Card<Ibverbs>> {
        let count = match options.cores.len() {
            0 => hardware.groups,
            cores => u16::try_from(cores).context("--cores names more than 65535 cores")?,
        };
        ensure!(count > 0, "--groups 0: there must be a poll group");
        let device = Device::open(&hardware.hca)?;
        let limits = options.limits();
        let wanted = HcaAttributes {
            queue_pairs_max: limits.channels,
            send_queue_depth_max: SEND_QUEUE_DEPTH_MAX,
            shared_receive_queue_depth: limits.slots,
            // As many as all channels can cause: a receive each slot, a send each place.
            completion_queue_depth: limits
                .slots
                .saturating_add(limits.channels.saturating_mul(CHANNEL_COMPLETIONS)),
            rdma_reads_max: RDMA_READS_MAX,
            message_bytes_max: MESSAGE_BYTES_MAX,
        };
        let mut groups = Vec::with_capacity(usize::from(count));
        for index in 0..count {
            let GroupPieces { hca, dma, memory } = device.group(index, wanted)?;
            groups.push(GroupHardware { hca, dma, memory });
        }
        let listener = IbvListener::new(&device, &hardware.listen)?;
        for (index, address) in hardware.listen.iter().enumerate() {
            let port = listener.port(index).unwrap_or(address.port());
            tracing::info!(device = %device.name(), address = %address.ip(), port, "listening");
        }
        Ok(Card { listener, groups })
    }

    /// Completions that a channel with the largest usual request limit can cause.
    const CHANNEL_COMPLETIONS: u32 = 512;
}
