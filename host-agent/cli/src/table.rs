//! Replies as tables for people: units are rounded, nothing is left out that has its column.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use lunar_agent::api::wire;

use crate::What;

/// The parts of a reply that were asked for, one table each.
pub(crate) fn show(reply: &wire::ShowReply, what: Option<What>) -> String {
    let mut text = String::new();
    let wanted = |part| what.is_none_or(|what| what == part);
    if what.is_none() {
        card(&mut text, reply.card.as_ref());
        refused(&mut text, reply.control.as_ref());
    }
    if wanted(What::Targets) {
        targets(&mut text, &reply.targets);
    }
    if wanted(What::Luns) {
        luns(&mut text, &reply.luns);
    }
    if wanted(What::Nexuses) {
        nexuses(&mut text, &reply.nexuses);
    }
    if wanted(What::Counters) {
        poll_groups(&mut text, &reply.poll_groups);
        sgv(&mut text, &reply.sgv);
        rings(&mut text, &reply.rings);
    }
    if wanted(What::Latency) {
        latencies(&mut text, &reply.latencies);
    }
    if !reply.statistics_missing.is_empty() {
        let _infallible = writeln!(text, "No counters: {}", reply.statistics_missing);
    }
    text
}

/// What is odd, a sentence a line, then what there is now.
fn sentences(warnings: &[String], now: &str) -> String {
    warnings.iter().map(String::as_str).chain([now]).map(|line| format!("{line}\n")).collect()
}

/// The size of a device, as it was looked at again.
pub(crate) fn resynced(device: &str, reply: &wire::ResyncSizeReply) -> String {
    let (before, after) = (reply.blocks_before, reply.blocks);
    let now = if before == after {
        format!("{device} has {after} blocks, as before")
    } else {
        format!("{device} has {after} blocks now; it had {before}")
    };
    sentences(&reply.warnings, &now)
}

/// The disc that is in a drive now.
pub(crate) fn medium(device: &str, reply: &wire::ChangeMediumReply) -> String {
    let now = match reply.blocks {
        0 => format!("{device}: no disc"),
        blocks => format!("{device}: a disc of {blocks} blocks"),
    };
    sentences(&reply.warnings, &now)
}

/// The target groups of all device groups.
pub(crate) fn alua(reply: &wire::AluaReply) -> String {
    let mut text = String::new();
    if reply.device_groups.is_empty() {
        return "Device groups: none, so every device is active through every target\n".to_owned();
    }
    for group in &reply.device_groups {
        let rows = group.target_groups.iter().map(|own| {
            let targets = own.targets.iter().map(|target| {
                let whose = if target.other_node { ", another node's" } else { "" };
                format!("{} (port {}{whose})", target.name, target.relative_target_port)
            });
            vec![
                own.name.clone(),
                own.group_id.to_string(),
                own.state.clone(),
                yes(own.preferred),
                if own.changed_by.is_empty() { "-".to_owned() } else { own.changed_by.clone() },
                targets.collect::<Vec<_>>().join("\n"),
            ]
        });
        let devices =
            if group.devices.is_empty() { "none".to_owned() } else { group.devices.join(", ") };
        let heading = format!("Device group {}, devices: {devices}", group.name);
        let columns = ["target group", ">id", "state", "preferred", "changed by", "targets"];
        table(&mut text, &heading, &columns, rows.collect());
    }
    text
}

/// The target group as it was set.
pub(crate) fn alua_set(device_group: &str, name: &str, reply: &wire::SetAluaReply) -> String {
    let mut text = format!("{device_group}: {name}");
    if let Some(own) = &reply.target_group {
        let preferred = if own.preferred { ", preferred" } else { "" };
        let _infallible = write!(text, " is {}{preferred}", own.state);
    }
    if !reply.in_force {
        text.push_str("; the card has not made the change yet: it does when it is connected and older commands are over");
    }
    text.push('\n');
    text
}

