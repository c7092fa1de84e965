//! Target port groups: SET TARGET PORT GROUPS, changes by the management, and who is told of them.

mod model;

use lunar_core::{Configuration, UnitConfiguration};
use lunar_offload_proto::alua::AccessState;
use lunar_offload_proto::control::{
    self, ConfigurationApplied, ConfigurationRefused, DeviceGroup, LogicalUnit, Target, TargetPort,
    TargetPortGroup, host_command, to_card, to_host,
};
use lunar_offload_proto::ring::{BlockRequest, Operation, SideRecord};
use model::{Bench, NEXUS, UNIT, block_entry, block_range, unit};

const SET: [u8; 12] = [0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];

/// A unit in a device group with two target port groups of this card and one of another node.
fn configuration(explicit_alua: bool) -> Configuration {
    let port = |relative_target_port, target| TargetPort { relative_target_port, target };
    let group = |id: u32, port| TargetPortGroup {
        name: format!("tg{id}"),
        id,
        state: 2 * u32::from(id != 1),
        configured_state: 2 * u32::from(id != 1),
        ports: vec![port],
        ..TargetPortGroup::default()
    };
    let plain = unit(4096);
    let unit = LogicalUnit { forwards: true, explicit_alua, ..plain.unit };
    let device_group = DeviceGroup {
        name: "dg".to_owned(),
        units: vec![UNIT],
        groups: vec![group(1, port(1, 1)), group(2, port(2, 2)), group(3, port(3, 0))],
        ..DeviceGroup::default()
    };
    let target = |handle| Target { handle, ..Target::default() };
    Configuration {
        units: vec![UnitConfiguration { unit, ..plain }],
        targets: vec![target(1), target(2)],
        device_groups: vec![device_group],
    }
}

fn bench() -> Bench {
    let mut bench = Bench::serving();
    bench.core.set_configuration(configuration(true), 0).expect("configuration");
    bench.settle();
    apply(&mut bench);
    bench
}

/// The card reports the newest configuration as made.
fn apply(bench: &mut Bench) {
    let generation = bench.core.configuration_generation();
    bench.control(to_host::Message::ConfigurationApplied(ConfigurationApplied { generation }));
}

fn forward(bench: &mut Bench, token: u64, list: &[u8]) {
    let mut side = SideRecord::empty();
    side.set_cdb(&SET).expect("fits");
    let mut entry = block_entry(Operation::Read, token);
    BlockRequest::Forward { data_out: true }.encode(&mut entry);
    assert!(bench.arena.write(block_range().offset, list));
    entry.data_bytes.set(list.len() as u32);
    bench.submit(0, entry, Some(&side));
    bench.poll();
}

fn set(bench: &mut Bench, token: u64, group: u8, state: u8) {
    forward(bench, token, &[0, 0, 0, 0, state, 0, 0, group]);
}

/// Token, status and sense key with ASC and ASCQ of the next completion, if there is one.
fn completion(bench: &mut Bench) -> Option<(u64, u8, (u8, u8, u8))> {
    bench.forwarded_end().map(|(token, (status, sense))| (token, status, sense))
}

/// The configuration that the card was sent last.
fn sent(bench: &Bench) -> &control::Configuration {
    let found = bench.sent.iter().rev().find_map(|message| match message {
        to_card::Message::Configuration(configuration) => Some(configuration),
        _ => None,
    });
    found.expect("sent")
}

/// State, PREF and STATUS CODE.
type Told = (u32, bool, u32);

/// What is told of each target port group, and whom the change came through.
fn groups(bench: &Bench) -> (Vec<Told>, (u32, u32)) {
    let group = &sent(bench).device_groups[0];
    let states = group.groups.iter().map(|own| (own.state, own.preferred, own.status_code));
    (states.collect(), (group.set_by_nexus, group.set_by_unit))
}

#[test]
fn spc_6_set_target_port_groups_ends_when_the_card_has_made_the_change() {
    let mut bench = bench();
    let commands = sent(&bench).units[0].host_commands;
    assert_ne!(commands & host_command::SET_TARGET_PORT_GROUPS, 0);
    // The CDB says eight bytes: the second descriptor is not looked at.
    forward(&mut bench, 1, &[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 2]);
    assert_eq!(completion(&mut bench), None);
    assert_eq!(groups(&bench), (vec![(1, false, 1), (2, false, 0), (2, false, 0)], (NEXUS, UNIT)));
    apply(&mut bench);
    assert_eq!(completion(&mut bench), Some((1, 0, (0, 0, 0))));
    let generation = bench.core.configuration_generation();
    set(&mut bench, 2, 1, 1);
    assert_eq!(completion(&mut bench), Some((2, 0, (0, 0, 0))), "nothing to change");
    assert_eq!(bench.core.configuration_generation(), generation);
}

