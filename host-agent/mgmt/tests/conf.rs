//! `scst.conf` through the public functions: what is accepted, the exact words of mistakes, and that any bytes are safe.

use lunar_mgmt::tree::{AccessState, Driver, Handler, NullPlace, Placement, TargetGroup};
use lunar_mgmt::{Tree, read, write};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../../docs/examples/scst.conf");

fn accepted(text: &str) -> Tree {
    match read("scst.conf", text.as_bytes()) {
        Ok((tree, _)) => tree,
        Err(refused) => panic!("{refused}"),
    }
}

fn refused(text: &str) -> String {
    read("scst.conf", text.as_bytes()).expect_err("a mistake was accepted").to_string()
}

#[test]
fn a_cd_drive_has_scsts_name_too_and_may_be_without_a_disc() {
    for handler in ["vdisk_cdrom", "vcdrom"] {
        for (attributes, filename) in [
            ("", None),
            ("{\nfilename \"\"\n}", None),
            ("{\nfilename /srv/a.iso\n}", Some("/srv/a.iso")),
        ] {
            let text = format!("HANDLER {handler} {{\nDEVICE cd {attributes}\n}}\n");
            let (tree, _) = read("scst.conf", text.as_bytes()).unwrap();
            let cd = &tree.devices["cd"];
            assert_eq!((cd.handler, cd.filename.as_deref()), (Handler::Cdrom, filename));
            assert_eq!((cd.block_bytes, cd.read_only, cd.removable), (2048, true, true));
            assert!(cd.on_host());
        }
    }
    let fixed = refused("HANDLER vdisk_cdrom {\nDEVICE cd {\nblocksize 512\n}\n}\n");
    assert!(fixed.contains("`blocksize` is not an attribute of vdisk_cdrom"), "{fixed}");
}

