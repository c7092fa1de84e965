use proptest::prelude::*;
use prost::Message;

use super::*;

fn unit(handle: u32) -> control::LogicalUnit {
    control::LogicalUnit {
        handle,
        name: format!("disk{handle}"),
        backend: BackendKind::Ring.into(),
        block_bytes: 512,
        blocks: 2048,
        task_set_type: 1,
        vendor: "SCST_FIO".to_owned(),
        product: "disk".to_owned(),
        revision: " 370".to_owned(),
        serial: "4d1f7b9e".to_owned(),
        naa: vec![0x50; 8],
        ..Default::default()
    }
}

fn target(handle: u32) -> control::Target {
    control::Target {
        handle,
        name: format!("fe80:{handle}"),
        driver: "ib_srpt".to_owned(),
        enabled: true,
        port_id: vec![u8::try_from(handle).unwrap(); 16],
        relative_target_port: handle,
        request_limit: 128,
        it_iu_bytes_max: 2116,
        ..Default::default()
    }
}

fn lun(lun: u32, unit: u32) -> control::Lun {
    control::Lun { lun, unit, read_only: false }
}

fn configuration() -> control::Configuration {
    let group = control::AccessGroup {
        name: "hosts".to_owned(),
        patterns: vec!["10.0.0.*".to_owned()],
        luns: vec![lun(5, 2), lun(0, 1)],
    };
    control::Configuration {
        generation: 1,
        units: vec![unit(2), unit(1)],
        targets: vec![control::Target {
            groups: vec![group],
            default_luns: vec![lun(0, 2)],
            ..target(1)
        }],
        device_groups: vec![control::DeviceGroup {
            name: "disks".to_owned(),
            units: vec![2],
            groups: vec![port_group(1, &[(1, 1), (7, 0)]), port_group(2, &[(8, 0)])],
            set_by_nexus: 9,
            set_by_unit: 2,
        }],
    }
}

/// A target port group of these relative target ports and targets.
fn port_group(id: u32, ports: &[(u32, u32)]) -> control::TargetPortGroup {
    let port =
        |(relative_target_port, target)| control::TargetPort { relative_target_port, target };
    control::TargetPortGroup {
        name: format!("group{id}"),
        id,
        state: 2,
        preferred: true,
        status_code: 1,
        ports: ports.iter().copied().map(port).collect(),
        ..Default::default()
    }
}

#[test]
fn a_device_group_is_checked_with_what_it_names() {
    let checked = Configuration::try_from(&configuration()).unwrap();
    let [group] = checked.device_groups.as_slice() else { panic!("{checked:?}") };
    assert_eq!((group.units.as_slice(), group.set_by), (&[2][..], Some((9, 2))));
    let [ours, others] = group.groups.as_slice() else { panic!("{group:?}") };
    assert_eq!((ours.id, ours.state, ours.preferred, ours.status_code), (1, 2, true, 1));
    assert_eq!((ours.ports.as_slice(), ours.targets.as_slice()), (&[1, 7][..], &[1][..]));
    assert_eq!((others.ports.as_slice(), others.targets.as_slice()), (&[8][..], &[][..]));
    let refusal = |spoil: &dyn Fn(&mut control::DeviceGroup)| {
        configuration_refusal(|all| spoil(&mut all.device_groups[0]))
    };
    assert!(refusal(&|group| group.units.push(3)).contains("logical unit 3"));
    assert!(refusal(&|group| group.units.push(2)).contains("logical unit 2"));
    assert!(refusal(&|group| group.groups[0].ports[0].target = 4).contains("target 4"));
    assert!(refusal(&|group| group.groups[1].id = 1).contains("two target port groups"));
    assert!(refusal(&|group| group.groups[0].id = 0).contains("id is 0"));
    assert!(refusal(&|group| group.groups[0].state = 5).contains("state is 5"));
    assert!(refusal(&|group| group.groups[0].status_code = 3).contains("status_code is 3"));
    assert!(
        refusal(&|group| group.groups[1].ports = vec![group.groups[0].ports[0]])
            .contains("relative target port 1")
    );
    let port = |relative_target_port| control::TargetPort { relative_target_port, target: 1 };
    assert!(refusal(&|group| group.groups[1].ports = vec![port(5)]).contains("handle 1 is in it"));
    assert!(refusal(&|group| group.groups[1].ports = vec![port(0)]).contains("1 to 65535"));
    let many = || (1..=33).map(|id| port_group(id, &[])).collect();
    assert!(refusal(&|group| group.groups = many()).contains("33 target port groups"));
    let ports = |group: &mut control::DeviceGroup| {
        group.groups[1].ports = (10..43).map(port).collect();
    };
    assert!(refusal(&ports).contains("33 ports"));
    assert!(refusal(&|group| group.name.clear()).contains("name"));
    assert!(
        configuration_refusal(|all| all.device_groups.push(all.device_groups[0].clone()))
            .contains("in another")
    );
}

