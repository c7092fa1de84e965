//! A tree to the `Configuration` that the card is sent: handles for names, defaults filled in, and what the handlers
//! found when they opened the media.

use std::collections::{BTreeMap, BTreeSet};

use lunar_offload_proto::control;

use crate::tree::{
    Device, DeviceGroup, Handler, Lun, Luns, Placement, Target, TargetGroup, Tree, srp_port_id,
};

/// Longest IU from an initiator in bytes: as the card's receive buffers allow (its `srp_max_req_size`).
pub const IT_IU_BYTES_MAX: u32 = 65535;

/// Optimal transfer length in bytes when `opt_trans_len` is not given, as in SCST.
const OPTIMAL_TRANSFER_BYTES_DEFAULT: u32 = 524_288;

/// What a handler knows about a medium that it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Capacity in blocks; 0 where a CD/DVD drive has no disc.
    pub blocks: u64,
    /// Another number is another medium.
    pub id: u32,
    /// It cannot be written.
    pub read_only: bool,
    /// A write may end before it is durable.
    pub write_cache: bool,
    /// FUA is honoured.
    pub fua: bool,
}

/// A device of the host whose medium the caller did not give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device `{0}` is not open, so its capacity is not known")]
pub struct NotOpen(pub String);

/// Numbers for names, from 1 in the order of the names. A name keeps its number as long as it is in every tree, so that
/// a change elsewhere does not rename what commands under way refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handles {
    units: BTreeMap<String, u32>,
    targets: BTreeMap<String, u32>,
}

impl Handles {
    /// Gives numbers to the names of `tree`, and takes those of names that are gone.
    pub fn assign(&mut self, tree: &Tree) {
        assign(&mut self.units, tree.devices.keys());
        assign(&mut self.targets, tree.drivers.values().flat_map(BTreeMap::keys));
    }

    /// The handle of a device.
    pub fn unit(&self, name: &str) -> Option<u32> {
        self.units.get(name).copied()
    }

    /// The name of a device.
    pub fn unit_name(&self, handle: u32) -> Option<&str> {
        name_of(&self.units, handle)
    }

    /// The name of a target.
    pub fn target_name(&self, handle: u32) -> Option<&str> {
        name_of(&self.targets, handle)
    }
}

fn name_of(handles: &BTreeMap<String, u32>, handle: u32) -> Option<&str> {
    handles.iter().find(|(_, own)| **own == handle).map(|(name, _)| name.as_str())
}

fn assign<'a>(handles: &mut BTreeMap<String, u32>, names: impl Iterator<Item = &'a String>) {
    let names: BTreeSet<&String> = names.collect();
    handles.retain(|name, _| names.contains(name));
    let taken: BTreeSet<u32> = handles.values().copied().collect();
    let mut free = (1..=u32::MAX).filter(|handle| !taken.contains(handle));
    for name in names {
        if !handles.contains_key(name)
            && let Some(handle) = free.next()
        {
            handles.insert(name.clone(), handle);
        }
    }
}