#[test]
fn the_shipped_example_is_read_without_a_warning() {
    let (tree, warnings) = read("scst.conf", EXAMPLE.as_bytes()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(tree.devices.len(), 3);
    let disk = &tree.devices["disk1"];
    assert_eq!(disk.handler, Handler::FileIo);
    assert_eq!(disk.filename.as_deref(), Some("/var/lib/lunar/disk1.img"));
    assert!(!disk.rotational && disk.on_host());
    assert_eq!(disk.placement(), Placement::HostDram);
    let null = &tree.devices["null_card"];
    assert_eq!((null.null_place, null.nullio_blocks()), (NullPlace::Card, 8 << 20));
    assert_eq!(null.placement(), Placement::CardDram);
    let target = &tree.drivers[&Driver::IbSrpt]["fe80:0000:0000:0000:0002:c903:0005:f34b"];
    assert!(target.enabled);
    assert_eq!(target.relative_target_port, Some(1));
    assert_eq!(target.luns[&2].device, "null_host");
    assert!(target.groups["readers"].luns[&0].read_only);
    assert_eq!(target.groups["readers"].initiators.len(), 1);
}

#[test]
fn an_unknown_attribute_is_refused_with_the_known_ones() {
    let text = "HANDLER vdisk_nullio {\n\tDEVICE null1 {\n\t\tblok_size 512\n\t}\n}\n";
    assert_eq!(
        refused(text),
        "\
error: `blok_size` is not an attribute of vdisk_nullio device `null1`
 --> scst.conf:3:3
3 |   blok_size 512
  |   ^^^^^^^^^
  = way out: known here: blocksize, size, size_mb, read_only, rotational, read_zero, dummy, removable, opt_trans_len, tst, t10_vend_id, prod_id, prod_rev_lvl, inq_vend_specific, usn, t10_dev_id, naa_id, eui64_id, pr_file_name, lunar_backend, lunar_placement
1 mistake; nothing of the configuration was applied"
    );
}

#[test]
fn a_lun_beyond_flat_space_and_one_without_a_device_are_both_reported() {
    let text =
        "TARGET_DRIVER ib_srpt {\n  TARGET t {\n    LUN 20000 disk1\n    LUN 0 disk2\n  }\n}\n";
    assert_eq!(
        refused(text),
        "\
error: LUN 20000 is greater than 16383, the greatest there is (SAM-6 4.7)
 --> scst.conf:3:9
3 |     LUN 20000 disk1
  |         ^^^^^
  = way out: use 0 to 16383
error: there is no device `disk2`
 --> scst.conf:4:11
4 |     LUN 0 disk2
  |           ^^^^^
  = way out: add it to the block of its handler; devices there are: none
2 mistakes; nothing of the configuration was applied"
    );
}

#[test]
fn an_open_block_is_reported_where_it_begins() {
    assert_eq!(
        refused("HANDLER vdisk_nullio {\n  DEVICE a {\n  }\n"),
        "\
error: the block of HANDLER is never closed
 --> scst.conf:1:22
1 | HANDLER vdisk_nullio {
  |                      ^
  = way out: write `}` on a line of its own where the block ends
1 mistake; nothing of the configuration was applied"
    );
}

#[test]
fn a_relative_filename_is_refused() {
    let text = "HANDLER vdisk_fileio {\n  DEVICE a {\n    filename disk.img\n  }\n}\n";
    assert_eq!(
        refused(text),
        "\
error: filename `disk.img` is not absolute
 --> scst.conf:3:14
3 |     filename disk.img
  |              ^^^^^^^^
  = way out: give the path from the root, for example /var/lib/lunar/disk1.img
1 mistake; nothing of the configuration was applied"
    );
}

/// Each mistake, in the smallest configuration that has it, and words its message must contain.
#[test]
fn mistakes_are_refused_with_their_reason() {
    let device =
        |handler: &str, body: &str| format!("HANDLER {handler} {{\nDEVICE a {{\n{body}\n}}\n}}\n");
    let target = |body: &str| {
        format!(
            "HANDLER vdisk_nullio {{\nDEVICE a\n}}\nTARGET_DRIVER ib_srpt {{\nTARGET t {{\n{body}\n}}\n}}\n"
        )
    };
    let file = "filename /a\n";
    let alua =
        |body: &str| format!("{}DEVICE_GROUP dg {{\n{body}\n}}\n", target("rel_tgt_id 7\nLUN 0 a"));
    let cases = [
        (device("vdisk_nullio", "blocksize 3000"), "not a power of two from 512 to 4096"),
        (device("vdisk_nullio", "blocksize 8192"), "not a power of two from 512 to 4096"),
        (device("vdisk_nullio", "blocksize 256"), "not a power of two from 512 to 4096"),
        (device("vdisk_nullio", "size 1000"), "no multiple of blocksize 512"),
        (device("vdisk_nullio", "read_zero 1"), "add `lunar_backend host`"),
        (device("vdisk_nullio", "read_zero 2"), "`2` is not 0 or 1"),
        (device("vdisk_nullio", "dummy 1\nlunar_backend host"), "`a` is no device"),
        (device("vdisk_nullio", "dummy 1\nremovable 1"), "`a` is no device"),
        (device("vdisk_nullio", "inq_vend_specific twenty_one_characters"), "has 21 characters"),
        (device("vdisk_nullio", "size 0"), "a capacity of 0 bytes"),
        (device("vdisk_nullio", "size_mb 99999999999999"), "is not possible"),
        (device("vdisk_nullio", "size 512\nsize_mb 1"), "both give the capacity"),
        (device("vdisk_nullio", "read_only yes"), "`yes` is not 0 or 1"),
        (device("vdisk_nullio", "read_only 1\nread_only 1"), "given twice"),
        (device("vdisk_nullio", "filename /a"), "`filename` is not an attribute of vdisk_nullio"),
        (device("vdisk_nullio", "tst 2"), "`2` is not 0 or 1"),
        (device("vdisk_nullio", "prod_id seventeen_letters"), "has 17 characters"),
        (device("vdisk_nullio", "usn \"\""), "has 0 characters"),
        (device("vdisk_nullio", "t10_vend_id ä"), "SPC-6 4.3.1"),
        (device("vdisk_nullio", "naa_id 1000000000000000"), "no NAA designator"),
        (device("vdisk_nullio", "naa_id 0x600"), "even count of hexadecimal digits"),
        (device("vdisk_nullio", "eui64_id 0011"), "has 2 bytes instead of 8"),
        (device("vdisk_nullio", "lunar_backend moon"), "not card or host"),
        (device("vdisk_nullio", "lunar_placement moon"), "not host_dram or card_dram"),
        (device("vdisk_nullio", "opt_trans_len 100"), "opt_trans_len 100 is no multiple"),
        (device("vdisk_nullio", "size"), "takes one value, not 0"),
        (device("vdisk_nullio", "prod_id my disk"), "takes one value, not 2"),
        (device("vdisk_nullio", "size {\n}"), "has a block"),
        (device("vdisk_fileio", ""), "has no filename"),
        (device("vdisk_fileio", &format!("{file}read_only 1\nwrite_through 1")), "remove write_through"),
        (device("vdisk_blockio", &format!("{file}nv_cache 1\nread_only 1")), "remove nv_cache"),
        (device("vdisk_blockio", &format!("{file}o_direct 1")), "not an attribute of vdisk_blockio"),
        (device("vdisk_tape", ""), "there is no handler `vdisk_tape`"),
        ("TARGET_DRIVER iscsi {\n}\n".into(), "there is no target driver `iscsi`"),
        ("TARGET_DRIVER ib_srpt {\nenabled 1\n}\n".into(), "known here: TARGET"),
        ("LUN 0 a\n".into(), "not known at the top of the file"),
        ("setup_id 0x100000000\n".into(), "does not fit 32 bits"),
        ("HANDLER vdisk_nullio {\nDEVICE mgmt\n}\n".into(), "is reserved"),
        ("HANDLER vdisk_nullio {\nDEVICE a/b\n}\n".into(), "contains `/`"),
        ("HANDLER vdisk_nullio {\nDEVICE \"\"\n}\n".into(), "name is empty"),
        ("HANDLER vdisk_nullio {\nDEVICE a b\n}\n".into(), "takes one name, not 2"),
        ("HANDLER vdisk_nullio {\nDEVICE a\nDEVICE a\n}\n".into(), "unique over all handlers"),
        ("HANDLER vdisk_nullio\nHANDLER vdisk_nullio\n".into(), "given twice"),
        (target("LUN 0 a\nLUN 0 a"), "LUN 0 is already device `a`"),
        (target("LUN -1 a"), "`-1` is not a number"),
        (target("LUN 0"), "takes a number and a device, not 1"),
        (target("LUN 0 a {\nwritable 1\n}"), "not an attribute of a LUN"),
        (target("rel_tgt_id 65536"), "greater than 65535"),
        (target("lunar_request_limit 1"), "not between 2 and 4096"),
        (target("enabled 1\nenabled 0"), "given twice in target `t`"),
        (target("HW_TARGET 1"), "takes no value"),
        (target("GROUP g {\nenabled 1\n}"), "not known in group `g`"),
        (target("GROUP g {\nINITIATOR x\n}\nGROUP h {\nINITIATOR x\n}"), "already in group `g`"),
        (target("GROUP g {\nINITIATOR x {\n}\n}"), "no attributes"),
        ("TARGET_DRIVER ib_srpt {\nTARGET a {\nrel_tgt_id 1\n}\nTARGET b {\nrel_tgt_id 1\n}\n}\n".into(),
            "rel_tgt_id 1 is already that of target `a`"),
        (alua("DEVICE a\nDEVICE a"), "already in device group `dg`"),
        (alua("DEVICE a\n}\nDEVICE_GROUP other {\nDEVICE a"), "already in device group `dg`"),
        (alua("DEVICE b"), "there is no device `b`"),
        (alua("DEVICE a {\n}"), "has a block"),
        (alua("}\nDEVICE_GROUP dg {"), "DEVICE_GROUP `dg` is given twice"),
        (alua("LUN 0 a"), "known here: DEVICE, TARGET_GROUP"),
        (alua("TARGET_GROUP mgmt {\ngroup_id 1\n}"), "is reserved"),
        (alua("TARGET_GROUP tg {\nTARGET t\n}"), "has no group_id"),
        (alua("TARGET_GROUP tg {\ngroup_id 0\n}"), "not between 1 and 65535"),
        (alua("TARGET_GROUP tg {\ngroup_id 65536\n}"), "not between 1 and 65535"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nstate Active\n}"), "known: active, nonoptimized, standby"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\npreferred yes\n}"), "`yes` is not 0 or 1"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\ncolour red\n}"), "TARGET, group_id, state, preferred"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\ngroup_id 2\n}"), "given twice in target group `tg`"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\n}\nTARGET_GROUP tg {\ngroup_id 2\n}"), "given twice"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\n}\nTARGET_GROUP tu {\ngroup_id 0x1\n}"),
            "group_id 1 is already that of target group `tg`"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nTARGET t\n}\nTARGET_GROUP tu {\ngroup_id 2\nTARGET t\n}"),
            "target `t` is already in target group `tg`"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nTARGET far\n}"), "for one of another node rel_tgt_id is missing"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nTARGET far {\nrel_tgt_id 0\n}\n}"), "not between 1 and 65535"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nTARGET far {\nrel_tgt_id 7\n}\n}"),
            "rel_tgt_id 7 is already that of target `t`"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nTARGET t {\nrel_tgt_id 8\n}\n}"),
            "is one of this host, without rel_tgt_id 8"),
        (alua("TARGET_GROUP tg {\ngroup_id 1\nTARGET t {\nenabled 1\n}\n}"), "known here: rel_tgt_id"),
        (alua(&(1..34).map(|id| format!("TARGET_GROUP g{id} {{\ngroup_id {id}\n}}\n")).collect::<String>()),
            "has 33 target groups"),
        ("}\n".into(), "none is open"),
        ("{\n".into(), "nothing says what it is"),
        ("a \"b\n".into(), "does not end on its line"),
        ("a b\\\n".into(), "nothing follows the backslash"),
        ("a \u{1}\n".into(), "control character U+0001"),
        ("a {\n".repeat(9), "more than 8 blocks in blocks"),
    ];
    for (text, words) in &cases {
        let message = refused(text);
        assert!(message.contains(words), "{text}\ngave\n{message}\nwithout `{words}`");
        assert!(message.contains(" = way out: "), "{message}");
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_where_they_stand() {
    let error = read("scst.conf", b"HANDLER a\nDEVICE \xff\n").unwrap_err();
    let place = error.errors[0].place;
    assert_eq!((place.line, place.column), (2, 8));
}

#[test]
fn a_missing_lun_0_is_a_warning() {
    let text =
        "HANDLER vdisk_nullio {\nDEVICE a\n}\nTARGET_DRIVER ib_srpt {\nTARGET t {\nLUN 1 a\n}\n}\n";
    let (_, warnings) = read("scst.conf", text.as_bytes()).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].reason.starts_with("target `t` has no LUN 0"), "{}", warnings[0]);
}

