//! Which crate may depend on which: the arrows of docs/architecture.md, as a table.
//!
//! A crate exists here only because its boundary enforces something, so an edge that is not in the
//! table is a change of the architecture: it is made here first, with its reason in docs/decisions.

use anyhow::Result;

use crate::workspace::{Dependency, Kind, Member, Workspace};

/// What one crate may depend on. Names without the `lunar-` prefix are of this workspace.
struct Row {
    name: &'static str,
    /// Crates of this workspace that it may be built from.
    arrows: &'static [&'static str],
    /// Crates of this workspace that its tests may use besides.
    tests: &'static [&'static str],
    /// What it may take from outside.
    outside: Outside,
}

/// What a crate may take from outside the workspace.
enum Outside {
    /// Whatever its licence allows.
    Any,
    /// Only these: code that decides, or that moves data, has no use for I/O, clocks or threads.
    Only(&'static [&'static str]),
}

use Outside::{Any, Only};

const fn row(
    name: &'static str,
    arrows: &'static [&'static str],
    tests: &'static [&'static str],
    outside: Outside,
) -> Row {
    Row { name, arrows, tests, outside }
}

/// The whole architecture.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    // The leaves: what both sides agree on, what SCSI is, what the hardware is called.
    row("offload-proto", &[], &[], Only(&["zerocopy", "prost", "thiserror", "loom"])),
    row("scsi", &[], &[], Only(&[])),
    row("platform", &[], &[], Only(&[])),
    // The card.
    row("srp", &["scsi"], &[], Only(&["zerocopy"])),
    row("vscsi", &["srp", "scsi"], &[], Only(&["zerocopy"])),
    row("dma", &["platform"], &["pcie"], Only(&[])),
    row("backend", &["offload-proto", "platform", "dma"], &["pcie"], Only(&["zerocopy"])),
    row("target", &["scsi", "srp", "vscsi", "platform", "dma", "backend", "offload-proto"],
        &["pcie", "hca", "initiator"], Only(&["rtrb"])),
    row("verbs-ibv-sys", &[], &[], Only(&["libc"])),
    // Also the host's end of the way into its memory, for the keeper.
    row("verbs-ibv", &["platform", "verbs-ibv-sys"], &[], Any),
    row("firmware", &["target", "platform", "offload-proto", "control-channel", "verbs-ibv"],
        &["pcie", "hca", "initiator"], Any),
    // Both: how they prove themselves to each other, which is no matter of messages.
    row("control-channel", &[], &[], Any),
    // The host.
    row("handlers", &[], &[], Any),
    row("mgmt", &["offload-proto"], &[], Only(&["thiserror", "serde"])),
    row("core", &["scsi", "handlers", "mgmt", "offload-proto"], &[], Only(&["zerocopy", "thiserror"])),
    row("keeper", &["core", "handlers", "offload-proto", "platform", "verbs-ibv"], &["pcie"], Any),
    row("agent", &["core", "handlers", "mgmt", "offload-proto", "platform", "control-channel", "keeper"],
        &["pcie", "hca", "scsi"], Any),
    row("cli", &["agent", "control-channel"], &["keeper", "offload-proto"], Any),
    // The emulator. Nothing above this line depends on anything below it, tests aside.
    row("pcie", &["platform", "offload-proto"], &["dma"], Any),
    row("hca", &["platform", "pcie"], &[], Any),
    row("hypervisor", &["platform", "pcie", "vscsi"], &["srp"], Any),
    row("initiator", &["platform", "hca", "pcie", "scsi", "srp"], &[], Any),
    row("sim", &["platform", "hca", "pcie", "initiator", "scsi", "srp", "dma", "backend", "target",
        "core", "handlers", "mgmt", "offload-proto"], &[], Any),
    // `emulate` is also what starts the card, the keeper and the agent: docs/decisions/0001.
    row("board", &["platform", "hca", "pcie", "initiator", "scsi", "srp", "dma", "backend", "target",
        "firmware", "core", "handlers", "mgmt", "agent", "keeper", "cli", "offload-proto"], &[], Any),
    // The tests: everything, except that xtask must build when nothing else does.
    row("scenario", &["platform", "hca", "pcie", "hypervisor", "initiator", "sim", "board", "scsi", "srp",
        "vscsi", "dma", "backend", "target", "firmware", "core", "handlers", "mgmt", "agent", "keeper", "cli",
        "offload-proto"], &[], Any),
    // Also the hypervisor of a real VSCSI client, and a small server for it.
    row("conformance", &["platform", "scsi", "srp", "vscsi", "target", "dma", "verbs-ibv", "verbs-ibv-sys", "pcie",
        "hypervisor"], &[], Any),
    row("xtask", &[], &[], Only(&["anyhow", "clap", "serde_json"])),
];

/// What proptest and friends bring to tests is no matter of architecture, and build scripts run on
/// the machine that builds: both may use what they like from outside.
pub fn check(workspace: &Workspace) -> Result<Vec<String>> {
    Ok(check_members(ROWS, &workspace.members))
}

