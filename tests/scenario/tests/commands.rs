//! Commands through the whole card, by clause: SAM-6 task sets and unit attentions, SRP residuals,
//! data phases with direct and indirect descriptors.

use lunar_initiator::cdbs::{self, Transfer, read10, write10};
use lunar_initiator::{Command, Data, Event, Initiator, Shape};
use lunar_platform::Nanoseconds;
use lunar_scenario::{
    HARDWARE, Hardware, Lab, TARGET, configuration, small_limits, submit, submit_with,
};
use lunar_scsi::lun;
use lunar_scsi::task_set::TaskAttribute;
use lunar_srp::iu::Residual;
use lunar_target::trace::{Point, Trace};
use lunar_target::{Report, State, group_of};

/// ASC and ASCQ of fixed format sense data.
fn asc(sense: &Option<Box<[u8]>>) -> (u8, u8) {
    let sense = sense.as_ref().expect("sense data");
    (sense[12], sense[13])
}

#[test]
fn sam_5_14_a_new_nexus_reports_power_on_once_per_lun() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut initiator = lab.initiator(1, |_| {});
        initiator.login().expect("idle");
        lab.run(&mut initiator, |event| matches!(event, Event::LoggedIn { .. }));
        // INQUIRY neither reports nor clears it.
        let inquiry = Data::In { offset: 0, bytes: 96 };
        let tag = submit_with(&mut initiator, 0, &cdbs::inquiry(None, 96), inquiry);
        assert_eq!(lab.response(&mut initiator, tag).0, 0);
        assert_eq!(&initiator.data(8..13), b"LUNAR");
        for lun in [0, 1] {
            let tag = submit(&mut initiator, lun, &cdbs::test_unit_ready());
            let (status, sense) = lab.response(&mut initiator, tag);
            assert_eq!((status, asc(&sense)), (2, (0x29, 0x01)));
            let tag = submit(&mut initiator, lun, &cdbs::test_unit_ready());
            assert_eq!(lab.response(&mut initiator, tag).0, 0);
        }
        assert_eq!(initiator.violation_count(), 0);
    }
}

#[test]
fn spc_6_33_report_luns_lists_what_the_target_maps_and_an_absent_lun_is_not_supported() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        let data = Data::In { offset: 0, bytes: 64 };
        let tag = submit_with(&mut initiator, 0, &cdbs::report_luns(0, 64), data);
        assert_eq!(lab.response(&mut initiator, tag).0, 0);
        assert_eq!(initiator.data(0..4), [0, 0, 0, 16]);
        assert_eq!(initiator.data(16..18), [0, 1]);
        let tag = submit(&mut initiator, 7, &cdbs::test_unit_ready());
        let (status, sense) = lab.response(&mut initiator, tag);
        assert_eq!((status, asc(&sense)), (2, (0x25, 0x00)));
    }
}