#[test]
fn quotes_escapes_and_hashes_inside_words_are_kept() {
    let tree = accepted(
        "HANDLER vdisk_nullio { # one\nDEVICE \"a b\" { # two\nprod_id \"x \\\" {y}\"\n}\nDEVICE a\\ c\n}\n\
         TARGET_DRIVER ib_srpt {\nTARGET t {\nLUN 0 \"a b\"\nGROUP g {\nLUN 0 \"a c\"\nINITIATOR iqn#1\n}\n}\n}\n",
    );
    assert_eq!(tree.devices["a b"].identity.prod_id.as_deref(), Some("x \" {y}"));
    assert!(tree.devices.contains_key("a c"));
    assert_eq!(tree.drivers[&Driver::IbSrpt]["t"].groups["g"].initiators, ["iqn#1"]);
}

#[test]
fn blocks_on_one_line_and_windows_line_ends_are_read() {
    let tree =
        accepted("HANDLER vdisk_nullio { DEVICE a { size_mb 1 } DEVICE b { blocksize 4096 } }\r\n");
    assert_eq!(tree.devices["a"].nullio_blocks(), 2048);
    assert_eq!(tree.devices["b"].block_bytes, 4096);
}

#[test]
fn the_example_of_alua_is_read_and_written() {
    let tree = accepted(include_str!("../../../docs/examples/alua.conf"));
    assert!(tree.devices["disk1"].explicit_alua);
    let group = &tree.device_groups["disks"];
    assert_eq!(group.devices.iter().collect::<Vec<_>>(), ["disk1"]);
    let told = group.target_groups.iter().map(|(name, own)| {
        let targets = own.targets.values().copied().collect::<Vec<_>>();
        (name.as_str(), own.id, own.state, own.preferred, targets)
    });
    let expected = [
        ("far", 2, AccessState::Standby, false, vec![None]),
        ("near", 1, AccessState::Active, true, vec![None]),
        ("other_node", 257, AccessState::Unavailable, false, vec![Some(3)]),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert_eq!(accepted(&write(&tree)), tree);
}

/// A target of this host may be given its own number once more, as SCST's tools may write it.
#[test]
fn an_own_target_of_a_target_group_may_repeat_its_rel_tgt_id() {
    let text = "TARGET_DRIVER ib_srpt {\nTARGET t {\nrel_tgt_id 7\n}\n}\nDEVICE_GROUP dg {\nTARGET_GROUP tg {\n\
                group_id 1\nTARGET t {\nrel_tgt_id 7\n}\n}\n}\n";
    let (tree, _) = read("scst.conf", text.as_bytes()).unwrap();
    assert_eq!(tree.device_groups["dg"].target_groups["tg"].targets["t"], None);
}

#[test]
fn a_target_that_exports_a_grouped_device_outside_all_target_groups_is_a_warning() {
    let text = "HANDLER vdisk_nullio {\nDEVICE a\n}\nDEVICE_GROUP dg {\nDEVICE a\n}\n\
                TARGET_DRIVER ib_srpt {\nTARGET t {\nLUN 0 a\n}\n}\n";
    let (_, warnings) = read("scst.conf", text.as_bytes()).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].reason.contains("target `t` exports devices of device group `dg`"));
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_:.#\\\\\"{} *?!äß-]{1,12}".prop_filter("reserved", |name| {
        !["mgmt", "type", "module", "uevent", "version", "enabled", ".", ".."]
            .contains(&name.as_str())
    })
}

