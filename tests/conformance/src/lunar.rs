//! The programs under test: built as users build them, and put where the guest finds them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What runs in the guest, and the packages that it is built from.
const PROGRAMS: &[(&str, &str)] = &[
    ("lunar-firmware", "lunar-firmware"),
    ("lunar-arena", "lunar-keeper"),
    ("lunar-agent", "lunar-agent"),
    ("lunar", "lunar-cli"),
];

/// The feature that brings the provider over libibverbs, and the packages that need it.
const FEATURE: &str = "ibverbs";
const WITH_FEATURE: &[(&str, &str)] =
    &[("lunar-firmware", "dpu-firmware/firmware"), ("lunar-keeper", "host-agent/keeper")];

/// Builds Lunar and puts its programs into `out/bin`. Without a provider that could serve the
/// guest, `out/lunar-missing` says so, and the scenarios against Lunar are skipped.
pub fn add(workspace: &Path, target: &Path, out: &Path) -> Result<()> {
    for (package, folder) in WITH_FEATURE {
        let manifest = fs::read_to_string(workspace.join(folder).join("Cargo.toml"))?;
        if !manifest.lines().any(|line| line.starts_with(&format!("{FEATURE} ="))) {
            let reason = format!("{package} has no feature {FEATURE} yet");
            return Ok(fs::write(out.join("lunar-missing"), reason)?);
        }
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--quiet"]).current_dir(workspace);
    for (_, package) in PROGRAMS {
        build.args(["--package", package]);
    }
    for (package, _) in WITH_FEATURE {
        build.args(["--features", &format!("{package}/{FEATURE}")]);
    }
    if !build.status().context("cargo did not start")?.success() {
        bail!("Lunar cannot be built for the guest");
    }
    for (program, _) in PROGRAMS {
        let built = target.join("release").join(program);
        fs::copy(&built, out.join("bin").join(program))
            .with_context(|| format!("{}: cannot be copied", built.display()))?;
    }
    Ok(())
}
