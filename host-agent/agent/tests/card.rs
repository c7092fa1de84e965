//! The agent over its control channel, its rings and its API, step by step.

mod board;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use board::{
    BOTH, Board, CONFIGURATION, Card, DISK_BYTES, Over, PATIENCE, Rings, connected_over_tcp,
    over_tls, unit,
};
use lunar_agent::api::wire;
use lunar_control_channel::Role;
use lunar_control_channel::make::{Authority, Validity, make};
use lunar_offload_proto::control::{self, to_card, to_host};
use lunar_offload_proto::histogram::bucket_of;
use lunar_offload_proto::ring::{
    BlockRange, BlockRequest, LbaRun, Operation, Outcome, SideRecord, SubmissionEntry,
};
use zerocopy::FromBytes as _;

#[test]
fn a_card_is_configured_and_its_ring_operations_reach_the_file() {
    for over in BOTH {
        let board = Board::start_over(over, CONFIGURATION);
        let mut card = Card::connect(&board);
        let (setup, configuration) = card.meet(41, false);
        let mut rings = Rings::open(&board, &setup);
        let (generation, disk) = (configuration.generation, unit(&configuration, "disk"));
        assert_eq!(configuration.units.len(), 3);
        assert_eq!(configuration.targets[0].default_luns.len(), 3);

        let read = rings.run(Operation::Read, disk, generation, 1, true);
        assert_eq!(read.outcome(), Outcome::Done, "{read:?}");
        let mut bytes = [0; 4096];
        assert!(rings.arena.read(8192, &mut bytes));
        assert_eq!(bytes, [0x5a; 4096]);

        assert!(rings.arena.write(8192, &[0xc3; 4096]));
        let write = rings.run(Operation::Write, disk, generation, 63, true);
        assert_eq!(write.outcome(), Outcome::Done, "{write:?}");
        assert_eq!(rings.run(Operation::Flush, disk, generation, 0, true).outcome(), Outcome::Done);
        let file = std::fs::read(board.path("disk.img")).unwrap();
        assert_eq!(file[63 * 4096..], [0xc3; 4096]);
        assert_eq!(file[62 * 4096..63 * 4096], [0x5a; 4096]);

        let beyond = rings.run(Operation::Read, disk, generation, 64, true);
        assert_eq!(beyond.outcome(), Outcome::OutOfRange);
        let null =
            rings.run(Operation::Read, unit(&configuration, "null_host"), generation, 0, true);
        assert_eq!(null.outcome(), Outcome::Done);
        // The card answers for it alone, so nothing of it belongs into a ring.
        let misled =
            rings.run(Operation::Read, unit(&configuration, "null_card"), generation, 0, true);
        assert_eq!(misled.outcome(), Outcome::Refused);
    }
}

#[test]
fn every_block_operation_reaches_the_file() {
    let board = Board::start(&CONFIGURATION.replace("DISK", "DISK\n        thin_provisioned 1"));
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    let on = (unit(&configuration, "disk"), configuration.generation);
    let file = || std::fs::read(board.path("disk.img")).unwrap();

    // Two blocks: the first is compared with, the second written.
    assert!(rings.arena.write(8192, &[[0x5a; 512], [1; 512]].concat()));
    let series = BlockRequest::CompareAndWrite { lba: 3, blocks: 1, fua: true };
    let ended = rings.request(series, 1024, None, on);
    assert_eq!((ended.outcome(), ended.transferred_bytes.get()), (Outcome::Done, 1024));
    assert_eq!(file()[3 * 512..4 * 512], [1; 512]);
    let ended = rings.request(series, 1024, None, on);
    assert_eq!((ended.outcome(), ended.detail.get()), (Outcome::Miscompare, 0));

    assert!(rings.arena.write(8192, &[0xa5; 512]));
    let or = BlockRequest::OrWrite { lba: 4, blocks: 1, fua: false };
    assert_eq!(rings.request(or, 512, None, on).outcome(), Outcome::Done);
    assert_eq!(file()[4 * 512..5 * 512], [0xff; 512]);
    let same = BlockRequest::WriteSame { lba: 8, blocks: 8, unmap: false };
    assert_eq!(rings.request(same, 512, None, on).outcome(), Outcome::Done);
    assert_eq!(file()[4096..8192], [0xa5; 4096]);
    let compare = BlockRequest::Compare { lba: 8, blocks: 8 };
    assert_eq!(rings.request(compare, 512, None, on).outcome(), Outcome::Done);
    let prefetch = BlockRequest::Prefetch { lba: 0, blocks: 0 };
    assert_eq!(rings.request(prefetch, 0, None, on).outcome(), Outcome::Done);

    let mut side = SideRecord::empty();
    side.set_ranges(&[BlockRange::new(16, 16), BlockRange::new(64, 64)]).unwrap();
    let ended = rings.request(BlockRequest::Unmap, 0, Some(&side), on);
    assert_eq!(ended.outcome(), Outcome::Done);
    assert_eq!(file()[16 * 512..32 * 512], [0; 16 * 512]);
    assert_eq!(file()[64 * 512..128 * 512], [0; 64 * 512]);
    assert_eq!(file()[128 * 512], 0x5a);
    let status = BlockRequest::LbaStatus { lba: 0, blocks: 0 };
    let ended = rings.request(status, 256, None, on);
    assert_eq!(ended.outcome(), Outcome::Done);
    let mut runs = vec![0; ended.transferred_bytes.get() as usize];
    assert!(rings.arena.read(8192, &mut runs));
    let mut covered = 0;
    for run in <[LbaRun]>::ref_from_bytes(&runs).unwrap() {
        assert_eq!(run.lba.get(), covered, "no gaps");
        covered += u64::from(run.blocks.get());
    }
    assert_eq!(covered, DISK_BYTES as u64 / 512);
}

