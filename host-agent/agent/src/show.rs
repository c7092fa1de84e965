//! What `Show` answers: the configuration by name, joined with what the card counted. Pure: data in, reply out.

use std::collections::HashMap;

use lunar_mgmt::snapshot::Handles;
use lunar_mgmt::tree::{AccessState, Device, Placement, Target, Tree};
use lunar_offload_proto::control;

use crate::api::wire;
use crate::latency::figures;

/// What a reply is made from.
pub(crate) struct Sources<'a> {
    pub card: wire::Card,
    pub tree: &'a Tree,
    pub handles: &'a Handles,
    /// What the card was sent.
    pub configuration: &'a control::Configuration,
    /// The card's counters, or why there are none.
    pub statistics: Result<&'a control::Statistics, &'a str>,
}

pub(crate) fn reply(sources: &Sources<'_>) -> wire::ShowReply {
    let none = control::Statistics::default();
    let (statistics, missing) = match sources.statistics {
        Ok(statistics) => (statistics, ""),
        Err(reason) => (&none, reason),
    };
    let mut card = sources.card.clone();
    card.uptime_ns = statistics.uptime_ns;
    let names = sources.handles;
    wire::ShowReply {
        card: Some(card),
        targets: targets(sources, statistics),
        luns: luns(sources, statistics),
        nexuses: statistics.nexuses.iter().map(|nexus| self::nexus(names, nexus)).collect(),
        poll_groups: statistics.poll_groups.iter().map(poll_group).collect(),
        latencies: latencies(names, statistics),
        sgv: statistics.sgv.iter().map(sgv).collect(),
        rings: statistics.rings.iter().map(ring).collect(),
        statistics_missing: missing.to_owned(),
        // Not the engine's to tell.
        control: None,
    }
}

fn trees_targets(tree: &Tree) -> impl Iterator<Item = (&String, &Target)> {
    tree.drivers.values().flatten()
}

fn targets(sources: &Sources<'_>, statistics: &control::Statistics) -> Vec<wire::Target> {
    let sent = |sent: &control::Target| {
        let own = trees_targets(sources.tree).find(|(name, _)| **name == sent.name);
        let nexuses = statistics.nexuses.iter().filter(|nexus| nexus.target == sent.handle).count();
        wire::Target {
            name: sent.name.clone(),
            driver: sent.driver.clone(),
            enabled: sent.enabled,
            relative_target_port: sent.relative_target_port,
            port_id: hexadecimal(&sent.port_id),
            luns: count(sent.default_luns.len()),
            groups: own.map(|(_, own)| own.groups.keys().cloned().collect()).unwrap_or_default(),
            nexuses: count(nexuses),
        }
    };
    sources.configuration.targets.iter().map(sent).collect()
}

fn luns(sources: &Sources<'_>, statistics: &control::Statistics) -> Vec<wire::Lun> {
    let units: HashMap<&str, &control::LogicalUnit> =
        sources.configuration.units.iter().map(|unit| (unit.name.as_str(), unit)).collect();
    let counters: HashMap<u32, &control::UnitStatistics> =
        statistics.units.iter().map(|unit| (unit.unit, unit)).collect();
    let mut all = Vec::new();
    for (target_name, target) in trees_targets(sources.tree) {
        let groups = target.groups.iter().map(|(name, group)| (name.as_str(), &group.luns));
        for (group, luns) in std::iter::once(("", &target.luns)).chain(groups) {
            for (number, lun) in luns {
                let Some(device) = sources.tree.devices.get(&lun.device) else { continue };
                let Some(unit) = units.get(lun.device.as_str()) else { continue };
                let counted = counters.get(&unit.handle);
                all.push(wire::Lun {
                    target: target_name.clone(),
                    group: group.to_owned(),
                    lun: u32::from(*number),
                    device: lun.device.clone(),
                    handler: device.handler.name().to_owned(),
                    backend: if device.on_host() { "host" } else { "card" }.to_owned(),
                    placement: placement(device).to_owned(),
                    read_only: lun.read_only || unit.read_only,
                    block_bytes: unit.block_bytes,
                    blocks: unit.blocks,
                    reads: counted.map_or(0, |unit| unit.reads),
                    read_bytes: counted.map_or(0, |unit| unit.read_bytes),
                    writes: counted.map_or(0, |unit| unit.writes),
                    write_bytes: counted.map_or(0, |unit| unit.write_bytes),
                    others: counted.map_or(0, |unit| unit.others),
                    check_conditions: counted.map_or(0, |unit| unit.check_conditions),
                });
            }
        }
    }
    all
}

fn placement(device: &Device) -> &'static str {
    match device.placement() {
        Placement::HostDram => "host_dram",
        Placement::CardDram => "card_dram",
    }
}

/// The device groups by name, in the states that they are in.
pub(crate) fn alua(
    tree: &Tree,
    names: &Handles,
    groups: &[control::DeviceGroup],
) -> wire::AluaReply {
    let device_group = |group: &control::DeviceGroup| wire::DeviceGroup {
        name: group.name.clone(),
        devices: group.units.iter().map(|unit| named(names.unit_name(*unit), *unit)).collect(),
        target_groups: group.groups.iter().map(|own| target_group(tree, names, own)).collect(),
    };
    wire::AluaReply { device_groups: groups.iter().map(device_group).collect() }
}