#[test]
fn spc_6_set_target_port_groups_is_refused_where_it_cannot_be() {
    let mut bench = bench();
    set(&mut bench, 1, 9, 0);
    assert_eq!(completion(&mut bench), Some((1, 2, (5, 0x26, 0))), "no such group");
    set(&mut bench, 2, 2, 0xE);
    assert_eq!(completion(&mut bench), Some((2, 2, (5, 0x26, 0))), "no such state");
    set(&mut bench, 3, 3, 0);
    assert_eq!(completion(&mut bench), Some((3, 2, (4, 0x67, 0x0A))), "the group of another node");
    set(&mut bench, 4, 3, 2);
    assert_eq!(completion(&mut bench), Some((4, 0, (0, 0, 0))), "which is in that state anyway");
    bench.core.set_configuration(configuration(false), 0).expect("configuration");
    bench.settle();
    set(&mut bench, 5, 2, 0);
    assert_eq!(completion(&mut bench), Some((5, 2, (5, 0x20, 0))), "implicit only");
    let commands = sent(&bench).units[0].host_commands;
    assert_eq!(commands & host_command::SET_TARGET_PORT_GROUPS, 0);
}

#[test]
fn a_change_that_the_card_refuses_is_told_as_failed() {
    let mut bench = bench();
    set(&mut bench, 1, 2, 0);
    let generation = bench.core.configuration_generation();
    let refused = ConfigurationRefused { generation, reason: "no".to_owned() };
    bench.control(to_host::Message::ConfigurationRefused(refused));
    assert_eq!(completion(&mut bench), Some((1, 2, (4, 0x67, 0x0A))));
}

/// One snapshot may bring the card several changes, and the nexus that made one of them does not know the
/// others.
#[test]
fn spc_6_who_set_the_states_is_left_out_only_where_the_change_comes_alone() {
    let mut bench = bench();
    set(&mut bench, 1, 2, 0);
    set(&mut bench, 2, 1, 2);
    assert_eq!(groups(&bench).1, (0, 0));
    assert_eq!(completion(&mut bench), None);
    apply(&mut bench);
    assert_eq!(completion(&mut bench), Some((1, 0, (0, 0, 0))));
    assert_eq!(completion(&mut bench), Some((2, 0, (0, 0, 0))));
    set(&mut bench, 3, 1, 0);
    assert_eq!(groups(&bench).1, (NEXUS, UNIT));
}

/// A killed agent must not give back a path that was taken: the card goes on with the states that it has, and so
/// does the next agent, unless its configuration begins with another one.
#[test]
fn a_new_agent_takes_the_states_over_from_the_card() {
    let mut before = bench();
    set(&mut before, 1, 2, 0);
    before.core.set_target_port_group("dg", "tg1", Some(AccessState::Unavailable), None).unwrap();
    before.settle();
    let kept = sent(&before).device_groups.clone();
    let started = |configuration: Configuration| {
        let mut bench = Bench::new();
        bench.core.set_configuration(configuration, 0).expect("configuration");
        bench.connect(100);
        let device_groups = kept.clone();
        let ready = control::RingsReady { device_groups, ..control::RingsReady::default() };
        bench.control(to_host::Message::RingsReady(ready));
        groups(&bench)
    };
    let expected = vec![(3, false, 2), (0, false, 1), (2, false, 0)];
    assert_eq!(started(configuration(true)), (expected, (0, 0)));
    let mut changed = configuration(true);
    let group = &mut changed.device_groups[0].groups[1];
    (group.state, group.configured_state) = (1, 1);
    let expected = vec![(3, false, 2), (1, false, 0), (2, false, 0)];
    assert_eq!(started(changed).0, expected);
}

#[test]
fn the_management_changes_states_and_they_outlive_a_configuration() {
    let mut bench = bench();
    let change = |bench: &mut Bench, state, preferred| {
        bench.core.set_target_port_group("dg", "tg2", state, preferred).expect("there")
    };
    let generation = change(&mut bench, Some(AccessState::Offline), None);
    bench.settle();
    assert_eq!(generation, bench.core.configuration_generation());
    assert_eq!(groups(&bench), (vec![(0, false, 0), (14, false, 2), (2, false, 0)], (0, 0)));
    let generation = change(&mut bench, None, Some(true));
    assert_eq!(change(&mut bench, Some(AccessState::Offline), None), generation, "as before");
    bench.core.set_configuration(configuration(true), 0).expect("configuration");
    bench.settle();
    assert_eq!(groups(&bench).0[1], (14, true, 2));
    let refusal = bench.core.set_target_port_group("gd", "tg2", None, None);
    assert_eq!(refusal, Err("there is no device group `gd`; there are: dg".to_owned()));
    let refusal = bench.core.set_target_port_group("dg", "tg4", None, None);
    assert_eq!(
        refusal,
        Err("device group `dg` has no target group `tg4`; it has: tg1, tg2, tg3".to_owned())
    );
}
