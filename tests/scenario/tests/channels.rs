//! Logins, credits, the end of channels, and hostile bytes.

use lunar_initiator::cdbs::{self, Transfer, read10};
use lunar_initiator::{Data, Event, Violation};
use lunar_scenario::{HARDWARE, Lab, TARGET, configuration, small_limits, submit, submit_with};
use lunar_srp::login::{Action, LoginForm, LoginReject, PortId};
use lunar_target::{GroupLimits, Report};

fn rejected(events: &[Event]) -> Option<LoginReject> {
    match events.last() {
        Some(Event::LoginRejected { reason, .. }) => *reason,
        _ => None,
    }
}

/// Logs in and gives the last event.
fn login(lab: &mut Lab, initiator: &mut lunar_initiator::Initiator) -> Vec<Event> {
    initiator.login().expect("idle");
    lab.run(initiator, |event| {
        matches!(event, Event::LoggedIn { .. } | Event::LoginRejected { .. } | Event::LoginFailed)
    })
}

#[test]
fn srp_6_4_logins_are_refused_with_the_reason_and_a_text_that_names_the_way_out() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.initiator(1, |config| config.it_iu_bytes = 9000);
        assert_eq!(rejected(&login(&mut lab, &mut initiator)), Some(LoginReject::IuTooLarge));
        let mut initiator = lab.initiator(2, |config| config.target_port = PortId([9; 16]));
        assert_eq!(rejected(&login(&mut lab, &mut initiator)), Some(LoginReject::CannotAssociate));
        let mut disabled = configuration(2);
        disabled.targets[0].enabled = false;
        lab.configure(disabled);
        let mut initiator = lab.initiator(3, |_| {});
        assert_eq!(rejected(&login(&mut lab, &mut initiator)), Some(LoginReject::CannotEstablish));
        let mut initiator = lab.initiator(4, |_| {});
        initiator.login_raw(&[0xff; 64]).expect("idle");
        lab.run(&mut initiator, |event| {
            matches!(event, Event::LoginRejected { .. } | Event::LoginFailed)
        });
        let mut texts = Vec::new();
        while let Some(report) = lab.coordinator.report() {
            if let Report::Event(lunar_target::message::Event::Rejected { text, .. }) = report {
                texts.push(text);
            }
        }
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(texts[0].contains("9000") && texts[0].contains("2176"), "{}", texts[0]);
        assert!(texts[2].contains("enable"), "{}", texts[2]);
    }
}

#[test]
fn both_login_forms_are_taken() {
    for hardware in HARDWARE {
        for form in [LoginForm::InfiniBand, LoginForm::RdmaCm] {
            let mut lab = Lab::new(hardware, 1, &small_limits());
            let mut initiator = lab.initiator(1, |config| config.form = form);
            let events = login(&mut lab, &mut initiator);
            assert!(
                matches!(events.last(), Some(Event::LoggedIn { request_limit: 32, .. })),
                "{events:?}"
            );
        }
    }
}

#[test]
fn a_login_that_would_break_the_sums_gets_insufficient_resources() {
    let limits = GroupLimits { slots: 80, ..small_limits() };
    let mut lab = Lab::new(lunar_scenario::Hardware::Prompt, 1, &limits);
    let _first = lab.logged_in(1);
    let _second = lab.logged_in(2);
    // 2 x (32 + 1) slots are promised, 14 are left.
    let mut third = lab.initiator(3, |_| {});
    assert_eq!(rejected(&login(&mut lab, &mut third)), Some(LoginReject::InsufficientResources));
}

#[test]
fn a_single_relogin_ends_the_old_channel_and_is_answered_after_its_tasks_are_over() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut old = lab.logged_in(1);
        for _ in 0..10 {
            let data = Data::In { offset: 0, bytes: 65_536 };
            submit_with(&mut old, 0, &read10(Transfer::new(0, 128)), data);
        }
        old.flush();
        lab.steps(3);
        let mut new = lab.initiator(1, |_| {});
        let events = login(&mut lab, &mut new);
        assert!(matches!(events.last(), Some(Event::LoggedIn { .. })), "{events:?}");
        assert_eq!(lab.tasks(), 0, "nothing of the old channel is in progress");
        let events = lab.run(&mut old, |event| matches!(event, Event::Disconnected));
        assert!(matches!(events.last(), Some(Event::Disconnected)), "{events:?}");
        let tag = submit(&mut new, 0, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut new, tag).0, 2, "the new nexus has its unit attention");
    }
}

#[test]
fn multi_channel_logins_share_a_nexus() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        let mut first = lab.logged_in(1);
        let mut second = lab.initiator(1, |config| config.action = Action::Multi);
        let events = login(&mut lab, &mut second);
        assert!(matches!(events.last(), Some(Event::LoggedIn { .. })), "{events:?}");
        // The unit attention was taken through the first channel already.
        let tag = submit(&mut second, 0, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut second, tag).0, 0);
        let tag = submit(&mut first, 0, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut first, tag).0, 0);
    }
}

