//! The home of reservations: kept first, then enforced by the card, then answered; over restarts of either side.

mod model;

use std::collections::VecDeque;

use lunar_core::reservations::record::Record;
use lunar_core::reservations::{Access, Nexus, Reservations, TransportId};
use lunar_core::{COPY_ARENA, Configuration, LinkState, UnitConfiguration};
use lunar_handlers::Outcome as Handler;
use lunar_offload_proto::control::{
    AccessTable, ConfigurationApplied, Fate, LogicalUnit, Lun, NexusEvent, Target, UnitReset,
    host_command, to_card, to_host,
};
use lunar_offload_proto::ring::{BlockRequest, Operation, Outcome, SideRecord};
use model::{Bench, Ended, NEXUS, UNIT, block_entry, block_range, login, logout, unit};

/// Another initiator's nexus.
const OTHER: u32 = 4;
/// Status, and sense key with ASC and ASCQ.
const GOOD: Ended = (0, (0, 0, 0));
const CONFLICT: Ended = (0x18, (0, 0, 0));
const KEY: u64 = 0xA1;
const OTHER_KEY: u64 = 0xB2;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const WRITE_EXCLUSIVE: u8 = 1;
const EXCLUSIVE_ACCESS: u8 = 3;
const RESERVE_6: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE_6: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const READ_KEYS: [u8; 10] = [0x5E, 0, 0, 0, 0, 0, 0, 0x10, 0, 0];

fn configuration() -> Configuration {
    let plain = unit(4096);
    let naa = vec![0x50, 1, 2, 3, 4, 5, 6, 7];
    let unit = LogicalUnit { forwards: true, naa, ..plain.unit };
    let default_luns = vec![Lun { lun: 0, unit: UNIT, read_only: false }];
    let target = Target { handle: 1, relative_target_port: 1, default_luns, ..Target::default() };
    Configuration {
        units: vec![UnitConfiguration { unit, ..plain }],
        targets: vec![target],
        ..Configuration::default()
    }
}

fn other_login() -> NexusEvent {
    NexusEvent { nexus: OTHER, initiator_port_id: vec![6; 16], ..login(1) }
}

fn nexus(port: u8) -> Nexus {
    Nexus { initiator: TransportId::srp([port; 16]), target_port: 1 }
}

fn bench() -> Bench {
    let mut bench = Bench::serving();
    bench.core.set_configuration(configuration(), 0).expect("configuration");
    bench.settle();
    apply(&mut bench);
    bench.control(to_host::Message::NexusEvent(other_login()));
    bench
}

/// The card reports the newest configuration as made.
fn apply(bench: &mut Bench) {
    let generation = bench.core.configuration_generation();
    bench.control(to_host::Message::ConfigurationApplied(ConfigurationApplied { generation }));
}

/// `nexus` sends `cdb` with a parameter list, or room for data; gives the entry's sequence.
fn forward(bench: &mut Bench, nexus: u32, token: u64, cdb: &[u8], list: &[u8]) -> u32 {
    let mut side = SideRecord::empty();
    side.set_cdb(cdb).expect("fits");
    let mut entry = block_entry(Operation::Read, token);
    entry.nexus.set(nexus);
    BlockRequest::Forward { data_out: !list.is_empty() }.encode(&mut entry);
    if !list.is_empty() {
        assert!(bench.arena.write(block_range().offset, list));
        entry.data_bytes.set(list.len() as u32);
    }
    let sequence = bench.submit(0, entry, Some(&side));
    bench.poll();
    sequence
}

/// The next agent meets the card of this epoch, with a nexus of this generation where one is logged in, and these tokens
/// and sequences in flight in the first ring.
fn next_agent(bench: &mut Bench, card: u64, nexus: Option<u32>, in_flight: &[(u64, u32)]) {
    bench.start_agent(2, configuration());
    bench.connect(card);
    bench.ready();
    if let Some(generation) = nexus {
        bench.login(generation);
    }
    bench.reconcile(0, 1, in_flight);
    bench.reconcile(1, 1, &[]);
}