#[test]
fn the_commands_are_told_with_who_answers_them() {
    let board = Board::start(CONFIGURATION);
    let _card = Card::connect(&board);
    let reply = board.ask(async |api| api.opcodes(wire::OpcodesRequest {}).await);
    let row = |name: &str| reply.opcodes.iter().find(|row| row.name == name).expect("a command");
    let read = row("READ (16)");
    assert_eq!((read.operation, read.cdb_bytes, read.answerer.as_str()), (0x88, 16, "card"));
    assert_eq!(row("MODE SELECT (10)").answerer, "host");
    assert_eq!(row("GET LBA STATUS (16)").service_action, Some(0x12));
    assert!(row("UNMAP").thin_only && !read.thin_only);
    assert!(row("REPORT TARGET PORT GROUPS").alua_only && !read.alua_only);
    assert_eq!(row("SET TARGET PORT GROUPS").answerer, "host");
}

#[test]
fn a_file_that_grew_is_larger_for_the_card_when_somebody_says_so() {
    let board = Board::start(CONFIGURATION);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    let disk = unit(&configuration, "disk");
    let file = std::fs::File::options().write(true).open(board.path("disk.img")).unwrap();
    file.set_len(2 * DISK_BYTES as u64).unwrap();
    let resync = |device: &str| wire::ResyncSizeRequest { device: device.to_owned() };

    let reply = board.ask(async |api| api.resync_size(resync("disk")).await);
    assert_eq!((reply.blocks, reply.blocks_before), (1024, 512));
    let Some(to_card::Message::Configuration(changed)) = card.next() else { panic!("no change") };
    assert_eq!(changed.generation, configuration.generation + 1);
    assert_eq!(changed.units.iter().find(|unit| unit.handle == disk).unwrap().blocks, 1024);
    let read = rings.run(Operation::Read, disk, changed.generation, 100, true);
    assert_eq!(read.outcome(), Outcome::Done);

    // The same size again is no change, and a name that is not there is an answer in words.
    let reply = board.ask(async |api| api.resync_size(resync("disk")).await);
    assert_eq!((reply.blocks, reply.blocks_before), (1024, 1024));
    let refused = board.ask(async |api| {
        let refused = api.resync_size(resync("null_card")).await.unwrap_err();
        Ok(tonic::Response::new(refused.message().to_owned()))
    });
    assert!(refused.contains("null_card") && refused.contains("disk, null_host"), "{refused}");
}