#[test]
fn a_unit_becomes_what_inquiry_shows() {
    let checked = LogicalUnit::try_from(&unit(3)).unwrap();
    assert_eq!(&checked.vendor, b"SCST_FIO");
    assert_eq!(&checked.product, b"disk            ");
    assert_eq!(&checked.revision, b" 370");
    assert_eq!(checked.naa, Some(Naa::Short([0x50; 8])));
    assert_eq!(checked.backend, Backend::Ring);
    assert_eq!(checked.placement, Placement::Any);
    assert_eq!(checked.task_set_type, 1);
}

/// Spoils one field of a good unit and gives the refusal.
fn unit_refusal(spoil: impl FnOnce(&mut control::LogicalUnit)) -> String {
    let mut spoiled = unit(3);
    spoil(&mut spoiled);
    LogicalUnit::try_from(&spoiled).unwrap_err().to_string()
}

#[test]
fn a_unit_with_a_field_out_of_range_is_refused_by_name() {
    assert_eq!(
        unit_refusal(|unit| unit.block_bytes = 520),
        "logical unit \"disk3\" (handle 3): block_bytes is 520; a power of two from 512 to 65536 is possible"
    );
    assert!(unit_refusal(|unit| unit.handle = 0).contains("handle 0"));
    assert!(unit_refusal(|unit| unit.name.clear()).contains("name"));
    assert!(unit_refusal(|unit| unit.name.push('\n')).contains("control characters"));
    assert!(unit_refusal(|unit| unit.backend = 0).contains("backend 0"));
    assert!(unit_refusal(|unit| unit.backend = 77).contains("backend 77"));
    assert!(unit_refusal(|unit| unit.placement = 9).contains("placement 9"));
    assert!(unit_refusal(|unit| unit.block_bytes = 1 << 17).contains("block_bytes"));
    assert!(unit_refusal(|unit| unit.blocks = 0).contains("0 blocks"));
    assert!(unit_refusal(|unit| unit.blocks = (1 << 54) + 1).contains("2^63"));
    assert!(unit_refusal(|unit| unit.physical_blocks_exponent = 16).contains("exponent is 16"));
    assert!(unit_refusal(|unit| unit.task_set_type = 2).contains("task_set_type is 2"));
    assert!(unit_refusal(|unit| unit.device_type = 1).contains("device_type is 1"));
    assert!(unit_refusal(|unit| unit.vendor.push('x')).contains("vendor"));
    assert!(unit_refusal(|unit| unit.product = "é".to_owned()).contains("printable ASCII"));
    assert!(unit_refusal(|unit| unit.serial = "s".repeat(65)).contains("serial"));
    assert!(unit_refusal(|unit| unit.vendor_specific = "v".repeat(21)).contains("vendor_specific"));
    assert!(unit_refusal(|unit| unit.naa = vec![1; 9]).contains("naa has 9 bytes"));
    assert!(unit_refusal(|unit| unit.eui64 = vec![1; 7]).contains("eui64 has 7 bytes"));
    let mut greatest = unit(3);
    greatest.blocks = 1 << 54;
    assert!(LogicalUnit::try_from(&greatest).is_ok());
    let empty =
        control::LogicalUnit { removable: true, blocks: 0, device_type: 5, medium: 7, ..unit(3) };
    let empty = LogicalUnit::try_from(&empty).unwrap();
    assert_eq!((empty.blocks, empty.device_type, empty.medium), (0, 5, 7));
    let dummy = control::LogicalUnit { blocks: 0, device_type: 31, ..unit(3) };
    assert_eq!(LogicalUnit::try_from(&dummy).unwrap().device_type, 31);
}