#[test]
fn logout_and_login_two_hundred_times_leaves_nothing_behind() {
    for hardware in [lunar_scenario::Hardware::Prompt, lunar_scenario::Hardware::Deferring(7)] {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.initiator(1, |_| {});
        for round in 0..200 {
            let events = login(&mut lab, &mut initiator);
            assert!(matches!(events.last(), Some(Event::LoggedIn { .. })), "{round}: {events:?}");
            let data = Data::In { offset: 0, bytes: 4096 };
            submit_with(&mut initiator, 0, &read10(Transfer::new(0, 8)), data);
            if round % 2 == 0 {
                initiator.logout().expect("room");
            } else {
                initiator.disconnect();
            }
            lab.run(&mut initiator, |event| matches!(event, Event::Disconnected));
        }
        lab.steps(1000);
        let counters = lab.groups[0].counters();
        assert_eq!((counters.logins, counters.disconnects), (200, 200));
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn hostile_bytes_end_their_own_channel_and_nothing_else() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut good = lab.logged_in(1);
        for bytes in [&[0xee_u8; 48][..], &[0x02; 20], &[], &[0x00; 64], &[0xc1; 60]] {
            let mut bad = lab.logged_in(2);
            bad.send_raw(bytes).expect("room");
            let events = lab.run(&mut bad, |event| matches!(event, Event::Disconnected));
            assert!(matches!(events.last(), Some(Event::Disconnected)), "{bytes:02x?}: {events:?}");
            let tag = submit(&mut good, 0, &cdbs::test_unit_ready());
            assert_eq!(lab.response(&mut good, tag).0, 0);
        }
        assert_eq!(lab.groups[0].counters().malformed_ius, 5);
        assert_eq!(good.violation_count(), 0);
    }
}

#[test]
fn a_command_with_contradicting_descriptors_gets_check_condition_not_a_disconnect() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut initiator = lab.logged_in(1);
        // SRP_CMD, data-in indirect with a count that reaches beyond the IU.
        let mut iu = [0_u8; 68];
        iu[0] = 0x02;
        iu[5] = 0x02;
        iu[7] = 200;
        iu[15] = 0x77;
        initiator.send_raw(&iu).expect("room");
        let events = lab.run(&mut initiator, |_| false);
        assert!(!events.iter().any(|event| matches!(event, Event::Disconnected)), "{events:?}");
        // The initiator's own account knows no such tag, so the answer shows as a violation there.
        let answered = |violation: &Violation| matches!(violation, Violation::UnknownTag(0x77));
        assert_eq!(initiator.violations().filter(|violation| answered(violation)).count(), 1);
    }
}

#[test]
fn port_ids_choose_the_poll_group_and_every_group_is_used() {
    let mut lab = Lab::new(lunar_scenario::Hardware::Prompt, 2, &small_limits());
    let _initiators: Vec<_> = (1..=6).map(|name| lab.logged_in(name)).collect();
    let logins: Vec<u64> = lab.groups.iter().map(|group| group.counters().logins).collect();
    assert_eq!(logins.iter().sum::<u64>(), 6);
    assert!(logins.iter().all(|logins| *logins > 0), "{logins:?} at {TARGET}");
}

#[test]
fn srp_5_4_messages_beyond_the_credits_end_the_channel_before_they_use_up_the_receives() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        let mut good = lab.logged_in(1);
        let mut bad = lab.logged_in(2);
        // WRITE(10) of 64 blocks again and again, without a look at the credits.
        let key = bad.data_key();
        let mut iu = [0_u8; 64];
        iu[0] = 0x02;
        iu[5] = 0x10;
        iu[32] = 0x2a;
        iu[40] = 64;
        iu[48..56].copy_from_slice(&key.base.to_be_bytes());
        iu[56..60].copy_from_slice(&key.rkey.to_be_bytes());
        iu[60..64].copy_from_slice(&32_768_u32.to_be_bytes());
        let mut ended = false;
        let mut events = Vec::new();
        for _ in 0..2000 {
            for _ in 0..40 {
                if bad.send_raw(&iu).is_err() {
                    break;
                }
            }
            bad.flush();
            lab.step();
            bad.poll(&mut events);
            ended |= events.drain(..).any(|event| matches!(event, Event::Disconnected));
            if ended {
                break;
            }
        }
        assert!(ended, "the channel went on");
        assert!(lab.groups[0].counters().credit_overruns > 0);
        let tag = submit(&mut good, 0, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut good, tag).0, 0);
    }
}