/// SCST: `filename` of a vdisk_cdrom is written while it is in use. MMC-6: its removal can be prevented.
#[test]
fn a_disc_is_changed_and_taken_out_unless_an_initiator_prevents_that() {
    const BLOCK_BYTES: u64 = 2048;
    let discs = tempfile::tempdir().unwrap();
    let disc = |name: &str, blocks: u64, fill: u8| {
        let path = discs.path().join(name);
        std::fs::write(&path, vec![fill; (blocks * BLOCK_BYTES) as usize]).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (first, second) = (disc("first.iso", 32, 1), disc("second.iso", 48, 2));
    let more = format!(
        "HANDLER vdisk_cdrom {{\nDEVICE cd {{\nfilename {first}\n}}\n}}\n{}",
        CONFIGURATION.replace("LUN 2 null_host", "LUN 2 null_host\nLUN 3 cd")
    );
    let board = Board::start(&more);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    let cd = unit(&configuration, "cd");
    let of_cd = |configuration: &control::Configuration| {
        let own = configuration.units.iter().find(|unit| unit.handle == cd).unwrap();
        (own.blocks, own.medium)
    };
    let (blocks, first_medium) = of_cd(&configuration);
    assert_eq!(blocks, 32);
    let change = |device: &str, filename: &str| wire::ChangeMediumRequest {
        device: device.to_owned(),
        filename: filename.to_owned(),
    };
    let refusal = |device: &str, filename: &str| {
        let request = change(device, filename);
        board.ask(async |api| {
            let refused = api.change_medium(request).await.unwrap_err();
            Ok(tonic::Response::new(refused.message().to_owned()))
        })
    };

    let reply = board.ask(async |api| api.change_medium(change("cd", &second)).await);
    assert_eq!(reply.blocks, 48);
    let Some(to_card::Message::Configuration(changed)) = card.next() else { panic!("no change") };
    let (blocks, second_medium) = of_cd(&changed);
    assert_eq!((blocks, second_medium == first_medium), (48, false));
    let mut read = SubmissionEntry::new(Operation::Read, 0);
    (read.blocks, read.data_bytes) = (1.into(), 2048.into());
    let done = rings.carry_out(read, None, (cd, changed.generation), true);
    assert_eq!(done.outcome(), Outcome::Done);
    let mut block = [0; BLOCK_BYTES as usize];
    assert!(rings.arena.read(8192, &mut block));
    assert_eq!(block, [2; BLOCK_BYTES as usize]);

    // What cannot be changed stays, and the answer says why.
    assert!(refusal("disk", &first).contains("disk is no vdisk_cdrom"));
    assert!(refusal("cd", "first.iso").contains("not absolute"));
    assert!(refusal("cd", "/nowhere/first.iso").contains("/nowhere/first.iso"));
    for (prevent, prevents) in [(1, true), (0, false)] {
        let mut side = SideRecord::empty();
        side.set_cdb(&[0x1E, 0, 0, 0, prevent, 0]).unwrap();
        let forward = BlockRequest::Forward { data_out: false };
        let done = rings.request(forward, 0, Some(&side), (cd, changed.generation));
        assert_eq!((done.outcome(), done.status), (Outcome::Forwarded, 0));
        if prevents {
            let words = refusal("cd", "");
            assert!(words.contains("fe80::1") && words.contains("prevents"), "{words}");
        }
    }
    let reply = board.ask(async |api| api.change_medium(change("cd", "")).await);
    assert_eq!(reply.blocks, 0);
    let Some(to_card::Message::Configuration(empty)) = card.next() else { panic!("no change") };
    assert_eq!((of_cd(&empty), empty.generation), ((0, 0), changed.generation + 1));
}

/// `lunar alua set` is answered when the card has made the change; a card that is not there does not hold it up.
#[test]
fn access_states_are_told_and_set_when_the_card_has_made_the_change() {
    let groups = "DEVICE_GROUP dg {\nDEVICE disk\nTARGET_GROUP here {\ngroup_id 1\nTARGET t\n}\n\
                  TARGET_GROUP there {\ngroup_id 2\nstate standby\nTARGET far {\nrel_tgt_id 7\n}\n}\n}\n";
    let board = Board::start(&format!("{CONFIGURATION}{groups}"));
    let mut card = Card::connect(&board);
    let (_, configuration) = card.meet(41, false);
    assert_eq!(configuration.device_groups[0].groups[0].ports[0].target, 1);
    let told = || board.ask(async |api| api.alua(wire::AluaRequest {}).await).device_groups;
    let states = || {
        let groups = told().remove(0).target_groups.into_iter();
        let told = groups.map(|group| (group.name, group.state, group.preferred, group.changed_by));
        told.collect::<Vec<_>>()
    };
    let state = |name: &str, state: &str, preferred, by: &str| {
        (name.to_owned(), state.to_owned(), preferred, by.to_owned())
    };
    let there = state("there", "standby", false, "");
    assert_eq!(states(), [state("here", "active", false, ""), there.clone()]);
    let group = told().remove(0);
    assert_eq!((group.name.as_str(), group.devices), ("dg", vec!["disk".to_owned()]));
    let far = &group.target_groups[1].targets[0];
    assert_eq!((far.name.as_str(), far.relative_target_port, far.other_node), ("far", 7, true));

    let set = |state: &str, preferred| wire::SetAluaRequest {
        device_group: "dg".to_owned(),
        target_group: "here".to_owned(),
        state: Some(state.to_owned()),
        preferred,
    };
    std::thread::scope(|scope| {
        let setting = scope
            .spawn(|| board.ask(async |api| api.set_alua(set("unavailable", Some(true))).await));
        let Some(to_card::Message::Configuration(changed)) = card.next() else {
            panic!("no change")
        };
        assert_eq!(changed.device_groups[0].groups[0].state, 3);
        assert!(!setting.is_finished(), "the card has not made the change");
        let generation = changed.generation;
        let applied = control::ConfigurationApplied { generation };
        card.send(to_host::Message::ConfigurationApplied(applied));
        let reply = setting.join().unwrap();
        assert!(reply.in_force);
        let own = reply.target_group.unwrap();
        assert_eq!((own.state.as_str(), own.preferred), ("unavailable", true));
    });
    assert_eq!(states(), [state("here", "unavailable", true, "management"), there]);
    let reply = board.ask(async |api| api.set_alua(set("unavailable", None)).await);
    assert!(reply.in_force, "nothing to change");

    let refused = |request: wire::SetAluaRequest| {
        board.ask(async |api| {
            let refused = api.set_alua(request).await.unwrap_err();
            Ok(tonic::Response::new(refused.message().to_owned()))
        })
    };
    let asleep = refused(set("asleep", None));
    assert!(asleep.contains("state `asleep` is not known; there are: active, "), "{asleep}");
    let target_group = "nowhere".to_owned();
    let nowhere = refused(wire::SetAluaRequest { target_group, ..set("active", None) });
    assert!(nowhere.contains("no target group `nowhere`; it has: here, there"), "{nowhere}");

    drop(card);
    let reply = board.ask(async |api| api.set_alua(set("active", None)).await);
    assert!(!reply.in_force);
    assert_eq!(states()[0], state("here", "active", true, "management"));
}

/// `lunar pr`: what is imported is kept and enforced, the next agent has it, and what it cannot trust keeps
/// everybody out until people say what is.
#[test]
fn reservations_are_imported_kept_and_cleared() {
    let mut board = Board::start(CONFIGURATION);
    let mut card = Card::connect(&board);
    let (_, configuration) = card.meet(41, false);
    let of_disk = |configuration: &control::Configuration| {
        let disk = configuration.units.iter().find(|unit| unit.name == "disk").unwrap();
        disk.access.clone().map_or((0, 0), |table| (table.others, table.named.len()))
    };
    assert_eq!(of_disk(&configuration), (0, 0));
    let id = format!("04{}{}", "00".repeat(7), "05".repeat(16));
    let text = format!(
        "version 1\ngeneration 5\nreservation 01 00\nregistrant 1 00000000000000a1 1 24 {id}\n"
    );
    let change = |board: &Board, import: &[u8]| {
        let device = "disk".to_owned();
        let request = wire::ChangeReservationsRequest { device, import: import.to_vec() };
        board.ask(async |api| api.change_reservations(request).await)
    };
    let shown = |board: &Board| {
        let device = "disk".to_owned();
        board.ask(async |api| api.reservations(wire::ReservationsRequest { device }).await)
    };
    let apply = |card: &mut Card| {
        let Some(to_card::Message::Configuration(changed)) = card.next() else {
            panic!("no change")
        };
        let generation = changed.generation;
        let applied = control::ConfigurationApplied { generation };
        card.send(to_host::Message::ConfigurationApplied(applied));
        changed
    };
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| change(&board, text.as_bytes()));
        let changed = apply(&mut card);
        assert_eq!(of_disk(&changed), (2, 1), "write exclusive, but for the holder");
        assert!(changing.join().unwrap().in_force);
    });
    assert_eq!(shown(&board).pr_state, text);

    drop(card);
    board.replace_agent();
    let mut card = Card::connect(&board);
    let (_, configuration) = card.meet(41, true);
    assert_eq!(of_disk(&configuration), (2, 1));
    let registrations = shown(&board).registrations;
    assert_eq!((registrations[0].key, registrations[0].holder), (0xA1, true));

    drop(card);
    for version in ["pr/disk", "pr/disk.1"] {
        std::fs::write(board.path(version), b"LUNARPR\0 and then nothing that makes sense")
            .unwrap();
    }
    board.replace_agent();
    let mut card = Card::connect(&board);
    let (_, configuration) = card.meet(41, true);
    assert_eq!(of_disk(&configuration), (8, 0), "nobody gets at it");
    assert!(shown(&board).lost);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| change(&board, b""));
        assert_eq!(of_disk(&apply(&mut card)), (0, 0));
        assert!(changing.join().unwrap().in_force);
    });
    let refused = board.ask(async |api| {
        let device = "nowhere".to_owned();
        let refused = api.reservations(wire::ReservationsRequest { device }).await.unwrap_err();
        Ok(tonic::Response::new(refused.message().to_owned()))
    });
    assert!(refused.contains("device nowhere is not one that this agent executes"), "{refused}");
}