fn out(action: u8, kind: u8) -> [u8; 10] {
    [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

fn list(key: u64, action_key: u64, aptpl: bool) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = u8::from(aptpl);
    list
}

/// Carries a command through to its end.
fn ending(bench: &mut Bench, nexus: u32, cdb: &[u8], list: &[u8]) -> Ended {
    forward(bench, nexus, 1, cdb, list);
    if let Some((_, ending)) = bench.forwarded_end() {
        return ending;
    }
    apply(bench);
    bench.forwarded_end().expect("enforced").1
}

fn register(bench: &mut Bench, nexus: u32, key: u64, aptpl: bool) {
    let list = list(0, key, aptpl);
    assert_eq!(ending(bench, nexus, &out(REGISTER, 0), &list), GOOD);
}

fn keys(bench: &mut Bench) -> Vec<u64> {
    assert_eq!(ending(bench, NEXUS, &READ_KEYS, &[]), GOOD);
    let mut data = [0; 64];
    assert!(bench.arena.read(block_range().offset, &mut data));
    let bytes = u32::from_be_bytes(data[4..8].try_into().expect("four")) as usize;
    data[8..8 + bytes].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

/// The unit as the card was told last.
fn sent(bench: &Bench) -> &LogicalUnit {
    let found = bench.sent.iter().rev().find_map(|message| match message {
        to_card::Message::Configuration(configuration) => configuration.units.first(),
        _ => None,
    });
    found.expect("sent")
}

fn table(bench: &Bench) -> AccessTable {
    sent(bench).access.clone().unwrap_or_default()
}

#[test]
fn the_card_is_told_that_the_agent_executes_them() {
    let commands = sent(&bench()).host_commands;
    let both = host_command::RESERVE | host_command::PERSISTENT_RESERVE;
    assert_eq!(commands & both, both);
}

#[test]
fn a_registration_is_kept_before_its_good_and_needs_no_configuration() {
    let mut bench = bench();
    bench.keeping = Some(VecDeque::new());
    let before = bench.core.configuration_generation();
    forward(&mut bench, NEXUS, 1, &out(REGISTER, 0), &list(0, KEY, true));
    assert_eq!(bench.forwarded_end(), None, "nothing is kept yet");
    bench.end_keep(Ok(()));
    assert_eq!(bench.forwarded_end(), Some((1, GOOD)));
    assert_eq!(bench.core.configuration_generation(), before);
    bench.keeping = None;
    assert_eq!(keys(&mut bench), [KEY]);
    let kept = &bench.kept[&UNIT];
    assert_eq!((kept.unit.as_str(), kept.boot_id), ("disk", [2; 16]));
    assert!(kept.reservations.persists_through_power_loss());
    assert_eq!(Record::decode(&kept.encode()).as_ref(), Ok(kept));
}

#[test]
fn what_cannot_be_kept_is_refused_and_leaves_everything_as_it_was() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, true);
    bench.keeping = Some(VecDeque::new());
    let before = bench.core.configuration_generation();
    forward(&mut bench, NEXUS, 2, &out(RESERVE, WRITE_EXCLUSIVE), &list(KEY, 0, false));
    bench.end_keep(Err("the directory is full".to_owned()));
    assert_eq!(bench.forwarded_end(), Some((2, (2, (5, 0x55, 0x04)))));
    assert_eq!(bench.core.configuration_generation(), before);
    assert_eq!(table(&bench), AccessTable::default());
    let told = bench.log.last().expect("logged");
    assert!(told.contains("disk") && told.contains("the directory is full"), "{told}");
    bench.keeping = None;
    assert_eq!(keys(&mut bench), [KEY]);
    // It can be tried again.
    let again = ending(&mut bench, NEXUS, &out(RESERVE, WRITE_EXCLUSIVE), &list(KEY, 0, false));
    assert_eq!(again, GOOD);
}