prop_compose! {
    fn device()(
        kind in 0_usize..4, block_shift in 9_u32..13, blocks in 1_u64..1 << 40, flags in any::<[bool; 8]>(),
        product in proptest::option::of("[ -~]{1,16}"), serial in proptest::option::of("[ -~]{1,20}"),
        eui64_id in any::<Option<[u8; 8]>>(), naa in any::<Option<[u8; 7]>>(), path in name(),
        host in any::<bool>(), placement in 0_usize..3, sized in any::<bool>(),
    ) -> lunar_mgmt::tree::Device {
        let handler = Handler::ALL[kind];
        let mut device = lunar_mgmt::tree::Device::new(handler);
        device.identity.prod_id = product.clone();
        if handler == Handler::Cdrom {
            device.filename = host.then(|| format!("/{path}"));
            return device;
        }
        device.block_bytes = 1 << block_shift;
        device.read_only = flags[0];
        device.rotational = flags[1];
        device.removable = flags[2];
        if handler.has_file() {
            device.filename = Some(format!("/{path}"));
            device.nv_cache = flags[3] && !flags[0];
            device.write_through = flags[4] && !flags[0];
            device.thin_provisioned = flags[5];
            device.physical_block_exponent = flags[6];
            device.explicit_alua = flags[1];
            device.o_direct = flags[7] && handler == Handler::FileIo;
        } else {
            device.size_bytes = sized.then(|| blocks << block_shift);
            device.null_place = if host { NullPlace::Host } else { NullPlace::Card };
            device.dummy = flags[7] && !host && !device.removable;
        }
        device.placement_override = [None, Some(Placement::HostDram), Some(Placement::CardDram)][placement];
        device.optimal_transfer_bytes = flags[3].then_some(1 << 19);
        device.identity.prod_id = product;
        device.identity.usn = serial;
        device.identity.eui64_id = eui64_id;
        device.identity.inq_vend_specific = flags[6].then(|| "vendor text".to_owned());
        device.identity.naa_id = naa.map(|rest| [&[0x5f], &rest[..]].concat());
        device
    }
}