/// The snapshot of `tree` for the card, as generation `generation`. `media` names every device that is executed on the
/// host; those of the card need none.
pub fn configuration(
    tree: &Tree,
    handles: &mut Handles,
    media: &BTreeMap<String, Medium>,
    generation: u32,
) -> Result<control::Configuration, NotOpen> {
    handles.assign(tree);
    let mut units = Vec::new();
    for (name, device) in &tree.devices {
        let medium = match (device.on_host(), media.get(name)) {
            (true, Some(medium)) => *medium,
            (true, None) => return Err(NotOpen(name.clone())),
            (false, _) => card_null(device),
        };
        let handle = handles.unit(name).unwrap_or(0);
        units.push(unit(name, device, medium, handle, tree.setup_id));
    }
    let mut targets = Vec::new();
    let target_groups = tree.device_groups.values().flat_map(|group| group.target_groups.values());
    let of_others = target_groups.flat_map(|group| group.targets.values().copied().flatten());
    let of_others: BTreeSet<u16> = of_others.collect();
    for (driver, of_driver) in &tree.drivers {
        let own = of_driver.values().filter_map(|target| target.relative_target_port);
        let mut taken: BTreeSet<u16> = own.chain(of_others.iter().copied()).collect();
        for (name, own) in of_driver {
            let relative_target_port = own
                .relative_target_port
                .or_else(|| (1..=u16::MAX).find(|id| !taken.contains(id)))
                .unwrap_or(0);
            taken.insert(relative_target_port);
            let handle = handles.targets.get(name).copied().unwrap_or(0);
            targets.push(control::Target {
                handle,
                driver: driver.name().to_owned(),
                relative_target_port: relative_target_port.into(),
                ..target(name, own, handles)
            });
        }
    }
    let groups = tree.device_groups.iter();
    let device_groups = groups.map(|(name, group)| device_group(name, group, handles, &targets));
    let device_groups = device_groups.collect();
    Ok(control::Configuration { generation, units, targets, device_groups })
}

/// What a null device of the card is: nothing is kept, so everything is as durable as it gets.
fn card_null(device: &Device) -> Medium {
    Medium {
        block_bytes: device.block_bytes,
        blocks: if device.dummy { 0 } else { device.nullio_blocks() },
        id: 0,
        read_only: device.read_only,
        write_cache: false,
        fua: true,
    }
}

fn unit(
    name: &str,
    device: &Device,
    medium: Medium,
    handle: u32,
    setup_id: u32,
) -> control::LogicalUnit {
    let identity = device.identity(name, setup_id);
    let backend =
        if device.on_host() { control::BackendKind::Ring } else { control::BackendKind::CardNull };
    let placement = match device.placement() {
        Placement::HostDram => control::PlacementKind::HostDram,
        Placement::CardDram => control::PlacementKind::CardDram,
    };
    let optimal_transfer_bytes =
        device.optimal_transfer_bytes.unwrap_or(OPTIMAL_TRANSFER_BYTES_DEFAULT);
    // 4 KiB physical blocks, as far as logical blocks are smaller (SBC-4 5.20.2: the exponent of two).
    let physical_blocks_exponent = if device.physical_block_exponent {
        12_u32.saturating_sub(medium.block_bytes.checked_ilog2().unwrap_or(12))
    } else {
        0
    };
    control::LogicalUnit {
        handle,
        name: name.to_owned(),
        backend: backend.into(),
        block_bytes: medium.block_bytes,
        blocks: medium.blocks,
        read_only: device.read_only || medium.read_only,
        write_cache: medium.write_cache,
        fua: medium.fua,
        removable: device.removable,
        rotational: device.rotational,
        thin: device.thin_provisioned,
        physical_blocks_exponent,
        optimal_transfer_blocks: optimal_transfer_bytes
            .checked_div(medium.block_bytes)
            .unwrap_or(0),
        task_set_type: device.separate_task_sets.into(),
        vendor: identity.vendor,
        product: identity.product,
        revision: identity.revision,
        serial: identity.serial,
        t10_id: identity.t10_id,
        naa: identity.naa,
        eui64: identity.eui64.map(Vec::from).unwrap_or_default(),
        placement: placement.into(),
        forwards: device.on_host(),
        // Mode parameters begin with their defaults; what the agent executes, its core says.
        software_write_protect: false,
        descriptor_sense: false,
        host_commands: 0,
        // PERIPHERAL DEVICE TYPE (SPC-6).
        device_type: match device.handler {
            Handler::Cdrom => 5,
            Handler::NullIo if device.dummy => 31,
            _ => 0,
        },
        medium: medium.id,
        vendor_specific: identity.vendor_specific,
        explicit_alua: device.explicit_alua,
        // Reservations are the agent's core's too.
        access: None,
        access_effects: Vec::new(),
    }
}