#[test]
fn extended_copy_goes_from_file_to_file() {
    let destination = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(destination.path(), vec![0; DISK_BYTES]).unwrap();
    let other = format!(
        "}}\nDEVICE other {{\nfilename {}\nnaa_id 5001020304050608\n}}",
        destination.path().display()
    );
    let text = CONFIGURATION
        .replacen("}", &format!("    naa_id 5001020304050607\n    {other}"), 1)
        .replace("LUN 2 null_host", "LUN 2 other");
    let board = Board::start(&text);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    let on = (unit(&configuration, "disk"), configuration.generation);

    // SPC-6, EXTENDED COPY (LID1): two identification descriptors, one segment of 500 blocks.
    let mut list = vec![0, 3 << 3, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for last in [7, 8] {
        list.extend([0xe4, 0, 0, 0, 1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, last]);
        list.extend([0; 13]);
        list.extend([0, 2, 0]);
    }
    list.extend([2, 0, 0, 24, 0, 0, 0, 1, 0, 0, 1, 0xf4]);
    list.extend([0_u64.to_be_bytes(), 7_u64.to_be_bytes()].concat());
    assert!(rings.arena.write(8192, &list));
    let mut side = SideRecord::empty();
    let length = u32::try_from(list.len()).unwrap();
    let mut cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    side.set_cdb(&cdb).unwrap();
    let forward = BlockRequest::Forward { data_out: true };
    let ended = rings.request(forward, length, Some(&side), on);
    assert_eq!((ended.outcome(), ended.status), (Outcome::Forwarded, 0));
    let copied = std::fs::read(destination.path()).unwrap();
    assert_eq!(copied[7 * 512..507 * 512], [0x5a; 500 * 512]);
    assert!(copied[..7 * 512].iter().chain(&copied[507 * 512..]).all(|byte| *byte == 0));

    // RECEIVE COPY RESULTS, operating parameters.
    side.set_cdb(&[0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    let ended = rings.request(BlockRequest::Forward { data_out: false }, 256, Some(&side), on);
    assert_eq!((ended.outcome(), ended.status), (Outcome::Forwarded, 0));
    let mut available = [0; 4];
    assert!(rings.arena.read(8192, &mut available));
    assert_eq!(u32::from_be_bytes(available) + 4, ended.transferred_bytes.get());
}

#[test]
fn lost_hints_cost_time_and_nothing_else() {
    let board = Board::start(CONFIGURATION);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    for block in 0..20 {
        let disk = unit(&configuration, "disk");
        let read = rings.run(Operation::Read, disk, configuration.generation, block, false);
        assert_eq!(read.outcome(), Outcome::Done);
    }
}

#[test]
fn a_killed_agent_is_replaced_and_the_rings_go_on() {
    for over in BOTH {
        let mut board = Board::start_over(over, CONFIGURATION);
        let mut card = Card::connect(&board);
        let (setup, configuration) = card.meet(41, false);
        let mut rings = Rings::open(&board, &setup);
        let (generation, disk) = (configuration.generation, unit(&configuration, "disk"));
        for block in 0..5 {
            assert_eq!(
                rings.run(Operation::Read, disk, generation, block, true).outcome(),
                Outcome::Done
            );
        }
        board.replace_agent();
        assert_eq!(card.next(), None, "the old channel ends with its agent");

        let mut card = Card::connect(&board);
        let (setup, configuration) = card.meet(41, true);
        assert_eq!(setup.rings[0].submission_sequence, 5);
        assert_eq!(setup.rings[0].completion_sequence, 5);
        assert!(configuration.generation > generation, "generations grow over restarts");
        assert_eq!(unit(&configuration, "disk"), disk);
        let read = rings.run(Operation::Read, disk, configuration.generation, 6, true);
        assert_eq!(read.outcome(), Outcome::Done);
    }
}

/// The agent finds it in the ring when the card that asked for it is gone already.
#[test]
fn what_a_dead_card_asked_for_is_not_run_for_the_next_one() {
    let mut board = Board::start(CONFIGURATION);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    board.kill_agent();
    assert_eq!(card.next(), None);
    let mut write = SubmissionEntry::new(Operation::Write, 99);
    (write.unit, write.nexus) = (unit(&configuration, "disk").into(), 3.into());
    write.nexus_generation = 1.into();
    (write.blocks, write.data_bytes, write.data_offset) = (8.into(), 4096.into(), 8192.into());
    assert!(rings.arena.write(8192, &[0xc3; 4096]));
    rings.submissions.push(write, None).unwrap();
    assert!(rings.submissions.publish());

    board.start_agent();
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(42, false);
    let mut rings = Rings::open(&board, &setup);
    let (disk, generation) = (unit(&configuration, "disk"), configuration.generation);
    // Its own is the first that is answered.
    let read = rings.run(Operation::Read, disk, generation, 0, true);
    assert_eq!(read.outcome(), Outcome::Done);
    let flush = rings.run(Operation::Flush, disk, generation, 0, true);
    assert_eq!(flush.outcome(), Outcome::Done);
    assert_eq!(std::fs::read(board.path("disk.img")).unwrap(), vec![0x5a; DISK_BYTES]);
}

#[test]
fn show_joins_names_with_what_the_card_counted() {
    let board = Board::start(CONFIGURATION);
    let mut card = Card::connect(&board);
    let (_, configuration) = card.meet(41, false);
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| board.show());
        let Some(to_card::Message::StatisticsRequest(request)) = card.next() else {
            panic!("no StatisticsRequest")
        };
        let histogram = control::Histogram {
            operation: control::OperationClass::Read.into(),
            buckets: vec![u32::try_from(bucket_of(1000)).unwrap()],
            counts: vec![10],
            sum_ns: 10_000,
            max_ns: 1000,
            ..control::Histogram::default()
        };
        card.send(to_host::Message::Statistics(control::Statistics {
            id: request.id,
            uptime_ns: 5,
            nexuses: vec![control::NexusStatistics {
                nexus: 3,
                target: 1,
                peer: "fe80::1".to_owned(),
                reads: 10,
                ..control::NexusStatistics::default()
            }],
            units: vec![control::UnitStatistics {
                unit: unit(&configuration, "disk"),
                reads: 10,
                read_bytes: 40960,
                latency: vec![histogram],
                ..control::UnitStatistics::default()
            }],
            ..control::Statistics::default()
        }));
        asked.join().unwrap()
    });
    let shown = asked.card.unwrap();
    assert!(shown.connected);
    assert_eq!((shown.software.as_str(), shown.epoch), ("scripted card", 41));
    assert_eq!(shown.applied_generation, configuration.generation);
    assert_eq!(asked.statistics_missing, "");
    assert_eq!((asked.targets[0].name.as_str(), asked.targets[0].nexuses), ("t", 1));
    let devices: Vec<_> = asked.luns.iter().map(|lun| (lun.device.as_str(), lun.reads)).collect();
    assert_eq!(devices, [("disk", 10), ("null_card", 0), ("null_host", 0)]);
    assert_eq!((asked.nexuses[0].target.as_str(), asked.nexuses[0].reads), ("t", 10));
    let latency = &asked.latencies[0];
    assert_eq!((latency.name.as_str(), latency.count, latency.p99_ns), ("disk", 10, 1000));
    assert_eq!(board.health(), wire::HealthReply { serving: true, reason: String::new() });
}

