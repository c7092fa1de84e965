//! The configuration that the agents of a run serve: five logical units, of which one comes and goes
//! and whose LUNs are read-only or in standby for a while.

use lunar_core::{Configuration, DeviceHandle, UnitConfiguration};
use lunar_offload_proto::control::{
    BackendKind, DeviceGroup, LogicalUnit, Lun, PlacementKind, Target, TargetPort, TargetPortGroup,
};
use lunar_scsi::alua::AccessState;

use crate::card::IT_IU_BYTES_MAX;
use crate::disk::BLOCK_BYTES;

/// Port identifier of the target.
pub const TARGET_PORT: [u8; 16] = *b"lunar-sim-target";
/// Commands that each channel may have outstanding.
pub const REQUEST_LIMIT: u32 = 20;
/// Blocks of each unit.
pub const BLOCKS: u64 = 1536;
/// The first blocks, which all commands but EXTENDED COPY's writes use; those write behind them.
pub const LOAD_BLOCKS: u64 = BLOCKS - 64;

/// What a LUN of the runs is.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Handle of the unit; the LUN is one less.
    pub unit: u32,
    /// Whether there is a medium behind it, so that reads can be judged.
    pub stores: bool,
    placement: PlacementKind,
    pub task_set_type: u32,
    /// Whether it is taken away and brought back in a run.
    pub comes_and_goes: bool,
    /// Whether initiators fight for it with persistent reservations.
    pub reserved: bool,
}

/// The units, by LUN.
pub const UNITS: [Described; 5] = [
    Described {
        unit: 1,
        stores: false,
        placement: PlacementKind::CardDram,
        task_set_type: 1,
        comes_and_goes: false,
        reserved: false,
    },
    Described {
        unit: 2,
        stores: true,
        placement: PlacementKind::HostDram,
        task_set_type: 1,
        comes_and_goes: false,
        reserved: false,
    },
    Described {
        unit: 3,
        stores: true,
        placement: PlacementKind::CardDram,
        task_set_type: 1,
        comes_and_goes: false,
        reserved: true,
    },
    Described {
        unit: 4,
        stores: true,
        placement: PlacementKind::HostDram,
        task_set_type: 0,
        comes_and_goes: false,
        reserved: true,
    },
    Described {
        unit: 5,
        stores: true,
        placement: PlacementKind::HostDram,
        task_set_type: 1,
        comes_and_goes: true,
        reserved: false,
    },
];

/// What changes in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// By LUN: writes through it are refused.
    pub read_only: [bool; UNITS.len()],
    /// By LUN: it is not there.
    pub absent: [bool; UNITS.len()],
    /// By LUN: the target's port is in standby for it (SPC-6 5.17).
    pub standby: [bool; UNITS.len()],
}

/// The configuration of `shape`.
#[must_use]
pub fn configuration(shape: &Shape) -> Configuration {
    let there = || UNITS.iter().enumerate().filter(|(lun, _)| !shape.absent[*lun]);
    let units = there().map(|(_, described)| UnitConfiguration {
        unit: unit(described),
        device: described.stores.then_some(DeviceHandle(described.unit)),
    });
    let luns = there().map(|(lun, described)| Lun {
        lun: u32::try_from(lun).unwrap_or(0),
        unit: described.unit,
        read_only: shape.read_only[lun],
    });
    let target = Target {
        handle: 1,
        name: "sim".to_owned(),
        driver: "ib_srpt".to_owned(),
        enabled: true,
        port_id: TARGET_PORT.to_vec(),
        relative_target_port: 1,
        request_limit: REQUEST_LIMIT,
        it_iu_bytes_max: IT_IU_BYTES_MAX,
        default_luns: luns.collect(),
        ..Target::default()
    };
    let groups = there().map(|(lun, described)| device_group(described, shape.standby[lun]));
    Configuration { units: units.collect(), targets: vec![target], device_groups: groups.collect() }
}

/// A device group of one unit.
fn device_group(described: &Described, standby: bool) -> DeviceGroup {
    let state = if standby { AccessState::Standby } else { AccessState::Active } as u32;
    let group = TargetPortGroup {
        name: "sim".to_owned(),
        id: 1,
        state,
        configured_state: state,
        ports: vec![TargetPort { relative_target_port: 1, target: 1 }],
        ..TargetPortGroup::default()
    };
    DeviceGroup {
        name: format!("disk{}", described.unit),
        units: vec![described.unit],
        groups: vec![group],
        ..DeviceGroup::default()
    }
}

/// The NAA designator of the unit with this handle.
pub fn naa(unit: u32) -> [u8; 8] {
    let [a, b, c, d] = unit.to_be_bytes();
    [0x50, 0, 0, 0, a, b, c, d]
}

fn unit(described: &Described) -> LogicalUnit {
    let backend = if described.stores { BackendKind::Ring } else { BackendKind::CardNull };
    LogicalUnit {
        handle: described.unit,
        name: format!("disk{}", described.unit),
        backend: backend.into(),
        block_bytes: BLOCK_BYTES,
        blocks: BLOCKS,
        write_cache: true,
        fua: true,
        thin: described.stores,
        task_set_type: described.task_set_type,
        vendor: "LUNAR".to_owned(),
        product: "SIM".to_owned(),
        revision: "1".to_owned(),
        serial: format!("sim{}", described.unit),
        t10_id: format!("sim{}", described.unit),
        placement: described.placement.into(),
        naa: naa(described.unit).to_vec(),
        forwards: described.stores,
        ..LogicalUnit::default()
    }
}