fn device_group(
    name: &str,
    own: &DeviceGroup,
    handles: &Handles,
    targets: &[control::Target],
) -> control::DeviceGroup {
    let port = |(name, of_another_node): (&String, &Option<u16>)| match of_another_node {
        Some(port) => control::TargetPort { relative_target_port: u32::from(*port), target: 0 },
        None => {
            let target = targets.iter().find(|target| target.name == *name);
            let ids = target.map(|target| (target.relative_target_port, target.handle));
            let (relative_target_port, target) = ids.unwrap_or_default();
            control::TargetPort { relative_target_port, target }
        }
    };
    let group = |(name, own): (&String, &TargetGroup)| control::TargetPortGroup {
        name: name.clone(),
        id: own.id.into(),
        state: own.state.code().into(),
        configured_state: own.state.code().into(),
        preferred: own.preferred,
        status_code: 0,
        ports: own.targets.iter().map(port).collect(),
    };
    control::DeviceGroup {
        name: name.to_owned(),
        units: own.devices.iter().filter_map(|device| handles.unit(device)).collect(),
        groups: own.target_groups.iter().map(group).collect(),
        // The configuration's states are nobody's command.
        set_by_nexus: 0,
        set_by_unit: 0,
    }
}

fn target(name: &str, own: &Target, handles: &Handles) -> control::Target {
    let groups = own.groups.iter().map(|(group_name, group)| control::AccessGroup {
        name: group_name.clone(),
        patterns: group.initiators.clone(),
        luns: luns(&group.luns, handles),
    });
    control::Target {
        name: name.to_owned(),
        enabled: own.enabled,
        port_id: srp_port_id(name).to_vec(),
        request_limit: own.request_limit,
        it_iu_bytes_max: IT_IU_BYTES_MAX,
        groups: groups.collect(),
        default_luns: luns(&own.luns, handles),
        ..control::Target::default()
    }
}

