//! What this program is under the name `vscsi-server`: the smallest VSCSI server that is Lunar's. A poll group serves one
//! adapter, whose client is behind the bridge at a socket, with two units on the card that store nothing.
//!
//! ```text
//! vscsi-server SOCKET
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lunar_dma::sgv::Placement;
use lunar_hypervisor::SocketHypervisor;
use lunar_pcie::{
    AddressSpace, Backing, CardMemory, CardRegion, DmaConfig, EmulatedDma, HintLine, HostSlot,
    PlacementMode,
};
use lunar_platform::{Nanoseconds, Platform, UnitAddress};
use lunar_scsi::reservations::AccessTable;
use lunar_scsi::unit::{Identity, LogicalUnit};
use lunar_srp::login::PortId;
use lunar_target::configuration::{BackendKind, Configuration, Lun, Target, Unit};
use lunar_target::{
    AdapterConfig, Coordinator, GroupLimits, GroupParts, PollGroup, VscsiConnection, VscsiListener,
    VscsiPort, mailbox,
};
use lunar_vscsi::mad::{OsType, PartitionName, ServerPartition};

/// The name that the harness acts by.
pub const NAME: &str = "vscsi-server";

/// The port of the only target.
const TARGET: PortId = PortId(*b"lunar-target-001");
const REQUEST_LIMIT: u32 = 64;
/// Blocks of 512 bytes of the units.
const BLOCKS: [u64; 2] = [1 << 20, 2048];
/// How long nothing is looked at when nothing happened.
const REST: Duration = Duration::from_micros(200);

/// A card whose only transport is VSCSI.
struct Card;

impl Platform for Card {
    type Region = CardRegion;
    type Connection = VscsiConnection;
    type Listener = VscsiListener;
    type Hca = VscsiPort<SocketHypervisor>;
    type Dma = EmulatedDma;
    type Memory = CardMemory;
}

/// `SOCKET`: serves until it is killed.
pub fn run(arguments: &[String]) -> Result<()> {
    let [socket] = arguments else { bail!("usage: {NAME} SOCKET") };
    // Whoever started us may be killed without a word to us.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let (mut group, mut coordinator) = card(Path::new(socket))?;
    coordinator.configure(configuration()?);
    let started = Instant::now();
    loop {
        coordinator.poll();
        let elapsed = u64::try_from(started.elapsed().as_nanos())?;
        group.tick(Nanoseconds(elapsed));
        if group.may_sleep().is_some() {
            std::thread::sleep(REST);
        }
    }
}

fn card(socket: &Path) -> Result<(PollGroup<Card>, Coordinator<Card>)> {
    let unit = UnitAddress(0x3000_0002);
    let space = AddressSpace::new();
    let hypervisor = SocketHypervisor::connect(unit, space.clone(), socket)
        .with_context(|| socket.display().to_string())?;
    let limits = GroupLimits {
        slots: 256,
        channels: 16,
        card_arena_bytes: 32 << 20,
        ..GroupLimits::default()
    };
    let server = ServerPartition {
        name: PartitionName::new("lunar").context("a partition's name")?,
        number: 1,
        // A client asks only such a server for fast-fail and capabilities.
        os_type: OsType::AIX,
        transfer_bytes_max: 1 << 20,
        migration: true,
        reserve: true,
    };
    let adapter = AdapterConfig::of_partition(unit, server, 3, TARGET, REQUEST_LIMIT);
    let (hca, listener) = VscsiPort::new(hypervisor, vec![adapter], limits.slots, 0);
    let slot = HostSlot::new(PlacementMode::Prompt);
    let (to_card, to_host) = (HintLine::new()?, HintLine::new()?);
    let dma = EmulatedDma::new(space.clone(), slot.clone(), to_card, to_host, DmaConfig::default());
    let memory = CardMemory::new(space, Some(slot), Backing::Anonymous, 1 << 30);
    let (link, inbox, outbox) = mailbox();
    let parts = GroupParts { index: 0, limits, hca, dma, memory, inbox, outbox };
    let Ok(group) = PollGroup::new(parts) else { bail!("there is no memory for a poll group") };
    Ok((group, Coordinator::new(listener, vec![link])))
}

fn configuration() -> Result<Configuration> {
    let units = (1..).zip(BLOCKS).map(|(handle, blocks)| null_unit(handle, blocks));
    Ok(Configuration {
        generation: 1,
        units: units.collect::<Result<_>>()?,
        targets: vec![Target {
            handle: 1,
            name: "partition".into(),
            driver: "ibmvstgt".into(),
            enabled: true,
            port_id: TARGET.0,
            relative_target_port: 1,
            request_limit: REQUEST_LIMIT,
            it_iu_bytes_max: 2176,
            nexus_memory_bytes_max: None,
            groups: Vec::new(),
            default_luns: vec![
                Lun { lun: 0, unit: 1, read_only: false },
                Lun { lun: 1, unit: 2, read_only: true },
            ],
        }],
        device_groups: Vec::new(),
    })
}

/// `blocks` of 512 bytes that nobody stores.
fn null_unit(handle: u32, blocks: u64) -> Result<Unit> {
    let serial = format!("serial{handle}");
    let identity = Identity::new("LUNAR", "null", "0001", &serial, &serial);
    let logical_unit = identity.and_then(|identity| LogicalUnit::new(512, blocks, identity));
    let logical_unit = logical_unit.map_err(|error| anyhow::anyhow!("a unit: {error:?}"))?;
    Ok(Unit {
        handle,
        name: format!("null{handle}"),
        logical_unit: LogicalUnit { tst: 1, fua: true, write_cache: true, ..logical_unit },
        backend: BackendKind::CardNull,
        placement: Placement::CardDram,
        access: AccessTable::default(),
        access_effects: Vec::new(),
    })
}