/// With immediate data a WRITE needs neither an SGV buffer nor an RDMA READ: the data stays in the
/// receive buffer.
#[test]
fn srp_2_a_write_with_immediate_data_needs_no_buffer_and_no_rdma() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.initiator(1, |config| config.immediate_bytes_max = 1024);
        initiator.login().expect("idle");
        lab.run(&mut initiator, |event| matches!(event, Event::LoggedIn { .. }));
        let tag = submit(&mut initiator, 0, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut initiator, tag).0, 2, "the unit attention of a power on");
        for (blocks, requests) in [(2, 1), (4, 2)] {
            let before = lab.groups[0].counters().work_requests;
            let data = Data::Out { offset: 0, bytes: blocks * 512 };
            let cdb = write10(Transfer::new(0, blocks));
            let tag = submit_with(&mut initiator, 0, &cdb, data);
            assert_eq!(lab.response(&mut initiator, tag).0, 0);
            let posted = lab.groups[0].counters().work_requests - before;
            assert_eq!(posted, requests, "{blocks} blocks: beyond 1024 bytes data is fetched");
        }
        // Less data than the command wants: refused whole, with the residual.
        let data = Data::Out { offset: 0, bytes: 500 };
        submit_with(&mut initiator, 0, &write10(Transfer::new(0, 2)), data);
        let events = lab.run(&mut initiator, |e| matches!(e, Event::Response { .. }));
        let Some(Event::Response { status, data_out_residual, .. }) = events.last() else {
            panic!("{events:?}");
        };
        assert_eq!((*status, *data_out_residual), (2, Residual::Over(524)));
        assert_eq!(initiator.violation_count(), 0);
        lab.steps(50);
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn sbc_reads_and_writes_move_with_every_shape_of_descriptor_and_residuals_are_told() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        for shape in [
            Shape::Direct,
            Shape::Indirect { pieces: 3 },
            Shape::Indirect { pieces: 40 },
            Shape::Indirect { pieces: 100 },
            Shape::External { pieces: 3, inline: 0 },
            Shape::External { pieces: 200, inline: 12 },
        ] {
            for (cdb, data) in [
                (read10(Transfer::new(0, 256)), Data::In { offset: 0, bytes: 131_072 }),
                (write10(Transfer::new(0, 256)), Data::Out { offset: 0, bytes: 131_072 }),
            ] {
                let command = Command { shape, ..Command::new(lun::encode(0), &cdb, data) };
                let tag = initiator.submit(&command).expect("room");
                assert_eq!(lab.response(&mut initiator, tag).0, 0, "{shape:?}");
            }
        }
        // The initiator's buffer is longer than the command: DIUNDER.
        let tag = submit_with(
            &mut initiator,
            0,
            &read10(Transfer::new(0, 8)),
            Data::In { offset: 0, bytes: 5000 },
        );
        let events = lab.run(&mut initiator, |e| matches!(e, Event::Response { .. }));
        let Some(Event::Response { tag: answered, status, data_in_residual, .. }) = events.last()
        else {
            panic!("{events:?}");
        };
        assert_eq!((*answered, *status), (tag, 0));
        assert_eq!(*data_in_residual, Residual::Under(904));
        // It is shorter: what fits moves, and DIOVER says the rest.
        submit_with(
            &mut initiator,
            0,
            &read10(Transfer::new(0, 8)),
            Data::In { offset: 0, bytes: 1000 },
        );
        let events = lab.run(&mut initiator, |e| matches!(e, Event::Response { .. }));
        let Some(Event::Response { status, data_in_residual, .. }) = events.last() else {
            panic!("{events:?}");
        };
        assert_eq!((*status, *data_in_residual), (0, Residual::Over(3096)));
        // A write with too little data is refused whole.
        submit_with(
            &mut initiator,
            0,
            &write10(Transfer::new(0, 8)),
            Data::Out { offset: 0, bytes: 1000 },
        );
        let events = lab.run(&mut initiator, |e| matches!(e, Event::Response { .. }));
        let Some(Event::Response { status, data_out_residual, .. }) = events.last() else {
            panic!("{events:?}");
        };
        assert_eq!((*status, *data_out_residual), (2, Residual::Over(3096)));
        assert_eq!(initiator.violation_count(), 0);
        lab.steps(50);
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn sbc_a_read_only_lun_refuses_writes_with_write_protected() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        let data = Data::Out { offset: 0, bytes: 512 };
        let tag = submit_with(&mut initiator, 1, &write10(Transfer::new(0, 1)), data);
        let (status, sense) = lab.response(&mut initiator, tag);
        assert_eq!((status, asc(&sense)), (2, (0x27, 0x00)));
    }
}

#[test]
fn sam_8_ordered_waits_for_older_and_holds_newer_and_head_of_queue_overtakes() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        let cdb = read10(Transfer::new(0, 64));
        let mut submitted = Vec::new();
        for attribute in [
            TaskAttribute::Simple,
            TaskAttribute::Ordered,
            TaskAttribute::Simple,
            TaskAttribute::Ordered,
            TaskAttribute::Simple,
        ] {
            let data = Data::In { offset: 0, bytes: 32_768 };
            let command = Command { attribute, ..Command::new(lun::encode(0), &cdb, data) };
            submitted.push(initiator.submit(&command).expect("room"));
        }
        let mut answered = Vec::new();
        while answered.len() < submitted.len() {
            let events = lab.run(&mut initiator, |e| matches!(e, Event::Response { .. }));
            assert!(!events.is_empty(), "{answered:?}");
            for event in events {
                if let Event::Response { tag, status, .. } = event {
                    assert_eq!(status, 0);
                    answered.push(tag);
                }
            }
        }
        // Every second one is ORDERED, so nothing may overtake anything.
        assert_eq!(answered, submitted);
    }
}