fn luns(luns: &Luns, handles: &Handles) -> Vec<control::Lun> {
    luns.iter()
        .filter_map(|(number, Lun { device, read_only })| {
            // The reader refuses a LUN whose device is not there.
            let unit = handles.unit(device)?;
            Some(control::Lun { lun: u32::from(*number), unit, read_only: *read_only })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Tree {
        crate::read("scst.conf", text.as_bytes()).unwrap().0
    }

    const EXAMPLE: &str = include_str!("../../../docs/examples/scst.conf");

    fn media() -> BTreeMap<String, Medium> {
        let medium = Medium {
            block_bytes: 512,
            blocks: 1000,
            id: 0,
            read_only: false,
            write_cache: true,
            fua: true,
        };
        ["disk1", "null_host"].map(|name| (name.to_owned(), medium)).into()
    }

    #[test]
    fn the_example_becomes_what_the_card_accepts() {
        let mut handles = Handles::default();
        let made = configuration(&tree(EXAMPLE), &mut handles, &media(), 7).unwrap();
        assert_eq!(made.generation, 7);
        let [disk, card, host] = made.units.as_slice() else { panic!("{:?}", made.units) };
        assert_eq!((disk.handle, card.handle, host.handle), (1, 2, 3));
        assert_eq!((disk.name.as_str(), disk.blocks, disk.write_cache), ("disk1", 1000, true));
        assert_eq!(disk.backend(), control::BackendKind::Ring);
        assert_eq!((card.backend(), card.blocks), (control::BackendKind::CardNull, 8 << 20));
        assert_eq!(host.backend(), control::BackendKind::Ring);
        assert_eq!(host.placement(), control::PlacementKind::HostDram);
        assert_eq!((disk.physical_blocks_exponent, disk.optimal_transfer_blocks), (3, 1024));
        let [target] = made.targets.as_slice() else { panic!("{:?}", made.targets) };
        assert_eq!(target.relative_target_port, 1);
        assert_eq!(target.port_id[..8], target.port_id[8..]);
        let units: Vec<_> = target.default_luns.iter().map(|lun| (lun.lun, lun.unit)).collect();
        assert_eq!(units, [(0, 1), (1, 2), (2, 3)]);
        assert!(target.groups[0].luns[0].read_only);
    }

    #[test]
    fn a_dummy_is_no_device_and_has_no_blocks_and_the_vendors_text_is_passed_on() {
        let tree = tree(
            "HANDLER vdisk_nullio {\nDEVICE a {\ndummy 1\n}\nDEVICE b {\ninq_vend_specific text\n}\n}\n",
        );
        let made = configuration(&tree, &mut Handles::default(), &BTreeMap::new(), 1).unwrap();
        let told = |place: usize| {
            let unit = &made.units[place];
            (unit.device_type, unit.blocks == 0, unit.forwards, unit.vendor_specific.as_str())
        };
        assert_eq!((told(0), told(1)), ((31, true, false, ""), (0, false, false, "text")));
    }

    #[test]
    fn a_host_device_without_its_medium_is_an_error() {
        let made = configuration(&tree(EXAMPLE), &mut Handles::default(), &BTreeMap::new(), 1);
        assert_eq!(made, Err(NotOpen("disk1".to_owned())));
    }

    #[test]
    fn handles_stay_with_their_names_when_others_come_and_go() {
        let mut handles = Handles::default();
        handles.assign(&tree("HANDLER vdisk_nullio {\nDEVICE b\nDEVICE d\n}\n"));
        assert_eq!((handles.unit("b"), handles.unit("d")), (Some(1), Some(2)));
        handles.assign(&tree("HANDLER vdisk_nullio {\nDEVICE a\nDEVICE d\nDEVICE e\n}\n"));
        assert_eq!((handles.unit("d"), handles.unit("b")), (Some(2), None));
        assert_eq!((handles.unit("a"), handles.unit("e")), (Some(1), Some(3)));
        assert_eq!(handles.unit_name(3), Some("e"));
    }

    #[test]
    fn a_device_group_names_units_and_ports() {
        let text = "HANDLER vdisk_nullio {\nDEVICE a\nDEVICE b\n}\nTARGET_DRIVER ib_srpt {\nTARGET t\nTARGET u\n}\n\
            DEVICE_GROUP dg {\nDEVICE b\nTARGET_GROUP here {\ngroup_id 1\npreferred 1\nTARGET u\nTARGET t\n}\n\
            TARGET_GROUP there {\ngroup_id 0x101\nstate standby\nTARGET far {\nrel_tgt_id 1\n}\n}\n}\n";
        let made = configuration(&tree(text), &mut Handles::default(), &BTreeMap::new(), 1);
        let made = made.unwrap();
        let [group] = made.device_groups.as_slice() else { panic!("{made:?}") };
        assert_eq!((group.name.as_str(), group.units.as_slice()), ("dg", &[2][..]));
        let told = group.groups.iter().map(|own| {
            let ports = own.ports.iter().map(|port| (port.relative_target_port, port.target));
            (own.id, own.state, own.preferred, ports.collect::<Vec<_>>())
        });
        // Of the other node's port is 1, so ours have the next ones.
        let expected = [(1, 0, true, vec![(2, 1), (3, 2)]), (0x101, 2, false, vec![(1, 0)])];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        let checked = lunar_offload_proto::checked::Configuration::try_from(&made);
        assert!(checked.is_ok(), "{checked:?}");
    }

    #[test]
    fn targets_without_rel_tgt_id_get_the_smallest_free_one() {
        let tree =
            tree("TARGET_DRIVER ib_srpt {\nTARGET a\nTARGET b {\nrel_tgt_id 1\n}\nTARGET c\n}\n");
        let made = configuration(&tree, &mut Handles::default(), &BTreeMap::new(), 1).unwrap();
        let ids: Vec<_> = made.targets.iter().map(|target| target.relative_target_port).collect();
        assert_eq!(ids, [2, 1, 3]);
    }
}