prop_compose! {
    fn tree()(
        setup_id in any::<u32>(),
        devices in proptest::collection::btree_map(name(), device(), 1..5),
        targets in proptest::collection::btree_map(
            name(),
            (any::<[bool; 2]>(), 2_u32..4096,
             proptest::collection::btree_map(0..=16383_u16, (any::<prop::sample::Index>(), any::<bool>()), 0..5),
             proptest::collection::btree_map(name(), name(), 0..3)),
            0..4),
        groups_numbered in any::<bool>(),
        device_groups in proptest::collection::btree_map(
            name(),
            (any::<prop::sample::Index>(), proptest::collection::btree_map(
                name(), (0_usize..7, any::<[bool; 2]>(), any::<prop::sample::Index>(), name()), 0..4)),
            0..3),
    ) -> Tree {
        let names: Vec<String> = devices.keys().cloned().collect();
        let mut tree = Tree { setup_id, devices, ..Tree::default() };
        for (index, (name, (flags, request_limit, luns, groups))) in targets.into_iter().enumerate() {
            let mut target = lunar_mgmt::tree::Target {
                enabled: flags[0],
                hardware: flags[1],
                request_limit,
                relative_target_port: groups_numbered.then_some(index as u16 + 1),
                ..Default::default()
            };
            for (number, (device, read_only)) in luns {
                let device = names[device.index(names.len())].clone();
                target.luns.insert(number, lunar_mgmt::tree::Lun { device, read_only });
            }
            for (number, (group, pattern)) in groups.into_iter().enumerate() {
                // A pattern is in one group of a target.
                let initiators = vec![format!("{number}{pattern}"), format!("{number}{pattern}*")];
                let luns = target.luns.clone();
                target.groups.insert(group, lunar_mgmt::tree::Group { initiators, luns });
            }
            tree.drivers.entry(Driver::IbSrpt).or_default().insert(name, target);
        }
        let own: Vec<String> = tree.drivers.values().flatten().map(|(name, _)| name.clone()).collect();
        let mut free = names.clone();
        for (name, (device, groups)) in device_groups {
            let mut group = lunar_mgmt::tree::DeviceGroup::default();
            if !free.is_empty() {
                group.devices.insert(free.swap_remove(device.index(free.len())));
            }
            let mut unused = own.clone();
            for (number, (name, (state, flags, target, far))) in groups.into_iter().enumerate() {
                let number = number as u16;
                let mut targets = std::collections::BTreeMap::new();
                if flags[0] && !unused.is_empty() {
                    targets.insert(unused.swap_remove(target.index(unused.len())), None);
                }
                // No target of this host has a name of that length.
                targets.insert(format!("{far}-{number}-of-another-node"), Some(1000 + number));
                let state = AccessState::ALL[state];
                let target_group = TargetGroup { id: 1 + number, state, preferred: flags[1], targets };
                group.target_groups.insert(name, target_group);
            }
            tree.device_groups.insert(name, group);
        }
        tree
    }
}

