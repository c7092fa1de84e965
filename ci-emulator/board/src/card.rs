//! `lunar-firmware` on the emulator: the card's process with emulated providers. The code that runs
//! on them is the product's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lunar_firmware::{Card, GroupHardware, Stop};
use lunar_hca::{DeviceConfig, Emulated, EmulatedDevice, Fabric};
use lunar_keeper::client::Notice;
use lunar_keeper::layout::{DATA_ARENA, RING_ARENA};
use lunar_keeper::{Client, Offer};
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, DmaConfig, EmulatedDma, ExportBlob, HintLine, HostSlot,
    PlacementMode, Segment,
};
use lunar_platform::{ArenaId, HcaAttributes};

/// The service that initiators ask for on the fabric.
pub const SERVICE: &str = "card";

/// How long a keeper that is being started beside the firmware may take to answer.
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);

/// Card memory beside the SGV arena that a poll group may claim, in bytes: receive, response and
/// parameter buffers.
const CONTROL_BYTES_MAX: u64 = 256 << 20;

/// What the emulated `lunar-firmware` is told on its command line.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lunar-firmware", version, about = "The card's process, on emulated hardware")]
pub struct Arguments {
    /// How it runs.
    #[command(flatten)]
    pub options: lunar_firmware::Options,
    /// The keeper's socket: the host whose memory is on the bus.
    #[arg(long, value_name = "PATH")]
    pub keeper: PathBuf,
    /// Directory of the fabric that initiators reach the card on.
    #[arg(long, value_name = "PATH")]
    pub fabric: PathBuf,
}

/// Runs the card until SIGTERM, SIGINT, or the end of standard input where the options say so.
///
/// # Errors
/// What keeps the card from starting.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = Stop::default();
    stop.on_signals()?;
    if arguments.options.exit_with_parent {
        stop.with_parent()?;
    }
    let mut keeper = Client::connect_within(&arguments.keeper, KEEPER_PATIENCE)?;
    let offer = keeper.attach()?;
    let slot = HostSlot::new(PlacementMode::Prompt);
    plug(&slot, &offer)?;
    let card = card(&arguments.options, &arguments.fabric, &slot, offer)?;
    std::thread::Builder::new()
        .name("lunar-slot".to_owned())
        .spawn(move || watch(keeper, &slot))?;
    lunar_firmware::run(card, &arguments.options, &stop)
}

/// Puts the host's arenas on the bus.
fn plug(slot: &HostSlot, offer: &Offer) -> anyhow::Result<()> {
    let memories = [
        (DATA_ARENA, &offer.arena, offer.layout.arena_bytes()),
        (RING_ARENA, &offer.rings, offer.layout.rings_bytes()),
    ];
    for (id, descriptor, bytes) in memories {
        let blob = offer.export_blob(id).and_then(|blob| ExportBlob::parse(&blob));
        let blob = blob.with_context(|| format!("the keeper does not export arena {id}"))?;
        let segment = Segment::from_fd(descriptor.try_clone()?, usize::try_from(bytes)?)
            .with_context(|| format!("arena {id} of {bytes} bytes cannot be mapped"))?;
        slot.plug(blob, &segment);
    }
    Ok(())
}

fn card(
    options: &lunar_firmware::Options,
    fabric: &Path,
    slot: &HostSlot,
    offer: Offer,
) -> anyhow::Result<Card<Emulated>> {
    ensure!(!offer.hints.is_empty(), "the keeper offers no poll group");
    let device = EmulatedDevice::new(DeviceConfig::new(SERVICE));
    let listener = device
        .listener(&Fabric::unix(fabric), SERVICE)
        .with_context(|| format!("the fabric `{}` takes no listener", fabric.display()))?;
    let space = AddressSpace::new();
    let attributes = HcaAttributes {
        queue_pairs_max: options.channels,
        send_queue_depth_max: 4096,
        shared_receive_queue_depth: options.slots,
        completion_queue_depth: 1 << 20,
        rdma_reads_max: 16,
        message_bytes_max: 16 << 20,
    };
    let budget_bytes = (options.card_memory_mib as u64) << 20;
    let mut groups = Vec::with_capacity(offer.hints.len());
    for lines in offer.hints {
        groups.push(GroupHardware {
            device: 0,
            hca: device.group(attributes, space.clone())?,
            dma: EmulatedDma::new(
                space.clone(),
                slot.clone(),
                HintLine::from_fd(lines.to_host)?,
                HintLine::from_fd(lines.to_card)?,
                DmaConfig::default(),
            ),
            memory: CardMemory::new(
                space.clone(),
                Some(slot.clone()),
                Backing::Anonymous,
                budget_bytes + CONTROL_BYTES_MAX,
            ),
        });
    }
    Ok(Card { listener, groups })
}

/// The bus: what the keeper takes back is off it, and when the keeper is gone the host is.
fn watch(mut keeper: Client, slot: &HostSlot) {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        match keeper.next_notice() {
            Ok(Some(Notice::Revoked(arena))) => {
                tracing::warn!(arena, "the host took an arena off the bus");
                slot.revoke(ArenaId(arena));
                let replugged = keeper.attach().and_then(|offer| plug(slot, &offer));
                if let Err(error) = replugged {
                    tracing::warn!(%error, "the host's memory could not be put back on the bus");
                }
            }
            Ok(None) => {
                let fd = keeper.fd();
                // An interrupted wait is a short one.
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None);
            }
            Ok(Some(Notice::KeeperGone)) | Err(_) => {
                tracing::warn!("the host is gone from the bus");
                slot.surprise_removal();
                return;
            }
        }
    }
}