#[test]
fn a_reservation_is_good_when_the_card_enforces_it() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    forward(&mut bench, NEXUS, 2, &out(RESERVE, EXCLUSIVE_ACCESS), &list(KEY, 0, false));
    assert_eq!(bench.forwarded_end(), None, "the card does not enforce it yet");
    let told = table(&bench);
    assert_eq!(told.others, u32::from(Access::NO_TRANSFERS.bits()));
    assert_eq!(told.named.len(), 1);
    assert_eq!(told.named[0].transport_id, nexus(5).initiator.as_bytes());
    assert_eq!((told.named[0].relative_target_port, told.named[0].access), (1, 0));
    // What waits behind it is decided when it is made.
    forward(&mut bench, OTHER, 3, &out(REGISTER, 0), &list(0, OTHER_KEY, false));
    forward(&mut bench, OTHER, 4, &out(RESERVE, EXCLUSIVE_ACCESS), &list(OTHER_KEY, 0, false));
    assert_eq!(bench.forwarded_end(), None);
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((2, GOOD)));
    assert_eq!(bench.forwarded_end(), Some((3, GOOD)));
    assert_eq!(bench.forwarded_end(), Some((4, CONFLICT)));
    // A configuration later has it still.
    bench.core.set_configuration(configuration(), 0).expect("configuration");
    bench.settle();
    assert_eq!(table(&bench), told);
}

#[test]
fn spc_4_5_13_11_2_6_what_preempt_and_abort_brings_travels_once() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    register(&mut bench, OTHER, OTHER_KEY, false);
    let reserve = out(RESERVE, WRITE_EXCLUSIVE);
    assert_eq!(ending(&mut bench, OTHER, &reserve, &list(OTHER_KEY, 0, false)), GOOD);
    let preempt = out(PREEMPT_AND_ABORT, WRITE_EXCLUSIVE);
    forward(&mut bench, NEXUS, 9, &preempt, &list(KEY, OTHER_KEY, false));
    let generation = bench.core.configuration_generation();
    let told: Vec<_> = sent(&bench).access_effects.clone();
    let brought: Vec<_> = told.iter().map(|effect| (effect.attention, effect.abort)).collect();
    assert_eq!(brought, [(5, false), (0, true)]);
    for effect in &told {
        assert_eq!(effect.transport_id, nexus(6).initiator.as_bytes());
        assert_eq!(effect.generation, generation);
    }
    assert_eq!(table(&bench).named[0].transport_id, nexus(5).initiator.as_bytes());
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((9, GOOD)));
    bench.core.set_configuration(configuration(), 0).expect("configuration");
    bench.settle();
    assert_eq!(sent(&bench).access_effects, []);
    let retried = ending(&mut bench, OTHER, &reserve, &list(OTHER_KEY, 0, false));
    assert_eq!(retried, CONFLICT);
}

/// Whoever finds a key gone may rely on its owner writing no more: another path of the one who preempted, or a
/// third.
#[test]
fn what_is_not_in_force_is_not_read() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    register(&mut bench, OTHER, OTHER_KEY, false);
    forward(&mut bench, NEXUS, 7, &out(PREEMPT, 0), &list(KEY, OTHER_KEY, false));
    forward(&mut bench, NEXUS, 8, &READ_KEYS, &[]);
    assert_eq!(bench.forwarded_end(), None, "the card does not enforce it yet");
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((7, GOOD)));
    assert_eq!(bench.forwarded_end(), Some((8, GOOD)));
    assert_eq!(keys(&mut bench), [KEY]);

    // Kept by an agent that did not live to see it enforced.
    forward(&mut bench, NEXUS, 9, &out(RESERVE, WRITE_EXCLUSIVE), &list(KEY, 0, false));
    next_agent(&mut bench, 100, Some(1), &[]);
    forward(&mut bench, NEXUS, 10, &READ_KEYS, &[]);
    assert_eq!(bench.forwarded_end(), None, "the card has no configuration of this agent");
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((10, GOOD)));
}

#[test]
fn a_command_that_comes_while_the_control_channel_is_gone_waits_for_it() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    bench.core.on_control_lost(0);
    bench.settle();
    forward(&mut bench, NEXUS, 7, &out(RESERVE, WRITE_EXCLUSIVE), &list(KEY, 0, false));
    assert_eq!(bench.forwarded_end(), None);
    bench.connect(100);
    bench.ready();
    bench.login(1);
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((7, GOOD)));
}