#[test]
fn without_a_card_show_says_so_and_health_is_not_serving() {
    let board = Board::start(CONFIGURATION);
    drop(Card::connect(&board)); // the agent is up
    let version = {
        let start = Instant::now();
        while !board.path("api").exists() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
        board.ask(async |api| api.version(wire::VersionRequest {}).await)
    };
    assert!(version.software.starts_with("lunar-agent "), "{version:?}");
    let shown = board.show();
    assert!(!shown.statistics_missing.is_empty());
    assert_eq!(shown.luns.len(), 3);
    assert!(!board.health().serving);
}

#[test]
fn garbage_on_the_control_channel_ends_that_channel_only() {
    for over in BOTH {
        let board = Board::start_over(over, CONFIGURATION);
        let mut card = Card::connect(&board);
        card.stream.write_all(&[0xff; 9000]).unwrap();
        // Hello is on its way when the garbage is read; after it the channel ends.
        while let Some(message) = card.next() {
            assert!(matches!(message, to_card::Message::Hello(_) | to_card::Message::Goodbye(_)));
        }
        let mut card = Card::connect(&board);
        card.meet(42, false);
    }
}

/// Keys of a card that another authority, or another day, made.
fn others_keys(board: &Board, validity: Validity) -> (Authority, PathBuf) {
    let authority = Authority::new(Validity::days(2)).unwrap();
    let directory = board.path(authority.name());
    authority.write_identity(&directory, Role::Card, validity).unwrap();
    // It believes our agent, so that it is only the card that is judged.
    std::fs::copy(board.path("keys/agent/ca.pem"), directory.join("agents-ca.pem")).unwrap();
    let both = ["ca.pem", "agents-ca.pem"].map(|file| std::fs::read(directory.join(file)).unwrap());
    std::fs::write(directory.join("ca.pem"), both.concat()).unwrap();
    (authority, directory)
}

