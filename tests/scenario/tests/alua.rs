//! Asymmetric logical unit access through the whole card (SPC-6 5.17): what each state lets through, who is
//! told of a change, and what becomes of commands that are under way. SET TARGET PORT GROUPS is the host's;
//! its tests are in `host-agent/core/tests/alua.rs`.

use lunar_initiator::cdbs::{self, Transfer, read10, write10};
use lunar_initiator::{Data, Event, Initiator};
use lunar_scenario::{
    HARDWARE, Hardware, Lab, TARGET, configuration, null_unit, small_limits, submit, submit_with,
};
use lunar_scsi::alua::{AccessState, StatusCode, Tpgs};
use lunar_scsi::unit::LogicalUnit;
use lunar_srp::login::PortId;
use lunar_target::configuration::{Configuration, DeviceGroup, PortGroup, Target};
use lunar_target::message::Event as CardEvent;
use lunar_target::{Report, State};

const OTHER: PortId = PortId(*b"lunar-target-002");

fn port_group(id: u16, state: AccessState, target: u32) -> PortGroup {
    PortGroup {
        id,
        state,
        preferred: id == 1,
        status: StatusCode::None,
        ports: vec![id, 100 + id],
        targets: vec![target],
    }
}

/// Two targets with the same LUNs; unit 1 is in a device group, in which they are in these states.
fn grouped(generation: u32, near: AccessState, far: AccessState) -> Configuration {
    let plain = configuration(generation);
    let [target] = &plain.targets[..] else { panic!("one target") };
    let other = Target {
        handle: 2,
        name: "t1".into(),
        port_id: OTHER.0,
        relative_target_port: 2,
        ..target.clone()
    };
    let mut unit = null_unit(1, 1 << 20);
    unit.logical_unit = LogicalUnit { tpgs: Tpgs::Implicit, ..unit.logical_unit };
    Configuration {
        units: vec![unit, null_unit(2, 2048)],
        targets: vec![target.clone(), other],
        device_groups: vec![DeviceGroup {
            units: vec![1],
            groups: vec![port_group(1, near, 1), port_group(2, far, 2)],
            set_by: None,
        }],
        ..plain
    }
}

/// Initiators of both targets, their unit attentions taken.
fn both(lab: &mut Lab) -> [Initiator; 2] {
    let near = lab.logged_in(1);
    let mut far = lab.initiator(1, |config| config.target_port = OTHER);
    assert_ne!(TARGET, OTHER);
    far.login().expect("idle");
    lab.run(&mut far, |event| matches!(event, Event::LoggedIn { .. }));
    for lun in [0, 1] {
        let tag = submit(&mut far, lun, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut far, tag).0, 2, "a new nexus has a unit attention");
    }
    [near, far]
}

/// Sense key, ASC and ASCQ that a command ends with; `None`: GOOD.
fn ending(
    lab: &mut Lab,
    initiator: &mut Initiator,
    lun: u16,
    cdb: &[u8],
    data: Data,
) -> Option<(u8, u8, u8)> {
    let tag = submit_with(initiator, lun, cdb, data);
    match lab.response(initiator, tag) {
        (0, None) => None,
        (2, Some(sense)) => Some((sense[2], sense[12], sense[13])),
        other => panic!("{other:?}"),
    }
}

fn ready(lab: &mut Lab, initiator: &mut Initiator, lun: u16) -> Option<(u8, u8, u8)> {
    ending(lab, initiator, lun, &cdbs::test_unit_ready(), Data::None)
}

const CHANGED: Option<(u8, u8, u8)> = Some((6, 0x2A, 0x06));

