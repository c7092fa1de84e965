//! System packages that a stage needs: found, installed where we may, or named as missing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::child;

/// `None` when `program` can be run, after installing the Debian package that brings it where this
/// process is root and apt works. Otherwise the reason why it cannot, for the report.
pub fn missing(program: &str, package: &str) -> Option<String> {
    if on_path(program) {
        return None;
    }
    let by_hand = format!("{program} is not installed (apt-get install {package})");
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0);
    if !is_root || !on_path("apt-get") {
        return Some(by_hand);
    }
    println!("installing {package}, for {program}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["120", "apt-get", "-qq", "-o", "Acquire::Retries=1"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        child::output(&mut command).unwrap_or_else(|error| Err(error.to_string()))
    };
    let installed = apt(&["update"])
        .and_then(|_| apt(&["install", "--yes", "--no-install-recommends", package]));
    match installed {
        Ok(_) if on_path(program) => None,
        Ok(_) => Some(format!("{package} was installed but brought no {program}")),
        Err(error) => Some(format!("{by_hand}; tried: {error}")),
    }
}

/// Whether a program of this name can be found.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}