proptest! {
    /// Any bytes give a tree or mistakes that have a place in the text.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Err(refused) = read("x", &bytes) {
            prop_assert!(!refused.errors.is_empty());
            prop_assert!(!refused.to_string().is_empty());
        }
    }

    /// Words of the grammar in any order get further into the reader than bytes do.
    #[test]
    fn any_words_are_survived(words in proptest::collection::vec(prop::sample::select(vec![
        "HANDLER", "vdisk_nullio", "vdisk_fileio", "DEVICE", "a", "{", "}", "\n", "\n", "TARGET_DRIVER",
        "ib_srpt", "TARGET", "LUN", "0", "16384", "GROUP", "INITIATOR", "*", "enabled", "1", "#", "\"", "\\",
        "DEVICE_GROUP", "TARGET_GROUP", "group_id", "state", "standby", "size", "filename", "/x", "rel_tgt_id", "HW_TARGET", "naa_id", "blocksize", "é", "\t",
    ]), 0..120)) {
        let text = words.join(" ");
        if let Ok((tree, _)) = read("x", text.as_bytes()) {
            prop_assert_eq!(read("x", write(&tree).as_bytes()).map(|(tree, _)| tree), Ok(tree));
        }
    }

    /// What is written reads back as the same tree.
    #[test]
    fn a_written_tree_reads_back_the_same(tree in tree()) {
        let text = write(&tree);
        match read("x", text.as_bytes()) {
            Ok((again, _)) => prop_assert_eq!(again, tree),
            Err(refused) => prop_assert!(false, "{}\n{}", refused, text),
        }
    }
}