#[test]
fn spc_6_5_17_2_each_state_lets_its_commands_through_and_refuses_the_others() {
    const IN: Data = Data::In { offset: 0, bytes: 4096 };
    const OUT: Data = Data::Out { offset: 0, bytes: 4096 };
    let report = [0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    let codes = [0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    // In standby, in unavailable and offline, and in transitioning.
    let commands: [(Vec<u8>, Data, [bool; 3]); 11] = [
        (cdbs::test_unit_ready().into(), Data::None, [false; 3]),
        (read10(Transfer::new(0, 8)).into(), IN, [false; 3]),
        (write10(Transfer::new(0, 8)).into(), OUT, [false; 3]),
        (cdbs::synchronize_cache10(0, 0, false).into(), Data::None, [false; 3]),
        (cdbs::start_stop_unit(true, false).into(), Data::None, [false; 3]),
        (cdbs::read_capacity16(32).into(), IN, [true, false, false]),
        (codes.into(), IN, [true, false, false]),
        (cdbs::inquiry(Some(0x83), 255).into(), IN, [true; 3]),
        (cdbs::report_luns(0, 64).into(), IN, [true; 3]),
        (cdbs::request_sense(false, 252).into(), IN, [true; 3]),
        (report.into(), IN, [true; 3]),
    ];
    for hardware in [Hardware::Prompt, Hardware::Deferring(1)] {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        lab.configure(grouped(2, AccessState::Active, AccessState::Active));
        let [mut near, mut far] = both(&mut lab);
        for (generation, state) in (3..).zip(AccessState::ALL) {
            lab.configure(grouped(generation, AccessState::Active, state));
            let told = ready(&mut lab, &mut far, 0);
            assert_eq!(told, CHANGED.filter(|_| state != AccessState::Active), "before {state:?}");
            let (column, ascq) = match state {
                AccessState::Standby => (0, 0x0B),
                AccessState::Unavailable => (1, 0x0C),
                AccessState::Offline => (1, 0x12),
                AccessState::Transitioning => (2, 0x0A),
                _ => (usize::MAX, 0),
            };
            for (cdb, data, taken) in &commands {
                let refused = Some((2, 0x04, ascq));
                let taken = taken.get(column).is_none_or(|taken| *taken);
                let ended = ending(&mut lab, &mut far, 0, cdb, *data);
                assert_eq!(ended, if taken { None } else { refused }, "{state:?} {cdb:x?}");
            }
            // Another unit, and the unit through another target, notice nothing.
            assert_eq!(ready(&mut lab, &mut far, 1), None);
            if state != AccessState::Active {
                assert_eq!(ready(&mut lab, &mut near, 0), CHANGED);
            }
            assert_eq!(ready(&mut lab, &mut near, 0), None);
        }
        assert_eq!(near.violation_count() + far.violation_count(), 0);
        lab.steps(100);
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn spc_6_the_groups_and_the_port_are_told_through_each_target() {
    let mut lab = Lab::new(Hardware::Prompt, 2, &small_limits());
    lab.configure(grouped(2, AccessState::Active, AccessState::Unavailable));
    let groups = [
        [0x80, 0xDF, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 101],
        [0x03, 0xDF, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 102],
    ]
    .concat();
    for (port, initiator) in (1..).zip(&mut both(&mut lab)) {
        let data = Data::In { offset: 0, bytes: 255 };
        let report = [0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0];
        assert_eq!(ending(&mut lab, initiator, 0, &report, data), None);
        assert_eq!(initiator.data(0..4), [0, 0, 0, 32]);
        assert_eq!(initiator.data(4..36), groups);
        let page = cdbs::inquiry(Some(0x83), 255);
        assert_eq!(ending(&mut lab, initiator, 0, &page, data), None);
        let length = 4 + usize::from(initiator.data(3..4)[0]);
        let ids = [[1, 0x14, 0, 4, 0, 0, 0, port], [1, 0x15, 0, 4, 0, 0, 0, port]].concat();
        assert_eq!(initiator.data(length - 16..length), ids);
        // A unit of no device group: no groups, active, and only its port.
        assert_eq!(ending(&mut lab, initiator, 1, &report, data), Some((5, 0x20, 0)));
        assert_eq!(ending(&mut lab, initiator, 1, &page, data), None);
        let length = 4 + usize::from(initiator.data(3..4)[0]);
        assert_eq!(initiator.data(length - 8..length), &ids[..8]);
    }
}

/// Names of the nexuses that logged in since the last call.
fn nexuses(lab: &mut Lab) -> Vec<u32> {
    let mut names = Vec::new();
    while let Some(report) = lab.coordinator.report() {
        if let Report::Event(CardEvent::Login { nexus, .. }) = report {
            names.push(nexus);
        }
    }
    names
}

#[test]
fn spc_6_5_17_2_every_nexus_is_told_but_the_one_that_set_the_states() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        lab.configure(grouped(2, AccessState::Active, AccessState::Standby));
        let [mut near, mut far] = both(&mut lab);
        let mut third = lab.logged_in(3);
        let [setter, ..] = nexuses(&mut lab)[..] else { panic!("three nexuses") };
        let mut set = grouped(3, AccessState::Active, AccessState::Active);
        set.device_groups[0].set_by = Some((setter, 1));
        lab.configure(set.clone());
        assert_eq!(ready(&mut lab, &mut near, 0), None, "it knows");
        for initiator in [&mut far, &mut third] {
            assert_eq!(ready(&mut lab, initiator, 0), CHANGED);
            assert_eq!(ready(&mut lab, initiator, 0), None);
        }
        // Nothing changes, so nobody is told, and neither by a change of what is not told.
        lab.configure(Configuration { generation: 4, ..set.clone() });
        set.generation = 5;
        set.device_groups[0].set_by = None;
        lab.configure(set);
        for initiator in [&mut near, &mut far, &mut third] {
            assert_eq!(ready(&mut lab, initiator, 0), None);
        }
        // Without its group the unit tells something else of itself.
        lab.configure(Configuration {
            device_groups: Vec::new(),
            ..grouped(6, AccessState::Active, AccessState::Active)
        });
        assert_eq!(ready(&mut lab, &mut near, 0), Some((6, 0x3F, 0x03)));
    }
}

#[test]
fn srp_6_12_a_changed_state_is_an_event_too() {
    let mut lab = Lab::new(Hardware::Prompt, 1, &small_limits());
    lab.configure(grouped(2, AccessState::Active, AccessState::Active));
    let mut initiator = lab.logged_in(1);
    lab.configure(grouped(3, AccessState::NonOptimized, AccessState::Active));
    let mut events = Vec::new();
    initiator.poll(&mut events);
    let told = events.iter().any(|event| {
        matches!(event, Event::AsynchronousEvent { sense, .. } if sense[12..14] == [0x2A, 0x06])
    });
    assert!(told, "{events:?}");
}

/// Commands in every state that a task can be in when the change comes: each ends as if it had come before
/// or after it, and none is lost. What comes after it is refused at once.
#[test]
fn spc_6_5_17_2_commands_under_way_end_before_or_after_the_change_of_their_state() {
    let (mut before, mut after) = (0, 0);
    let mut interrupted = Vec::new();
    for hardware in HARDWARE {
        for turns in (0..60).step_by(3) {
            let mut lab = Lab::new(hardware, 1, &small_limits());
            lab.configure(grouped(2, AccessState::Active, AccessState::Active));
            let mut initiator = lab.logged_in(1);
            for at in 0..4 {
                let data = Data::Out { offset: at << 18, bytes: 1 << 18 };
                submit_with(&mut initiator, 0, &write10(Transfer::new(0, 512)), data);
                let data = Data::In { offset: at << 18, bytes: 1 << 16 };
                submit_with(&mut initiator, 0, &read10(Transfer::new(0, 128)), data);
            }
            initiator.flush();
            lab.steps(turns);
            interrupted.extend(lab.groups[0].states().into_iter().map(|(_, state)| state));
            lab.coordinator.configure(grouped(3, AccessState::Standby, AccessState::Active));
            let mut ended = 0;
            let events = lab.run(&mut initiator, |event| {
                ended += u32::from(matches!(event, Event::Response { .. }));
                ended == 8
            });
            for event in events {
                match event {
                    Event::Response { status: 0, .. } => before += 1,
                    Event::Response { status: 2, sense: Some(sense), .. } => {
                        // The first one that begins after the change takes the unit attention.
                        assert!(matches!(
                            (sense[2], sense[12], sense[13]),
                            (2, 0x04, 0x0B) | (6, 0x2A, 0x06)
                        ));
                        after += 1;
                    }
                    Event::AsynchronousEvent { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            lab.steps(600);
            let refused = Some((2, 0x04, 0x0B));
            let next = ready(&mut lab, &mut initiator, 0);
            assert!(next == refused || next == CHANGED, "{next:?}");
            assert_eq!(ready(&mut lab, &mut initiator, 0), refused);
            lab.steps(1000);
            assert_eq!(lab.tasks(), 0);
        }
    }
    assert!(before > 50 && after > 50, "{before} before, {after} after");
    for state in [State::Fetching, State::Sending] {
        assert!(interrupted.contains(&state), "none was in {state:?}");
    }
}
