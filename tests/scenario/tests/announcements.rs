//! What the target tells an initiator unasked: SRP_T_LOGOUT and SRP_AER_REQ. (SRP_CRED_REQ is with the
//! task management scenarios, which cause it.)

use lunar_initiator::cdbs::{self, Transfer, read10};
use lunar_initiator::{Data, Event, Initiator};
use lunar_scenario::{HARDWARE, Lab, configuration, null_unit, small_limits, submit, submit_with};
use lunar_srp::iu::logout_reason;

/// Runs until the channel of `initiator` is gone; gives the reasons of the logouts it got.
fn logouts(lab: &mut Lab, initiator: &mut Initiator) -> Vec<u32> {
    let events = lab.run(initiator, |event| matches!(event, Event::Disconnected));
    assert!(matches!(events.last(), Some(Event::Disconnected)), "{events:?}");
    let reason = |event: &Event| match event {
        Event::TargetLogout { reason } => Some(*reason),
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

/// LUN and code of the asynchronous events among `events`.
fn asynchronous(events: &[Event]) -> Vec<(u16, u8, u8)> {
    let about = |event: &Event| match event {
        Event::AsynchronousEvent { lun, sense } => {
            Some((lunar_scsi::lun::decode(*lun).expect("a LUN"), sense[12], sense[13]))
        }
        _ => None,
    };
    events.iter().filter_map(about).collect()
}

#[test]
fn srp_6_6_the_target_says_why_it_closes_a_channel_before_it_does() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut old = lab.logged_in(1);
        let data = Data::In { offset: 0, bytes: 65_536 };
        submit_with(&mut old, 0, &read10(Transfer::new(0, 128)), data);
        old.flush();
        lab.steps(2);
        let mut new = lab.logged_in(1);
        assert_eq!(logouts(&mut lab, &mut old), [logout_reason::MULTI_CHANNEL_ACTION]);
        for (bytes, reason) in [
            (&[0xee; 48][..], logout_reason::INVALID_IU_TYPE),
            (&[0x02; 20][..], logout_reason::INVALID_IU_LENGTH),
        ] {
            let mut bad = lab.logged_in(2);
            bad.send_raw(bytes).expect("room");
            assert_eq!(logouts(&mut lab, &mut bad), [reason]);
        }
        let mut disabled = configuration(2);
        disabled.targets[0].enabled = false;
        lab.configure(disabled);
        assert_eq!(logouts(&mut lab, &mut new), [logout_reason::NOT_SPECIFIED]);
        lab.steps(1000);
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn srp_6_6_an_initiator_that_logs_out_itself_is_told_nothing() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        initiator.logout().expect("room");
        assert_eq!(logouts(&mut lab, &mut initiator), []);
    }
}

#[test]
fn srp_6_6_a_peer_that_is_gone_delays_the_end_of_its_channel_by_ten_milliseconds_at_most() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let gone = lab.logged_in(1);
        drop(gone);
        // In virtual time: 1 us a turn.
        let mut disabled = configuration(2);
        disabled.targets[0].enabled = false;
        lab.configure(disabled);
        lab.steps(12_000);
        let counters = lab.groups[0].counters();
        assert_eq!(counters.disconnects, 1);
        let mut enabled = configuration(3);
        enabled.targets[0].request_limit = small_limits().slots - 1;
        lab.configure(enabled);
        // All slots are free again: this login is promised every one of them.
        let last = lab.logged_in(1);
        assert_eq!(last.violation_count(), 0);
    }
}

#[test]
fn srp_6_12_a_new_capacity_is_an_event_for_every_nexus_and_stays_a_unit_attention() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut initiators = [lab.logged_in(1), lab.logged_in(2)];
        let mut changed = configuration(2);
        changed.units[0] = null_unit(1, 1 << 21);
        lab.configure(changed);
        for initiator in &mut initiators {
            let tag = submit(initiator, 0, &cdbs::test_unit_ready());
            let events = lab.run(initiator, |event| matches!(event, Event::Response { .. }));
            assert_eq!(asynchronous(&events), [(0, 0x2a, 0x09)]);
            let Some(Event::Response { tag: answered, status, sense: Some(sense), .. }) =
                events.last()
            else {
                panic!("{events:?}");
            };
            assert_eq!((*answered, *status, sense[12], sense[13]), (tag, 2, 0x2a, 0x09));
            assert_eq!(initiator.violation_count(), 0);
        }
        lab.steps(1000);
        assert_eq!(lab.tasks(), 0, "the answers to the events left nothing behind");
    }
}

#[test]
fn srp_6_12_changed_luns_are_one_event_and_it_waits_for_a_slot() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        // Every slot but the one for task management is taken before the change comes.
        for _ in 0..31 {
            let data = Data::In { offset: 0, bytes: 65_536 };
            submit_with(&mut initiator, 0, &read10(Transfer::new(0, 128)), data);
        }
        initiator.flush();
        lab.steps(2);
        let mut changed = configuration(2);
        changed.units.push(null_unit(3, 64));
        let lun = lunar_target::configuration::Lun { lun: 7, unit: 3, read_only: false };
        changed.targets[0].default_luns.push(lun);
        lab.configure(changed);
        let mut answered = 0;
        let events = lab.run(&mut initiator, |event| {
            answered += usize::from(matches!(event, Event::Response { .. }));
            answered == 31
        });
        let mut told = asynchronous(&events);
        lab.steps(300);
        told.extend(asynchronous(
            &lab.run(&mut initiator, |event| matches!(event, Event::AsynchronousEvent { .. })),
        ));
        assert_eq!(told, [(0, 0x3f, 0x0e)]);
        assert_eq!(initiator.violation_count(), 0);
    }
}