fn check_members(rows: &[Row], members: &[Member]) -> Vec<String> {
    let mut findings = Vec::new();
    for member in members {
        match rows.iter().find(|row| row.name == short(&member.name)) {
            Some(row) => findings.extend(
                member
                    .dependencies
                    .iter()
                    .filter_map(|d| reason_against(row, d))
                    .map(|reason| format!("{}: {reason}", member.name)),
            ),
            None => findings.push(format!(
                "{}: has no row in tests/xtask/src/arrows.rs: say what it may depend on",
                member.name
            )),
        }
    }
    for row in rows {
        if !members.iter().any(|member| short(&member.name) == row.name) {
            findings.push(format!(
                "{}: has a row in tests/xtask/src/arrows.rs, but no crate",
                row.name
            ));
        }
    }
    findings
}

/// Why `row` may not have this dependency; `None` when it may.
fn reason_against(row: &Row, dependency: &Dependency) -> Option<String> {
    let name = short(&dependency.name);
    if dependency.ours {
        let drawn = match dependency.kind {
            Kind::Normal | Kind::Build => row.arrows.contains(&name),
            Kind::Dev => row.arrows.contains(&name) || row.tests.contains(&name),
        };
        return (!drawn).then(|| match dependency.kind {
            Kind::Dev => format!("its tests may not depend on `{name}`"),
            Kind::Normal | Kind::Build => {
                format!(
                    "the arrow to `{name}` is not drawn (it may have: {})",
                    row.arrows.join(", ")
                )
            }
        });
    }
    match (&row.outside, dependency.kind) {
        (Only(allowed), Kind::Normal) if !allowed.contains(&name) => {
            Some(format!("may not use `{name}` from outside (it may use: {})", allowed.join(", ")))
        }
        _ => None,
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("lunar-").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &str, kind: Kind, ours: bool) -> Dependency {
        Dependency { name: name.into(), kind, ours }
    }

    /// The members that ROWS describes, each with every edge it may have.
    fn members() -> Vec<Member> {
        ROWS.iter()
            .map(|row| Member {
                name: format!("lunar-{}", row.name),
                dependencies: row
                    .arrows
                    .iter()
                    .map(|name| dependency(&format!("lunar-{name}"), Kind::Normal, true))
                    .collect(),
                binaries: Vec::new(),
            })
            .collect()
    }

    fn with(name: &str, extra: Dependency) -> Vec<String> {
        let mut members = members();
        let member = members.iter_mut().find(|m| m.name == format!("lunar-{name}")).unwrap();
        member.dependencies.push(extra);
        check_members(ROWS, &members)
    }

    #[test]
    fn the_drawn_arrows_pass() {
        assert_eq!(check_members(ROWS, &members()), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_is_not_drawn_is_found() {
        let findings = with("scsi", dependency("lunar-target", Kind::Normal, true));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("lunar-scsi: the arrow to `target` is not drawn"));
    }

    #[test]
    fn a_build_dependency_counts_as_an_arrow() {
        assert_eq!(with("srp", dependency("lunar-mgmt", Kind::Build, true)).len(), 1);
    }

    #[test]
    fn tests_may_use_the_emulator_only_where_the_table_says_so() {
        assert!(with("target", dependency("lunar-hca", Kind::Dev, true)).is_empty());
        assert_eq!(with("target", dependency("lunar-hca", Kind::Normal, true)).len(), 1);
        assert_eq!(with("scsi", dependency("lunar-hca", Kind::Dev, true)).len(), 1);
    }

    #[test]
    fn deciding_crates_take_nothing_unlisted_from_outside_except_for_tests() {
        assert_eq!(with("scsi", dependency("tokio", Kind::Normal, false)).len(), 1);
        assert!(with("scsi", dependency("proptest", Kind::Dev, false)).is_empty());
        assert!(with("agent", dependency("tokio", Kind::Normal, false)).is_empty());
    }

    #[test]
    fn a_crate_without_a_row_and_a_row_without_a_crate_are_found() {
        let mut members = members();
        members.retain(|member| member.name != "lunar-sim");
        members.push(Member { name: "lunar-new".into(), dependencies: vec![], binaries: vec![] });
        assert_eq!(check_members(ROWS, &members).len(), 2);
    }

    /// Nothing that ships is built from the emulator: true of the table itself.
    #[test]
    fn no_shipping_row_has_an_arrow_to_the_emulator() {
        let emulator = ["pcie", "hca", "hypervisor", "initiator", "sim", "board"];
        let tests = ["scenario", "conformance", "xtask"];
        for row in ROWS.iter().filter(|r| !emulator.contains(&r.name) && !tests.contains(&r.name)) {
            for arrow in row.arrows {
                assert!(!emulator.contains(arrow), "{} -> {arrow}", row.name);
            }
        }
    }
}