fn target_group(tree: &Tree, names: &Handles, own: &control::TargetPortGroup) -> wire::TargetGroup {
    let ports = own.ports.iter().map(|port| {
        let id = port.relative_target_port;
        let other_node = port.target == 0;
        let name = if other_node {
            named(name_of_another_nodes(tree, id), id)
        } else {
            named(names.target_name(port.target), port.target)
        };
        wire::TargetGroupTarget { name, relative_target_port: id, other_node }
    });
    wire::TargetGroup {
        name: own.name.clone(),
        group_id: own.id,
        state: AccessState::from_code(own.state).unwrap_or_default().name().to_owned(),
        preferred: own.preferred,
        changed_by: match own.status_code {
            1 => "initiator",
            2 => "management",
            _ => "",
        }
        .to_owned(),
        targets: ports.collect(),
    }
}

fn name_of_another_nodes(tree: &Tree, relative_target_port: u32) -> Option<&str> {
    let groups = tree.device_groups.values().flat_map(|group| group.target_groups.values());
    let mut targets = groups.flat_map(|group| &group.targets);
    let found = targets.find(|(_, id)| id.map(u32::from) == Some(relative_target_port));
    found.map(|(name, _)| name.as_str())
}

fn nexus(names: &Handles, nexus: &control::NexusStatistics) -> wire::Nexus {
    wire::Nexus {
        initiator: nexus.peer.clone(),
        initiator_port_id: hexadecimal(&nexus.initiator_port_id),
        target: named(names.target_name(nexus.target), nexus.target),
        group: nexus.group.clone(),
        channels: nexus.channels,
        commands_active: nexus.commands_active,
        reads: nexus.reads,
        read_bytes: nexus.read_bytes,
        writes: nexus.writes,
        write_bytes: nexus.write_bytes,
        others: nexus.others,
        check_conditions: nexus.check_conditions,
        queue_fulls: nexus.queue_fulls,
        aborted: nexus.aborted,
        task_managements: nexus.task_managements,
        memory_bytes: nexus.memory_bytes,
        handle: nexus.nexus,
    }
}

fn latencies(names: &Handles, statistics: &control::Statistics) -> Vec<wire::Latency> {
    let nexuses = statistics.nexuses.iter().flat_map(|nexus| {
        nexus.latency.iter().filter_map(|histogram| figures("nexus", &nexus.peer, histogram))
    });
    let units = statistics.units.iter().flat_map(|unit| {
        let name = named(names.unit_name(unit.unit), unit.unit);
        unit.latency.iter().filter_map(move |histogram| figures("device", &name, histogram))
    });
    nexuses.chain(units).collect()
}

/// A name, or its handle where the card counts for something that is not configured any more.
fn named(name: Option<&str>, handle: u32) -> String {
    name.map_or_else(|| format!("#{handle}"), str::to_owned)
}

fn poll_group(group: &control::PollGroupStatistics) -> wire::PollGroup {
    wire::PollGroup {
        group: group.group,
        ticks: group.ticks,
        idle_ticks: group.idle_ticks,
        sleeps: group.sleeps,
        commands: group.commands,
        slot_waits: group.slot_waits,
        buffer_waits: group.buffer_waits,
        send_waits: group.send_waits,
        backend_waits: group.backend_waits,
        doorbells: group.doorbells,
        channels: group.channels,
        completion_errors: group.completion_errors,
        credit_overruns: group.credit_overruns,
    }
}

fn sgv(cache: &control::SgvStatistics) -> wire::Sgv {
    let placement = match cache.placement() {
        control::PlacementKind::HostDram => "host_dram",
        control::PlacementKind::CardDram | control::PlacementKind::Unspecified => "card_dram",
    };
    let sum = |field: fn(&control::SgvClassStatistics) -> u64| {
        cache.classes.iter().map(field).fold(0, u64::saturating_add)
    };
    wire::Sgv {
        group: cache.group,
        placement: placement.to_owned(),
        arena_bytes: cache.arena_bytes,
        active_bytes: cache.active_bytes,
        inactive_bytes: cache.inactive_bytes,
        high_water_bytes: cache.high_water_bytes,
        fails: cache
            .share_fails
            .saturating_add(cache.exhausted_fails)
            .saturating_add(cache.too_large_fails),
        hits: sum(|class| class.hits),
        total: sum(|class| class.total),
        cached: u32::try_from(sum(|class| u64::from(class.cached))).unwrap_or(u32::MAX),
    }
}

fn ring(ring: &control::RingStatistics) -> wire::Ring {
    wire::Ring {
        ring: ring.ring,
        submissions: ring.submissions,
        completions: ring.completions,
        outstanding: ring.outstanding,
        full: ring.full,
        flushes: ring.flushes,
        hints: ring.hints,
        fault: ring.fault.clone(),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