/// Runs commands that are not SIMPLE from one nexus and SIMPLE ones from another, on a poll group each, both to LUN 0,
/// whose unit has this TST; gives how often the former ran together with others.
fn overlaps(hardware: Hardware, tst: u8) -> usize {
    let mut lab = Lab::new(hardware, 2, &small_limits());
    let mut shared = configuration(2);
    shared.units[0].logical_unit.tst = tst;
    lab.configure(shared);
    lab.steps(50);
    let group = |initiator: &Initiator| group_of(&initiator.config().initiator_port, &TARGET, 2);
    let mut initiators: Vec<_> = (1..=8).map(|name| lab.logged_in(name)).collect();
    let first = group(&initiators[0]);
    let other = initiators.iter().position(|one| group(one) != first).expect("two groups");
    initiators.swap(1, other);
    initiators.truncate(2);
    for group in &mut lab.groups {
        group.set_trace(Some(Trace::new(1 << 16)));
    }
    let cdb = read10(Transfer::new(0, 64));
    let mut left = 0;
    for round in 0..24_u32 {
        for (place, initiator) in initiators.iter_mut().enumerate() {
            let attribute = match (place, round % 3) {
                (0, 0) => TaskAttribute::HeadOfQueue,
                (0, _) => TaskAttribute::Ordered,
                _ => TaskAttribute::Simple,
            };
            let data = Data::In { offset: 0, bytes: 32_768 };
            let command = Command { attribute, ..Command::new(lun::encode(0), &cdb, data) };
            initiator.submit(&command).expect("room");
            initiator.flush();
            left += 1;
        }
        lab.steps(2);
    }
    let mut events = Vec::new();
    for _ in 0..20_000 {
        lab.step();
        initiators.iter_mut().for_each(|initiator| initiator.poll(&mut events));
        for event in events.drain(..) {
            if let Event::Response { status, .. } = event {
                assert_eq!(status, 0);
                left -= 1;
            }
        }
    }
    assert_eq!(left, 0, "every command is answered");
    assert_eq!(lab.tasks(), 0);
    // When each task began to work and was over, by group.
    let mut spans = [Vec::new(), Vec::new()];
    for (group, spans) in lab.groups.iter_mut().zip(&mut spans) {
        let (records, lost) = group.trace_mut().expect("a trace").take();
        assert_eq!(lost, 0);
        let mut open = std::collections::BTreeMap::new();
        for record in records {
            match record.point {
                Point::Entered(State::Blocked) => {}
                Point::Entered(_) => _ = open.entry(record.tag).or_insert(record.at),
                Point::Over => spans.extend(open.remove(&record.tag).map(|from| (from, record.at))),
                _ => {}
            }
        }
    }
    let (alone, others) = (&spans[first], &spans[1 - first]);
    assert_eq!((alone.len(), others.len()), (24, 24));
    let together =
        |a: &(Nanoseconds, Nanoseconds), b: &(Nanoseconds, Nanoseconds)| a.0 < b.1 && b.0 < a.1;
    alone.iter().map(|one| others.iter().filter(|other| together(one, other)).count()).sum()
}

/// With TST = 0 the task set is that of all nexuses, on whatever poll group they live (SPC-6 7.5.10).
#[test]
fn sam_8_with_one_task_set_for_all_a_task_that_is_not_simple_runs_alone() {
    for seed in 1..12 {
        let hardware = Hardware::Deferring(seed);
        assert_eq!(overlaps(hardware, 0), 0, "seed {seed}");
    }
    assert!(
        overlaps(Hardware::Deferring(1), 1) > 0,
        "with task sets of their own they run together"
    );
}