/// Who is registered, and what is reserved.
pub(crate) fn reservations(device: &str, reply: &wire::ReservationsReply) -> String {
    let mut text = String::new();
    let kind = match reply.reservation_type {
        1 => "write exclusive",
        3 => "exclusive access",
        5 => "write exclusive, registrants only",
        6 => "exclusive access, registrants only",
        7 => "write exclusive, all registrants",
        8 => "exclusive access, all registrants",
        _ => "no persistent reservation",
    };
    let outlives = if reply.aptpl { "outlives" } else { "does not outlive" };
    let _infallible = writeln!(
        text,
        "Device {device}: {kind}; generation {}; {outlives} a loss of power",
        reply.generation
    );
    if reply.lost {
        text.push_str(
            "What was kept cannot be trusted, so nobody gets at the device: use `lunar pr import` or `lunar pr clear`\n",
        );
    }
    if !reply.reserved_by.is_empty() {
        let _infallible = writeln!(text, "Reserved by RESERVE: {}", reply.reserved_by);
    }
    let rows = reply.registrations.iter().map(|own| {
        vec![
            own.initiator.clone(),
            own.relative_target_port.to_string(),
            format!("{:#018x}", own.key),
            yes(own.holder),
        ]
    });
    let columns = ["initiator port", ">target port", "key", "holder"];
    table(&mut text, "Registrations", &columns, rows.collect());
    text
}

/// The reservations as they were changed.
pub(crate) fn changed_reservations(device: &str, reply: &wire::ReservationsReply) -> String {
    let mut text = reservations(device, reply);
    if !reply.in_force {
        text.push_str("The card does not enforce this yet: it does when it is connected and older commands are over\n");
    }
    text
}

/// The commands, by operation code.
pub(crate) fn opcodes(reply: &wire::OpcodesReply) -> String {
    let rows = reply.opcodes.iter().map(|opcode| {
        let action = opcode.service_action.map(|action| format!("/{action:02X}h"));
        vec![
            format!("{:02X}h{}", opcode.operation, action.unwrap_or_default()),
            opcode.name.clone(),
            opcode.cdb_bytes.to_string(),
            opcode.answerer.clone(),
            opcode.device_types.join(", ")
                + match (opcode.thin_only, opcode.alua_only) {
                    (true, _) => ", thin only",
                    (_, true) => ", of a device group only",
                    _ => "",
                },
            if opcode.timeout_s == 0 { "-".to_owned() } else { format!("{} s", opcode.timeout_s) },
        ]
    });
    let columns = ["code/action", "command", ">CDB bytes", "answered by", "units", ">timeout"];
    let mut text = String::new();
    table(&mut text, "SCSI commands", &columns, rows.collect());
    text
}

fn card(text: &mut String, card: Option<&wire::Card>) {
    let none = wire::Card::default();
    let card = card.unwrap_or(&none);
    let state = if card.connected {
        format!("{}, epoch {}, up {}", card.software, card.epoch, duration(card.uptime_ns))
    } else {
        "not connected".to_owned()
    };
    let (sent, applied) = (card.configuration_generation, card.applied_generation);
    let configuration = match (card.refused.as_str(), sent == applied) {
        ("", true) => format!("configuration {applied} in force"),
        ("", false) => format!("configuration {sent} sent, {applied} in force"),
        (refused, _) => format!("configuration {sent} refused: {refused}; {applied} in force"),
    };
    let _infallible = writeln!(text, "Card: {state}; {configuration}\n");
}

/// Nothing where nobody was refused.
fn refused(text: &mut String, control: Option<&wire::ControlChannel>) {
    if let Some(control) = control.filter(|control| control.refused > 0) {
        let (count, last) = (control.refused, &control.last_refusal);
        let _infallible =
            writeln!(text, "Refused at the control channel: {count}, the last: {last}\n");
    }
}

