//! Reservations as the card enforces them: access tables, and what comes with their changes. What a command
//! about reservations does to them is decided on the host, and tested in `scsi` and `core`.

use lunar_initiator::cdbs::{self, Transfer, read10, write10};
use lunar_initiator::{Data, Event, Initiator};
use lunar_scenario::{Hardware, Lab, configuration, small_limits, submit_with};
use lunar_scsi::reservations::{Access, AccessTable, Nexus, TransportId};
use lunar_scsi::unit_attention::UnitAttention;
use lunar_target::configuration::{AccessEffect, Configuration};

const IN: Data = Data::In { offset: 0, bytes: 4096 };
const OUT: Data = Data::Out { offset: 0, bytes: 4096 };
/// Status, and sense key, ASC and ASCQ.
type Ended = (u8, Option<(u8, u8, u8)>);

const CONFLICT: Ended = (0x18, None);
const GOOD: Ended = (0, None);

/// The nexus of the initiator with this name.
fn nexus(name: u8) -> Nexus {
    Nexus { initiator: TransportId::srp([name; 16]), target_port: 1 }
}

/// Unit 1 as initiator `holder` has it; the others have `others`.
fn held(generation: u32, holder: u8, others: Access) -> Configuration {
    let mut configuration = configuration(generation);
    configuration.units[0].access = AccessTable::new(others, vec![(nexus(holder), Access::OPEN)]);
    configuration
}

/// How a command ends.
fn ending(lab: &mut Lab, initiator: &mut Initiator, lun: u16, cdb: &[u8], data: Data) -> Ended {
    let tag = submit_with(initiator, lun, cdb, data);
    let (status, sense) = lab.response(initiator, tag);
    (status, sense.map(|sense| (sense[2], sense[12], sense[13])))
}

fn ready(lab: &mut Lab, initiator: &mut Initiator, lun: u16) -> Ended {
    ending(lab, initiator, lun, &cdbs::test_unit_ready(), Data::None)
}

#[test]
fn spc_4_5_13_1_each_access_lets_its_commands_through_and_refuses_the_others() {
    let lost = (2, Some((7, 0x44, 0x01)));
    let commands: [(Vec<u8>, Data); 5] = [
        (cdbs::inquiry(None, 96).into(), IN),
        (cdbs::read_capacity16(32).into(), IN),
        (cdbs::test_unit_ready().into(), Data::None),
        (read10(Transfer::new(0, 8)).into(), IN),
        (write10(Transfer::new(0, 8)).into(), OUT),
    ];
    // How many of them get through, and how the others end.
    let accesses = [
        (Access::OPEN, 5, CONFLICT),
        (Access::NO_WRITES, 4, CONFLICT),
        (Access::NO_TRANSFERS, 3, CONFLICT),
        (Access::RESERVED, 2, CONFLICT),
        (Access::INFORMATION_LOST, 1, lost),
    ];
    for hardware in [Hardware::Prompt, Hardware::Deferring(1)] {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut holder = lab.logged_in(1);
        let mut other = lab.logged_in(2);
        for (generation, (access, passed, refused)) in (2..).zip(accesses) {
            lab.configure(held(generation, 1, access));
            for (place, (cdb, data)) in commands.iter().enumerate() {
                let expected = if place < passed { GOOD } else { refused };
                let ended = ending(&mut lab, &mut other, 0, cdb, *data);
                assert_eq!(ended, expected, "{access:?} {cdb:x?}");
                assert_eq!(ending(&mut lab, &mut holder, 0, cdb, *data), GOOD, "{cdb:x?}");
            }
            assert_eq!(ready(&mut lab, &mut other, 1), GOOD, "another unit notices nothing");
        }
        lab.configure(configuration(20));
        let (cdb, data) = &commands[4];
        assert_eq!(ending(&mut lab, &mut other, 0, cdb, *data), GOOD);
        assert_eq!(holder.violation_count() + other.violation_count(), 0);
        lab.steps(100);
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn a_nexus_that_logs_in_later_finds_its_place_in_the_table() {
    let mut lab = Lab::new(Hardware::Prompt, 2, &small_limits());
    lab.configure(held(2, 1, Access::NO_TRANSFERS));
    let mut holder = lab.logged_in(1);
    let mut other = lab.logged_in(2);
    let read = read10(Transfer::new(0, 8));
    assert_eq!(ending(&mut lab, &mut holder, 0, &read, IN), GOOD);
    assert_eq!(ending(&mut lab, &mut other, 0, &read, IN), CONFLICT);
}

#[test]
fn sam_6_a_unit_attention_comes_before_a_reservation_conflict() {
    let mut lab = Lab::new(Hardware::Prompt, 2, &small_limits());
    let mut holder = lab.logged_in(1);
    let mut other = lab.logged_in(2);
    let mut change = held(2, 1, Access::NO_TRANSFERS);
    change.units[0].access_effects = vec![AccessEffect {
        generation: 2,
        nexus: nexus(2),
        attention: Some(UnitAttention::RegistrationsPreempted),
        abort: false,
    }];
    lab.configure(change.clone());
    // A later snapshot that still has the effect does not bring it again.
    lab.configure(Configuration { generation: 3, ..change });
    let read = read10(Transfer::new(0, 8));
    let told = (2, Some((6, 0x2A, 0x05)));
    assert_eq!(ending(&mut lab, &mut other, 0, &read, IN), told);
    assert_eq!(ending(&mut lab, &mut other, 0, &read, IN), CONFLICT);
    assert_eq!(ready(&mut lab, &mut other, 1), GOOD);
    assert_eq!(ready(&mut lab, &mut holder, 0), GOOD);
}

#[test]
fn spc_4_5_13_11_2_6_commands_in_flight_are_aborted_and_over_before_the_change_is_made() {
    for seed in 1..20 {
        let mut lab = Lab::new(Hardware::Deferring(seed), 2, &small_limits());
        let mut holder = lab.logged_in(1);
        let mut other = lab.logged_in(2);
        let write = write10(Transfer::new(0, 8));
        for _ in 0..8 {
            submit_with(&mut other, 0, &write, OUT);
        }
        let kept = submit_with(&mut holder, 0, &write, OUT);
        let untouched = submit_with(&mut other, 1, &read10(Transfer::new(0, 8)), IN);
        other.flush();
        holder.flush();
        lab.steps(usize::try_from(seed).expect("small"));
        let mut change = held(2, 1, Access::NO_TRANSFERS);
        change.units[0].access_effects = vec![AccessEffect {
            generation: 2,
            nexus: nexus(2),
            attention: Some(UnitAttention::RegistrationsPreempted),
            abort: true,
        }];
        lab.configure(change);
        let answered = |events: Vec<Event>, wanted| {
            events.iter().any(
                |event| matches!(event, Event::Response { tag, status: 0, .. } if *tag == wanted),
            )
        };
        let events = lab.run(&mut other, |_| false);
        assert!(answered(events, untouched), "seed {seed}");
        let events = lab.run(&mut holder, |_| false);
        assert!(answered(events, kept), "seed {seed}");
        // What was over before has its answer; nothing succeeds from now on.
        let late = submit_with(&mut other, 0, &write, OUT);
        let mut events = lab
            .run(&mut other, |event| matches!(event, Event::Response { tag, .. } if *tag == late));
        assert!(
            matches!(events.pop(), Some(Event::Response { status: 0x02 | 0x18, .. })),
            "seed {seed}"
        );
        assert_eq!(other.violation_count() + holder.violation_count(), 0);
        lab.steps(100);
        assert_eq!(lab.tasks(), 0, "seed {seed}");
    }
}