fn target_refusal(spoil: impl FnOnce(&mut control::Target)) -> String {
    let mut spoiled = target(1);
    spoil(&mut spoiled);
    Target::try_from(&spoiled).unwrap_err().to_string()
}

#[test]
fn a_target_with_a_field_out_of_range_is_refused_by_name() {
    assert!(Target::try_from(&target(1)).is_ok());
    assert!(target_refusal(|target| target.handle = 0).contains("handle 0"));
    assert!(target_refusal(|target| target.port_id.truncate(15)).contains("15 bytes"));
    assert!(target_refusal(|target| target.relative_target_port = 0).contains("1 to 65535"));
    assert!(target_refusal(|target| target.relative_target_port = 65536).contains("1 to 65535"));
    assert!(target_refusal(|target| target.request_limit = 0).contains("request_limit is 0"));
    assert!(target_refusal(|target| target.request_limit = 4097).contains("request_limit"));
    assert!(target_refusal(|target| target.it_iu_bytes_max = 63).contains("it_iu_bytes_max is 63"));
    assert!(
        target_refusal(|target| target.default_luns = vec![lun(16384, 1)]).contains("LUN 16384")
    );
    assert!(
        target_refusal(|target| target.default_luns = vec![lun(3, 1), lun(0, 1), lun(3, 2)])
            .contains("LUN 3 is mapped twice")
    );
    let group = |name: &str| control::AccessGroup { name: name.to_owned(), ..Default::default() };
    assert!(
        target_refusal(|target| target.groups = vec![group("a"), group("a")])
            .contains("used twice")
    );
}

#[test]
fn a_configuration_is_sorted_and_its_references_hold() {
    let checked = Configuration::try_from(&configuration()).unwrap();
    assert_eq!(checked.units.iter().map(|unit| unit.handle).collect::<Vec<_>>(), [1, 2]);
    let luns = |name: &str| {
        let (group, luns) = checked.targets[0].luns_of(name);
        (group.map(|group| group.name.as_str()), luns.iter().map(|l| (l.lun, l.unit)).collect())
    };
    assert_eq!(luns("10.0.0.9"), (Some("hosts"), vec![(0, 1), (5, 2)]));
    assert_eq!(luns("10.0.1.9"), (None, vec![(0, 2)]));
}

fn configuration_refusal(spoil: impl FnOnce(&mut control::Configuration)) -> String {
    let mut spoiled = configuration();
    spoil(&mut spoiled);
    Configuration::try_from(&spoiled).unwrap_err().to_string()
}

#[test]
fn a_configuration_with_a_loose_end_is_refused() {
    assert!(configuration_refusal(|all| all.generation = 0).contains("generation 0"));
    assert!(configuration_refusal(|all| all.units[0].handle = 1).contains("handle 1"));
    assert_eq!(
        configuration_refusal(|all| all.units[0].handle = 3),
        "configuration 1: target \"fe80:1\" maps LUN 5 to logical unit 2, which is not there"
    );
    assert!(
        configuration_refusal(|all| {
            all.targets.push(control::Target { port_id: vec![9; 16], ..target(1) });
        })
        .contains("two targets have handle 1")
    );
    assert!(
        configuration_refusal(|all| {
            all.targets.push(control::Target { port_id: vec![1; 16], ..target(2) });
        })
        .contains("port id of another target")
    );
    assert!(
        configuration_refusal(|all| {
            all.targets.push(control::Target { name: "fe80:1".to_owned(), ..target(2) });
        })
        .contains("two targets of driver")
    );
}