#[test]
fn sam_7_abort_task_set_ends_everything_before_it_answers_and_credits_come_back() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        for round in 0..20_u32 {
            let cdb = write10(Transfer::new(0, 64));
            for _ in 0..20 {
                let data = Data::Out { offset: 0, bytes: 32_768 };
                submit_with(&mut initiator, 0, &cdb, data);
            }
            initiator.flush();
            lab.steps(round as usize);
            let function = lunar_scsi::task_set::TaskManagementFunction::AbortTaskSet;
            initiator.task_management(function, lun::encode(0), None).expect("room");
            let events =
                lab.run(&mut initiator, |e| matches!(e, Event::TaskManagementResponse { .. }));
            assert!(
                matches!(events.last(), Some(Event::TaskManagementResponse { code: 0, .. })),
                "{events:?}"
            );
            lab.steps(100);
            assert_eq!(lab.tasks(), 0);
        }
        // Every silently ended command's credit was paid back: the whole limit is there again.
        assert_eq!(initiator.available(), 32);
        assert_eq!(initiator.violation_count(), 0);
    }
}

#[test]
fn sam_7_7_logical_unit_reset_gives_every_nexus_on_every_poll_group_a_unit_attention() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut initiators: Vec<_> = (1..=4).map(|name| lab.logged_in(name)).collect();
        let function = lunar_scsi::task_set::TaskManagementFunction::LogicalUnitReset;
        initiators[0].task_management(function, lun::encode(0), None).expect("room");
        let events =
            lab.run(&mut initiators[0], |e| matches!(e, Event::TaskManagementResponse { .. }));
        assert!(
            matches!(events.last(), Some(Event::TaskManagementResponse { code: 0, .. })),
            "{events:?}"
        );
        for initiator in &mut initiators {
            let tag = submit(initiator, 0, &cdbs::test_unit_ready());
            let (status, sense) = lab.response(initiator, tag);
            assert_eq!((status, asc(&sense)), (2, (0x29, 0x03)));
            // The other unit was not touched.
            let tag = submit(initiator, 1, &cdbs::test_unit_ready());
            assert_eq!(lab.response(initiator, tag).0, 0);
        }
    }
}

/// Runs for a while; the response code of a task management function that was answered.
fn answered(lab: &mut Lab, initiator: &mut Initiator) -> Option<u8> {
    let mut events = Vec::new();
    for _ in 0..600 {
        initiator.flush();
        lab.step();
        initiator.poll(&mut events);
    }
    events.iter().find_map(|event| match event {
        Event::TaskManagementResponse { code, .. } => Some(*code),
        _ => None,
    })
}

/// The next reset that the coordinator reports: unit and name.
fn reported_reset(lab: &mut Lab) -> Option<(u32, u32)> {
    while let Some(report) = lab.coordinator.report() {
        if let Report::UnitReset { unit, gate } = report {
            return Some((unit, gate));
        }
    }
    None
}

/// SAM-6 6.3.3: what the host keeps of a unit is a part of its reset.
#[test]
fn sam_6_3_3_a_unit_that_the_host_executes_is_reset_when_the_host_did_its_part() {
    let forwarding = |generation| {
        let mut configuration = configuration(generation);
        configuration.units[0].logical_unit.forwards = true;
        configuration
    };
    let reset = |initiator: &mut Initiator, number| {
        let function = lunar_scsi::task_set::TaskManagementFunction::LogicalUnitReset;
        initiator.task_management(function, lun::encode(number), None).expect("room");
    };
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        lab.configure(forwarding(2));
        let mut initiator = lab.logged_in(1);
        lab.coordinator.report_resets(true);
        reset(&mut initiator, 0);
        assert_eq!(answered(&mut lab, &mut initiator), None);
        let (unit, gate) = reported_reset(&mut lab).expect("reported");
        assert_eq!(unit, 1);
        lab.coordinator.reset_reported(gate + 1, 0);
        assert_eq!(answered(&mut lab, &mut initiator), None, "another's name");
        // What the host changed is in force before the answer.
        lab.coordinator.reset_reported(gate, 3);
        assert_eq!(answered(&mut lab, &mut initiator), None);
        lab.coordinator.configure(forwarding(3));
        assert_eq!(answered(&mut lab, &mut initiator), Some(0));
        // A configuration that was refused keeps nobody waiting; nor does a host that goes.
        for end in [
            |lab: &mut Lab| lab.coordinator.refused(4),
            |lab: &mut Lab| {
                lab.coordinator.report_resets(false);
            },
        ] {
            reset(&mut initiator, 0);
            assert_eq!(answered(&mut lab, &mut initiator), None);
            let (_, gate) = reported_reset(&mut lab).expect("reported");
            lab.coordinator.reset_reported(gate, 4);
            assert_eq!(answered(&mut lab, &mut initiator), None);
            end(&mut lab);
            assert_eq!(answered(&mut lab, &mut initiator), Some(0));
        }
        // Without a host, at once; the next one hears of it once. A unit of the card alone is nobody else's.
        for number in [0, 1] {
            reset(&mut initiator, number);
            assert_eq!(answered(&mut lab, &mut initiator), Some(0));
        }
        lab.coordinator.report_resets(true);
        assert_eq!(reported_reset(&mut lab), Some((1, 0)));
        assert_eq!(reported_reset(&mut lab), None);
    }
}