/// What the agent tells of those it refused, once it has refused so many.
fn refused(board: &Board, count: u64) -> String {
    let start = Instant::now();
    loop {
        let control = board.show().control.unwrap();
        if control.refused >= count {
            assert_eq!(control.refused, count, "{}", control.last_refusal);
            return control.last_refusal;
        }
        assert!(start.elapsed() < PATIENCE, "{} refused, not {count}", control.refused);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_wrong_certificate_is_refused_in_words_and_costs_the_right_card_nothing() {
    let board = Board::start_over(Over::Tls, CONFIGURATION);
    let mut card = Card::connect(&board);
    card.meet(41, false);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let alive = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
            card.send(to_host::Message::Heartbeat(control::Heartbeat::default()));
        }
    });
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    let expired = Validity { from: now - day * 30, until: now - day * 2 };
    let (theirs, stranger) = others_keys(&board, Validity::days(2));
    let (_, late) = others_keys(&board, expired);
    // An expired certificate of a stranger is a stranger's first of all: this one is of our own authority.
    let ours = Authority::new(Validity::days(2)).unwrap();
    ours.write_identity(&late, Role::Card, expired).unwrap();
    let agents = std::fs::read(board.path("keys/agent/ca.pem")).unwrap();
    for path in [late.join("ca.pem"), board.path("keys/agent/ca.pem")] {
        let own = std::fs::read(late.join("ca.pem")).unwrap();
        std::fs::write(path, [agents.clone(), own].concat()).unwrap();
    }
    let expected = [
        (&stranger, format!("its certificate is signed by `{}`", theirs.name()), "UnknownCA"),
        (&late, format!("its certificate expired on {}", expired.last_day()), "CertificateExpired"),
    ];
    for (count, (directory, words, alert)) in (1..).zip(expected) {
        let mut stream = over_tls(&board, directory);
        let error = stream.read(&mut [0; 16]).unwrap_err().to_string();
        assert!(error.contains(alert), "{error}");
        let told = refused(&board, count);
        assert!(told.starts_with("the card at 127.") && told.contains(&words), "{told}");
        assert!(told.contains("make new keys with `lunar keys`"), "{told}");
    }
    // Plain text, and nobody at all.
    let mut garbage = connected_over_tcp(&board);
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let told = refused(&board, 3);
    assert!(told.contains("what it sent is not TLS"), "{told}");
    drop(connected_over_tcp(&board));
    let told = refused(&board, 4);
    assert!(told.contains("the card closed the connection"), "{told}");
    assert!(board.health().serving, "{}", board.health().reason);
    drop(stop);
    alive.join().unwrap();
}