#[test]
fn an_agents_restart_keeps_what_does_not_persist_and_another_boot_ends_it() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    let reserve = out(RESERVE, WRITE_EXCLUSIVE);
    assert_eq!(ending(&mut bench, NEXUS, &reserve, &list(KEY, 0, false)), GOOD);
    let told = table(&bench);
    next_agent(&mut bench, 100, Some(1), &[]);
    assert_eq!(table(&bench), told);
    apply(&mut bench);
    assert_eq!(keys(&mut bench), [KEY]);
    // The card's machine lost its power.
    bench.boot_id = [3; 16];
    bench.start_agent(3, configuration());
    bench.connect(101);
    bench.ready();
    bench.reconcile(0, 2, &[]);
    bench.reconcile(1, 2, &[]);
    bench.login(1);
    assert_eq!(table(&bench), AccessTable::default());
    assert_eq!(bench.kept[&UNIT].boot_id, [3; 16]);
    assert!(bench.kept[&UNIT].reservations.is_empty());
}

#[test]
fn with_aptpl_another_boot_ends_nothing() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, true);
    let reserve = out(RESERVE, WRITE_EXCLUSIVE);
    assert_eq!(ending(&mut bench, NEXUS, &reserve, &list(KEY, 0, false)), GOOD);
    let told = table(&bench);
    bench.boot_id = [3; 16];
    next_agent(&mut bench, 101, None, &[]);
    assert_eq!(table(&bench), told);
}

#[test]
fn a_command_in_flight_that_was_kept_is_answered_by_the_next_agent_and_not_run_again() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    register(&mut bench, OTHER, OTHER_KEY, false);
    let preempt = out(PREEMPT, 0);
    // Kept, and the card was told, but nobody was answered.
    let sequence = forward(&mut bench, NEXUS, 77, &preempt, &list(KEY, OTHER_KEY, false));
    assert_eq!(bench.forwarded_end(), None);
    let generation = bench.kept[&UNIT].reservations.generation();
    next_agent(&mut bench, 100, Some(1), &[(77, sequence)]);
    assert_eq!(bench.sent_fates(), []);
    let fates = bench.sent.iter().find_map(|message| match message {
        to_card::Message::Reconciled(told) if told.ring == 0 => Some(told.operations[0].fate()),
        _ => None,
    });
    assert_eq!(fates, Some(Fate::Done));
    assert_eq!(bench.forwarded_end(), None, "the card does not enforce it yet");
    let told: Vec<_> = sent(&bench).access_effects.iter().map(|one| one.attention).collect();
    assert_eq!(told, [5]);
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((77, GOOD)));
    assert_eq!(bench.core.reservations(UNIT).map(Reservations::generation), Some(generation));
    assert_eq!(keys(&mut bench), [KEY]);
}

#[test]
fn a_command_in_flight_that_was_not_kept_is_lost() {
    let mut bench = bench();
    bench.keeping = Some(VecDeque::new());
    let sequence = forward(&mut bench, NEXUS, 77, &out(REGISTER, 0), &list(0, KEY, true));
    bench.keeping = None;
    next_agent(&mut bench, 100, Some(1), &[(77, sequence)]);
    assert_eq!(bench.completions(0), [(77, Outcome::Lost)]);
    apply(&mut bench);
    assert_eq!(keys(&mut bench), []);
}

/// The card got the configuration, or did not, and went before it said that it is in force.
#[test]
fn a_change_in_whose_middle_the_card_vanishes_is_good_when_the_card_that_is_back_enforces_it() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    let reserve = out(RESERVE, EXCLUSIVE_ACCESS);
    let sequence = forward(&mut bench, NEXUS, 78, &reserve, &list(KEY, 0, false));
    let told = table(&bench);
    assert_ne!(told, AccessTable::default());
    bench.core.on_control_lost(0);
    bench.sent.clear();
    bench.connect(100);
    bench.ready();
    assert_eq!(table(&bench), told, "in the first configuration");
    bench.reconcile(0, 1, &[(78, sequence)]);
    bench.reconcile(1, 1, &[]);
    assert_eq!(bench.forwarded_end(), None, "the card does not enforce it yet");
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((78, GOOD)));
    assert_eq!(bench.forwarded_end(), None);
}