fn ring(id: u32) -> control::Ring {
    control::Ring {
        id,
        group: id,
        arena: 1,
        submission_offset: u64::from(id) * 8192,
        completion_offset: u64::from(id) * 8192 + 4096,
        slots: 2,
        data_arena: 2,
        data_offset: u64::from(id) << 20,
        data_bytes: 1 << 20,
        ..Default::default()
    }
}

fn ring_setup() -> control::RingSetup {
    let arena = |id, bytes| control::Arena { id, blob: vec![0xaa; 16], bytes };
    control::RingSetup {
        arenas: vec![arena(1, 1 << 14), arena(2, 2 << 20)],
        rings: vec![ring(0), ring(1)],
    }
}

fn ring_refusal(spoil: impl FnOnce(&mut control::RingSetup)) -> String {
    let mut spoiled = ring_setup();
    spoil(&mut spoiled);
    RingSetup::try_from(&spoiled).unwrap_err().to_string()
}

#[test]
fn rings_and_data_areas_lie_apart_and_inside_their_arenas() {
    let checked = RingSetup::try_from(&ring_setup()).unwrap();
    assert_eq!(checked.rings[1].layout.slots(), 2);
    assert_eq!(checked.rings[1].data_offset, 1 << 20);
    assert!(!format!("{checked:?}").contains("170"), "the blob is a secret");
    assert!(ring_refusal(|all| all.arenas[1].id = 1).contains("used twice"));
    assert!(ring_refusal(|all| all.arenas[1].id = 1 << 16).contains("0 to 65535"));
    assert!(ring_refusal(|all| all.arenas[1].bytes = 0).contains("length is 0"));
    assert!(ring_refusal(|all| all.rings[1].arena = 7).contains("arena 7"));
    assert!(ring_refusal(|all| all.rings[1].group = 0).contains("poll group 0"));
    assert!(ring_refusal(|all| all.rings[1].id = 0).contains("used twice"));
    assert!(ring_refusal(|all| all.rings[1].slots = 3).contains("3 slots"));
    assert!(ring_refusal(|all| all.rings[1].submission_offset += 32).contains("multiple of 64"));
    assert!(ring_refusal(|all| all.rings[1].data_offset += 512).contains("multiple of 4096"));
    assert!(ring_refusal(|all| all.rings[1].data_bytes += 4096).contains("not inside arena 2"));
    assert!(ring_refusal(|all| all.rings[1].data_offset = u64::MAX - 4095).contains("not inside"));
    assert!(ring_refusal(|all| all.rings[1].data_offset = 0).contains("overlaps"));
    assert!(ring_refusal(|all| all.rings[1].completion_offset = 0).contains("overlaps"));
}

#[test]
fn a_ring_may_have_no_data_area() {
    let mut setup = ring_setup();
    for ring in &mut setup.rings {
        (ring.data_offset, ring.data_bytes) = (0, 0);
    }
    assert!(RingSetup::try_from(&setup).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_checked_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = control::Configuration::decode(bytes.as_slice())
            && let Err(error) = Configuration::try_from(&message) {
            prop_assert!(!error.to_string().is_empty());
        }
        if let Ok(message) = control::RingSetup::decode(bytes.as_slice()) {
            let _: Result<RingSetup, Invalid> = RingSetup::try_from(&message);
        }
    }

    #[test]
    fn damaged_configurations_are_checked_or_refused(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = configuration().encode_to_vec();
        for (index, value) in at {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if let Ok(message) = control::Configuration::decode(bytes.as_slice())
            && let Ok(checked) = Configuration::try_from(&message) {
            for target in &checked.targets {
                let (_, luns) = target.luns_of("10.0.0.1");
                for lun in luns {
                    prop_assert!(checked.units.iter().any(|unit| unit.handle == lun.unit));
                }
            }
        }
    }
}