#[test]
fn strangers_that_say_nothing_do_not_keep_a_card_out() {
    let board = Board::start_over(Over::Tls, CONFIGURATION);
    let _silent: Vec<TcpStream> = (0..20).map(|_| connected_over_tcp(&board)).collect();
    Card::connect(&board).meet(41, false);
    // More than may be at their handshakes: those that have taken longest go first, the last in the end.
    let silent: Vec<TcpStream> = (0..80).map(|_| connected_over_tcp(&board)).collect();
    Card::connect(&board).meet(42, false);
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "a silent one is dropped");
    }
    let told = refused(&board, 100);
    assert!(told.contains("has not proved itself within 10 s"), "{told}");
}

#[test]
fn new_keys_need_no_new_start() {
    let board = Board::start_over(Over::Tls, CONFIGURATION);
    Card::connect(&board).meet(41, false);
    make(&board.path("keys"), Validity::days(2), true).unwrap();
    Card::connect(&board).meet(42, false);
}

#[test]
fn an_address_without_keys_ends_the_start_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let mut board = Board::start(CONFIGURATION);
    let ended = |board: &Board, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lunar-agent"));
        command.arg("--config").arg(board.path("scst.conf"));
        command
            .arg("--keeper")
            .arg(board.path("keeper"))
            .arg("--api")
            .arg(directory.path().join("api"))
            .arg("--pr-dir")
            .arg(directory.path().join("pr"));
        let output = command.args(words).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    // One agent at a time has the keeper's rings.
    board.kill_agent();
    let text = ended(&board, &["--control", "127.0.0.1:5558"]);
    assert!(
        text.contains("this agent has no keys: make some with `lunar keys DIRECTORY`"),
        "{text}"
    );
    let cards = board.path("keys/card");
    let text = ended(&board, &["--control", "127.0.0.1:5558", "--tls", cards.to_str().unwrap()]);
    assert!(text.contains("that of `card`, which is no agent"), "{text}");
    let text = ended(&board, &["--control", "somewhere"]);
    assert!(text.contains("neither the path of a Unix socket"), "{text}");
}