/// The card names the agent that it met last, which need not be the one that the command was given to.
#[test]
fn a_channel_cut_before_reconciling_does_not_make_an_earlier_agents_command_this_ones() {
    let mut bench = bench();
    let sequence = forward(&mut bench, NEXUS, 77, &out(REGISTER, 0), &list(0, KEY, true));
    assert_eq!(bench.forwarded_end(), Some((77, GOOD)));
    let reserve =
        forward(&mut bench, NEXUS, 78, &out(RESERVE, WRITE_EXCLUSIVE), &list(KEY, 0, true));
    bench.start_agent(2, configuration());
    bench.connect(100);
    bench.ready();
    bench.core.on_control_lost(0);
    bench.connect(100);
    bench.ready();
    bench.login(1);
    bench.reconcile(0, 2, &[(78, reserve)]);
    bench.reconcile(1, 2, &[]);
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), Some((78, GOOD)));
    assert_ne!(sequence, reserve);
}

#[test]
fn a_command_that_comes_while_the_channel_is_cut_is_known_as_before() {
    let mut bench = bench();
    bench.core.on_control_lost(0);
    forward(&mut bench, NEXUS, 1, &out(REGISTER, 0), &list(0, KEY, true));
    assert_eq!(bench.forwarded_end(), Some((1, GOOD)));
    bench.core.on_control_connected(0);
    bench.settle();
    forward(&mut bench, NEXUS, 2, &READ_KEYS, &[]);
    assert_eq!(bench.forwarded_end(), Some((2, GOOD)));
}

/// A card that starts anew waits until it is known what became of the changes before: what is kept, and what a loss of
/// power left of it, is in the first configuration.
#[test]
fn a_card_that_starts_anew_is_told_what_is_kept_before_anything_else() {
    let reserve = out(RESERVE, EXCLUSIVE_ACCESS);
    for (aptpl, boot_id, stays) in [
        (true, [2; 16], true),
        (false, [2; 16], true),
        (true, [3; 16], true),
        (false, [3; 16], false),
    ] {
        for kept_before in [true, false] {
            let mut bench = bench();
            register(&mut bench, NEXUS, KEY, aptpl);
            bench.keeping = Some(VecDeque::new());
            forward(&mut bench, NEXUS, 2, &reserve, &list(KEY, 0, false));
            // Another waits behind it, for a card that will be gone.
            forward(&mut bench, OTHER, 3, &out(REGISTER, 0), &list(0, OTHER_KEY, true));
            if kept_before {
                bench.end_keep(Ok(()));
            }
            bench.core.on_control_lost(0);
            bench.boot_id = boot_id;
            bench.sent.clear();
            bench.connect(101);
            if !kept_before {
                assert_eq!(bench.core.link_state(), LinkState::HoldingBack);
                bench.end_keep(Ok(()));
            }
            bench.ready();
            let first = table(&bench);
            assert_eq!(first != AccessTable::default(), stays, "{aptpl} {boot_id:?} {kept_before}");
            let configurations = bench.sent.iter();
            let configurations =
                configurations.filter(|one| matches!(one, to_card::Message::Configuration(_)));
            assert_eq!(configurations.count(), 1);
            bench.keeping = None;
            bench.settle();
            assert_eq!(bench.forwarded_end(), None, "nobody waits for it");
        }
    }
}

