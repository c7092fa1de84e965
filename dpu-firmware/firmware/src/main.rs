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
    use std::sync::{Arc, OnceLock};

    use anyhow::{Context as _, bail, ensure};
    use lunar_firmware::{Card, GroupHardware, Options, Stop};
    use lunar_platform::HcaAttributes;
    use lunar_verbs_ibv::{Device, GroupPieces, HcaName, IbvListener, Ibverbs};

    /// Outstanding RDMA READs of a channel, as far as the device goes. Initiators answer 4 (Linux) to 16
    /// at a time; more would only wait in the send queue, and keep responses behind them from going out.
    const RDMA_READS_MAX: u32 = 16;
    /// Bytes of a transfer, as far as the device goes.
    const MESSAGE_BYTES_MAX: u32 = 16 << 20;

    /// Which RDMA hardware is used.
    #[derive(Clone, Debug, clap::Args)]
    pub struct Hardware {
        /// RDMA device that serves initiators, as `rdma link` names it, and one of its ports if only
        /// that is to be used: rxe0, mlx5_0:1. May be given several times; poll groups take turns at
        /// them, and the first one also leads to the host's memory.
        #[arg(long, value_name = "DEVICE[:PORT]", required = true, value_delimiter = ',')]
        hca: Vec<HcaName>,
        /// Address and RDMA port where initiators log in; may be given several times. 0.0.0.0 and
        /// [::] stand for all addresses of the devices. The RDMA port is what they write behind the
        /// address in `dest=`.
        #[arg(
            long,
            value_name = "ADDRESS:PORT",
            default_value = "0.0.0.0:5555",
            value_delimiter = ','
        )]
        listen: Vec<SocketAddr>,
        /// Poll groups without pinned cores; with --cores there is one for each core. There must be at
        /// least one for each --hca, which is also what there is without either.
        #[arg(long, value_name = "COUNT", conflicts_with = "cores")]
        groups: Option<u16>,
        /// Entries of a channel's send queue at most, as far as the device goes. Where they do not
        /// suffice for the target's request limit, initiators are granted fewer credits.
        #[arg(long, value_name = "COUNT", default_value_t = 4096)]
        srp_sq_size: u32,
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
        let removed = Arc::new(OnceLock::new());
        card.listener.when_removed({
            let (removed, stop) = (Arc::clone(&removed), stop.clone());
            move |name: &HcaName| {
                let _only_once = removed.set(name.clone());
                stop.request();
            }
        });
        lunar_firmware::run(card, options, &stop)?;
        if let Some(name) = removed.get() {
            bail!("RDMA device {name} was removed; start lunar-firmware again when it is back");
        }
        Ok(())
    }

    fn open(options: &Options, hardware: &Hardware) -> anyhow::Result<Card<Ibverbs>> {
        let devices: Vec<_> = hardware.hca.iter().map(Device::open).collect::<Result<_, _>>()?;
        let device_count = u16::try_from(devices.len()).context("more than 65535 times --hca")?;
        let count = match options.cores.len() {
            0 => hardware.groups.unwrap_or(device_count),
            cores => u16::try_from(cores).context("--cores names more than 65535 cores")?,
        };
        ensure!(
            count >= device_count,
            "{count} poll groups for {device_count} RDMA devices: each device needs at least one \
             (--groups, --cores)"
        );
        let limits = options.limits();
        let wanted = HcaAttributes {
            queue_pairs_max: limits.channels,
            send_queue_depth_max: hardware.srp_sq_size,
            shared_receive_queue_depth: limits.slots,
            // As many as all channels can cause: a receive each slot, a send each place.
            completion_queue_depth: limits
                .slots
                .saturating_add(limits.channels.saturating_mul(CHANNEL_COMPLETIONS)),
            rdma_reads_max: RDMA_READS_MAX,
            message_bytes_max: MESSAGE_BYTES_MAX,
        };
        let mut groups = Vec::with_capacity(usize::from(count));
        for (index, (device, place)) in (0..count).zip(devices.iter().zip(0..device_count).cycle())
        {
            let GroupPieces { hca, dma, memory } = device.group(index, wanted, &devices[0])?;
            groups.push(GroupHardware { device: place, hca, dma, memory });
        }
        let listener = IbvListener::new(&devices, &hardware.listen)?;
        for (index, address) in hardware.listen.iter().enumerate() {
            let port = listener.port(index).unwrap_or(address.port());
            tracing::info!(address = %address.ip(), port, "listening");
        }
        Ok(Card { listener, groups })
    }

    /// Completions that a channel with the largest usual request limit can cause.
    const CHANNEL_COMPLETIONS: u32 = 512;
}