#[test]
fn a_hostile_entry_costs_the_ring_and_not_the_agent() {
    let board = Board::start(CONFIGURATION);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(41, false);
    let mut rings = Rings::open(&board, &setup);
    let mut entry = SubmissionEntry::new(Operation::Write, 1);
    entry.unit = unit(&configuration, "disk").into();
    entry.nexus = 3.into();
    entry.nexus_generation = 1.into();
    entry.configuration_generation = configuration.generation.into();
    entry.blocks = 8.into();
    entry.data_bytes = 4096.into();
    entry.data_offset = (u64::MAX - 100).into();
    rings.submissions.push(entry, None).unwrap();
    rings.submissions.publish();
    rings.hint();
    // The agent lives, and admits a card that starts anew with an empty ring.
    drop(card);
    let mut card = Card::connect(&board);
    let (setup, configuration) = card.meet(42, false);
    let mut rings = Rings::open(&board, &setup);
    let disk = unit(&configuration, "disk");
    let read = rings.run(Operation::Read, disk, configuration.generation, 0, true);
    assert_eq!(read.outcome(), Outcome::Done);
}

#[test]
fn sigterm_says_goodbye_and_leaves_nothing_behind() {
    for over in BOTH {
        let mut board = Board::start_over(over, CONFIGURATION);
        let mut card = Card::connect(&board);
        card.meet(41, false);
        let pid = rustix::process::Pid::from_child(&board.agent);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let goodbye = card.next();
        assert!(matches!(goodbye, Some(to_card::Message::Goodbye(_))), "{goodbye:?}");
        assert_eq!(card.next(), None);
        assert!(board.agent.wait().unwrap().success());
        assert!(!board.path("control").exists() && !board.path("api").exists());
    }
}

#[test]
fn a_mistake_in_the_configuration_ends_the_start_with_its_place() {
    let mut board = Board::start(
        "HANDLER vdisk_fileio {\n  DEVICE d {\n    filename DISK\n    colour red\n  }\n}\n",
    );
    let status = board.agent.wait().unwrap();
    let text = board.log();
    assert!(!status.success());
    assert!(
        text.contains("scst.conf:4:5") && text.contains("`colour` is not an attribute"),
        "{text}"
    );
}