#[test]
fn spc_2_5_5_2_reserve_ends_with_its_nexus_and_with_a_reset() {
    let mut bench = bench();
    let reserved = u32::from(Access::RESERVED.bits());
    assert_eq!(ending(&mut bench, NEXUS, &RESERVE_6, &[]), GOOD);
    assert_eq!(table(&bench).others, reserved);
    assert_eq!(ending(&mut bench, OTHER, &RESERVE_6, &[]), CONFLICT);
    assert_eq!(ending(&mut bench, OTHER, &RELEASE_6, &[]), GOOD);
    assert_eq!(ending(&mut bench, OTHER, &READ_KEYS, &[]), CONFLICT);
    bench.control(to_host::Message::UnitReset(UnitReset { unit: UNIT, gate: 5 }));
    assert_eq!(table(&bench), AccessTable::default());
    let done = bench.sent.iter().rev().find_map(|message| match message {
        to_card::Message::UnitResetDone(done) => Some(*done),
        _ => None,
    });
    let required = done.map(|done| (done.gate, done.required_generation));
    assert_eq!(required, Some((5, bench.core.configuration_generation())));
    apply(&mut bench);
    assert_eq!(ending(&mut bench, NEXUS, &RESERVE_6, &[]), GOOD);
    bench.control(to_host::Message::NexusEvent(logout(1)));
    assert_eq!(table(&bench), AccessTable::default());
    apply(&mut bench);
    assert_eq!(ending(&mut bench, OTHER, &RESERVE_6, &[]), GOOD);
    // It went while there was no agent.
    next_agent(&mut bench, 100, Some(2), &[]);
    apply(&mut bench);
    assert_eq!(table(&bench), AccessTable::default());
}

#[test]
fn lost_information_keeps_everybody_out_until_people_clear_it() {
    let mut bench = bench();
    let record = Record {
        unit: "disk".to_owned(),
        boot_id: [0; 16],
        operation: None,
        reservations: Reservations::information_lost(),
    };
    bench.kept.insert(UNIT, record);
    next_agent(&mut bench, 100, Some(1), &[]);
    assert_eq!(table(&bench).others, u32::from(Access::INFORMATION_LOST.bits()));
    apply(&mut bench);
    assert_eq!(ending(&mut bench, NEXUS, &READ_KEYS, &[]), (2, (7, 0x44, 0x01)));
    bench.core.clear_reservations(UNIT, 12);
    bench.settle();
    assert_eq!((table(&bench), bench.changed.len()), (AccessTable::default(), 0));
    apply(&mut bench);
    assert_eq!(bench.changed, [(12, Ok(()))]);
    assert_eq!(keys(&mut bench), []);
}

#[test]
fn a_copy_for_whom_the_change_keeps_out_is_over_before_its_good() {
    let mut bench = bench();
    register(&mut bench, NEXUS, KEY, false);
    // EXTENDED COPY of 8 blocks within the unit, two identification descriptors and one segment.
    let target = |bytes: &mut Vec<u8>| {
        bytes.extend([0xE4, 0, 0, 0, 0x01, 0x03, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7]);
        bytes.extend([0; 12]);
        bytes.extend([0, 0, 2, 0]);
    };
    let mut copy = vec![0x07, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    target(&mut copy);
    target(&mut copy);
    copy.extend([0x02, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 8]);
    copy.extend(0_u64.to_be_bytes());
    copy.extend(100_u64.to_be_bytes());
    let mut cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, copy.len() as u8, 0, 0];
    forward(&mut bench, OTHER, 20, &cdb, &copy);
    assert_eq!(bench.executing.len(), 1, "{:?}", bench.forwarded_end());
    assert_eq!(bench.executing[0].2.map(|data| data.arena), Some(COPY_ARENA));
    forward(&mut bench, NEXUS, 21, &out(RESERVE, WRITE_EXCLUSIVE), &list(KEY, 0, false));
    apply(&mut bench);
    assert_eq!(bench.forwarded_end(), None, "the copy may still write");
    bench.end(Handler::Done);
    assert_eq!(bench.executing.len(), 0, "it writes no more");
    assert_eq!(bench.forwarded_end(), Some((21, GOOD)));
    assert_eq!(bench.forwarded_end(), Some((20, (2, (0x0A, 0x0D, 0x01)))));
    // The next one does not begin.
    cdb[1] = 0;
    let refused = ending(&mut bench, OTHER, &cdb, &copy);
    assert_eq!(refused, (2, (0x0A, 0x0D, 0x01)));
    assert_eq!(ending(&mut bench, NEXUS, &out(CLEAR, 0), &list(KEY, 0, false)), GOOD);
}