#[test]
fn a_configuration_that_adds_a_lun_tells_it_by_a_unit_attention_and_touches_nothing_else() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut initiator = lab.logged_in(1);
        let mut changed = configuration(2);
        changed.units.push(lunar_scenario::null_unit(3, 64));
        let lun = lunar_target::configuration::Lun { lun: 300, unit: 3, read_only: false };
        changed.targets[0].default_luns.push(lun);
        lab.configure(changed);
        let tag = submit(&mut initiator, 0, &cdbs::test_unit_ready());
        let (status, sense) = lab.response(&mut initiator, tag);
        assert_eq!((status, asc(&sense)), (2, (0x3f, 0x0e)));
        let tag = submit(&mut initiator, 300, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut initiator, tag).0, 2, "its own power on");
        let tag = submit(&mut initiator, 300, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut initiator, tag).0, 0);
        assert_eq!(lab.groups.iter().map(|g| g.counters().disconnects).sum::<u64>(), 0);
    }
}

#[test]
fn reads_of_more_pieces_than_a_chain_holds_never_lose_room_however_often() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        for round in 0..30 {
            let mut tags = Vec::new();
            for _ in 0..4 {
                let cdb = read10(Transfer::new(0, 256));
                let data = Data::In { offset: 0, bytes: 131_072 };
                let shape = Shape::Indirect { pieces: 128 };
                let command = Command { shape, ..Command::new(lun::encode(0), &cdb, data) };
                tags.push(initiator.submit(&command).expect("room"));
            }
            let last = *tags.last().expect("four");
            assert_eq!(lab.response(&mut initiator, last).0, 0, "round {round}");
            lab.steps(60);
            assert_eq!(lab.tasks(), 0, "round {round}");
        }
        assert_eq!(lab.groups[0].counters().stale_completions, 0);
        assert_eq!(initiator.violation_count(), 0);
    }
}

#[test]
fn srp_6_10_a_nexus_whose_every_command_was_reset_by_another_gets_its_credits_by_cred_req() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut victim = lab.logged_in(1);
        let mut other = lab.logged_in(2);
        for round in 0..12_usize {
            for _ in 0..32 {
                let data = Data::Out { offset: 0, bytes: 32_768 };
                let cdb = write10(Transfer::new(0, 64));
                // The last credit is kept for task management, and some may be on their way back.
                if victim.submit(&Command::new(lun::encode(0), &cdb, data)).is_err() {
                    break;
                }
            }
            victim.flush();
            lab.steps(round);
            let function = lunar_scsi::task_set::TaskManagementFunction::LogicalUnitReset;
            other.task_management(function, lun::encode(0), None).expect("room");
            lab.run(&mut other, |e| matches!(e, Event::TaskManagementResponse { .. }));
            // What the reset ended silently the victim learns by its own ABORT TASK SET, for which it
            // needs a credit.
            lab.run(&mut victim, |_| false);
            assert!(victim.available() > 0, "wedged in round {round}");
            let function = lunar_scsi::task_set::TaskManagementFunction::AbortTaskSet;
            victim.task_management(function, lun::encode(0), None).expect("room");
            lab.run(&mut victim, |e| matches!(e, Event::TaskManagementResponse { .. }));
        }
        // A SEND completes when its receiver took it.
        lab.run(&mut other, |_| false);
        lab.run(&mut victim, |_| false);
        let states: Vec<_> = lab.groups.iter().flat_map(|group| group.states()).collect();
        assert_eq!(lab.tasks(), 0, "{hardware:?} {states:?}");
    }
}