/// A table with a heading; nothing where there is no row but the heading says so.
fn table(text: &mut String, heading: &str, columns: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        let _infallible = writeln!(text, "{heading}: none\n");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(columns.iter().map(|column| column.trim_start_matches('>')));
    // A column whose name begins with `>` holds numbers.
    for (index, column) in columns.iter().enumerate() {
        if column.starts_with('>')
            && let Some(column) = table.column_mut(index)
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    let _infallible = writeln!(text, "{heading}\n{table}\n");
}

fn targets(text: &mut String, targets: &[wire::Target]) {
    let rows = targets.iter().map(|target| {
        vec![
            target.name.clone(),
            target.driver.clone(),
            yes(target.enabled),
            target.relative_target_port.to_string(),
            target.luns.to_string(),
            target.groups.join(", "),
            target.nexuses.to_string(),
        ]
    });
    let columns = ["target", "driver", "enabled", ">port", ">LUNs", "groups", ">nexuses"];
    table(text, "Targets", &columns, rows.collect());
}

fn luns(text: &mut String, luns: &[wire::Lun]) {
    let rows = luns.iter().map(|lun| {
        vec![
            lun.target.clone(),
            lun.group.clone(),
            lun.lun.to_string(),
            lun.device.clone(),
            lun.handler.clone(),
            format!("{}, {}", lun.backend, lun.placement),
            if lun.read_only { "ro" } else { "rw" }.to_owned(),
            bytes(lun.blocks.saturating_mul(u64::from(lun.block_bytes))),
            lun.reads.to_string(),
            bytes(lun.read_bytes),
            lun.writes.to_string(),
            bytes(lun.write_bytes),
            lun.check_conditions.to_string(),
        ]
    });
    let columns = [
        "target", "group", ">LUN", "device", "handler", "runs on", "mode", ">size", ">reads",
        ">read", ">writes", ">written", ">checks",
    ];
    table(text, "LUNs", &columns, rows.collect());
}

fn nexuses(text: &mut String, nexuses: &[wire::Nexus]) {
    let rows = nexuses.iter().map(|nexus| {
        vec![
            nexus.initiator.clone(),
            nexus.target.clone(),
            nexus.group.clone(),
            nexus.channels.to_string(),
            nexus.commands_active.to_string(),
            nexus.reads.to_string(),
            bytes(nexus.read_bytes),
            nexus.writes.to_string(),
            bytes(nexus.write_bytes),
            nexus.check_conditions.to_string(),
            nexus.queue_fulls.to_string(),
            nexus.aborted.to_string(),
            bytes(nexus.memory_bytes),
        ]
    });
    let columns = [
        "initiator",
        "target",
        "group",
        ">channels",
        ">active",
        ">reads",
        ">read",
        ">writes",
        ">written",
        ">checks",
        ">busy",
        ">aborted",
        ">memory",
    ];
    table(text, "Nexuses", &columns, rows.collect());
}

fn poll_groups(text: &mut String, groups: &[wire::PollGroup]) {
    let rows = groups.iter().map(|group| {
        [
            u64::from(group.group),
            group.ticks,
            group.idle_ticks,
            group.sleeps,
            group.commands,
            group.slot_waits,
            group.buffer_waits,
            group.send_waits,
            group.backend_waits,
            group.doorbells,
            u64::from(group.channels),
            group.completion_errors,
        ]
        .map(|number| number.to_string())
        .to_vec()
    });
    let columns = [
        ">group",
        ">ticks",
        ">idle",
        ">sleeps",
        ">commands",
        ">slot waits",
        ">buffer waits",
        ">send waits",
        ">backend waits",
        ">doorbells",
        ">channels",
        ">errors",
    ];
    table(text, "Poll groups", &columns, rows.collect());
}

fn sgv(text: &mut String, caches: &[wire::Sgv]) {
    let rows = caches.iter().map(|cache| {
        vec![
            cache.group.to_string(),
            cache.placement.clone(),
            bytes(cache.arena_bytes),
            bytes(cache.active_bytes),
            bytes(cache.inactive_bytes),
            bytes(cache.high_water_bytes),
            cache.hits.to_string(),
            cache.total.to_string(),
            cache.cached.to_string(),
            cache.fails.to_string(),
        ]
    });
    let columns = [
        ">group",
        "placement",
        ">arena",
        ">active",
        ">inactive",
        ">high water",
        ">hits",
        ">total",
        ">cached",
        ">fails",
    ];
    table(text, "SGV caches", &columns, rows.collect());
}

fn rings(text: &mut String, rings: &[wire::Ring]) {
    let rows = rings.iter().map(|ring| {
        vec![
            ring.ring.to_string(),
            ring.submissions.to_string(),
            ring.completions.to_string(),
            ring.outstanding.to_string(),
            ring.full.to_string(),
            ring.flushes.to_string(),
            ring.hints.to_string(),
            ring.fault.clone(),
        ]
    });
    let columns = [
        ">ring",
        ">submissions",
        ">completions",
        ">outstanding",
        ">full",
        ">flushes",
        ">hints",
        "fault",
    ];
    table(text, "Rings", &columns, rows.collect());
}

fn latencies(text: &mut String, latencies: &[wire::Latency]) {
    let rows = latencies.iter().map(|latency| {
        let size = match latency.size_class_bytes {
            0 => "all".to_owned(),
            size => bytes(u64::from(size)),
        };
        vec![
            latency.object.clone(),
            latency.name.clone(),
            latency.operation.clone(),
            size,
            latency.count.to_string(),
            duration(latency.mean_ns),
            duration(latency.p50_ns),
            duration(latency.p99_ns),
            duration(latency.p999_ns),
            duration(latency.max_ns),
        ]
    });
    let columns = [
        "of",
        "name",
        "operation",
        ">from size",
        ">count",
        ">mean",
        ">p50",
        ">p99",
        ">p99.9",
        ">max",
    ];
    table(text, "Latency", &columns, rows.collect());
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// Bytes in the greatest binary unit that keeps the number at one or more.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let exponent = bytes.checked_ilog2().unwrap_or(0) / 10;
    let unit = UNITS[exponent as usize];
    if exponent == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10) >> (10 * exponent);
    if tenths.is_multiple_of(10) {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// Nanoseconds in the unit that people compare.
fn duration(ns: u64) -> String {
    let (unit, unit_ns) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => ("µs", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        _ => ("s", 1_000_000_000),
    };
    format!("{}.{} {unit}", ns / unit_ns, ns % unit_ns / (unit_ns / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_times_are_rounded_down_to_a_tenth() {
        let lengths = [0, 1023, 1024, 1536, (1 << 30) - 1, 1 << 40, u64::MAX].map(bytes);
        assert_eq!(
            lengths,
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "1023.9 MiB", "1 TiB", "15.9 EiB"]
        );
        let times = [0, 999, 1_000, 12_345, 9_990_000, 61_000_000_000].map(duration);
        assert_eq!(times, ["0 ns", "999 ns", "1.0 µs", "12.3 µs", "9.9 ms", "61.0 s"]);
    }

    #[test]
    fn empty_parts_are_said_to_be_empty_and_missing_counters_explained() {
        let reply = wire::ShowReply {
            statistics_missing: "no card is connected".to_owned(),
            ..wire::ShowReply::default()
        };
        assert_eq!(
            show(&reply, Some(What::Nexuses)),
            "Nexuses: none\n\nNo counters: no card is connected\n"
        );
        assert!(show(&reply, None).starts_with("Card: not connected; configuration 0 in force\n"));
    }

    #[test]
    fn who_was_refused_is_told_only_where_somebody_was() {
        let shown = |refused, last_refusal: &str| {
            let last_refusal = last_refusal.to_owned();
            let control = Some(wire::ControlChannel { refused, last_refusal });
            show(&wire::ShowReply { control, ..wire::ShowReply::default() }, None)
        };
        assert!(!shown(0, "").contains("Refused"));
        let text = shown(3, "the card at 192.0.2.7:4000 was refused: it showed no certificate");
        assert!(
            text.contains("Refused at the control channel: 3, the last: the card at 192.0.2.7"),
            "{text}"
        );
    }

    #[test]
    fn a_part_shows_its_rows_and_no_other_part() {
        let reply = wire::ShowReply {
            targets: vec![wire::Target { name: "t1".to_owned(), ..wire::Target::default() }],
            latencies: vec![wire::Latency { p99_ns: 12_345, ..wire::Latency::default() }],
            ..wire::ShowReply::default()
        };
        let targets = show(&reply, Some(What::Targets));
        assert!(targets.contains("t1") && !targets.contains("12.3 µs"), "{targets}");
        let latency = show(&reply, Some(What::Latency));
        assert!(latency.contains("12.3 µs") && !latency.contains("t1"), "{latency}");
    }
}
