//! Licences and origins of everything that is built, checked from `cargo metadata` alone.
//!
//! deny.toml holds the list of licences for both this check, which needs nothing installed, and
//! cargo-deny, which sees more (yanked and vulnerable versions) and is run besides where it is there.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace::{self, Workspace};

/// The only origin besides this repository.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks the workspace and the fuzz targets' own one.
pub fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let path = workspace.root.join("deny.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let allowed = allowed_licences(&text);
    let mut findings = Vec::new();
    if allowed.is_empty() {
        findings.push("deny.toml: no `allow = [...]` in its [licenses] section".into());
    }
    for folder in [workspace.root.clone(), workspace.root.join("tests/fuzz")] {
        findings.extend(check_folder(&folder, &allowed)?);
    }
    Ok(findings)
}

fn check_folder(folder: &Path, allowed: &[String]) -> Result<Vec<String>> {
    // Only what is built here: crates for other systems need not even be downloaded.
    let host = workspace::host_triple()?;
    let metadata = workspace::metadata(folder, &["--filter-platform", &host])?;
    let mut findings = Vec::new();
    for package in workspace::array(&metadata["packages"])? {
        findings.extend(check_package(package, allowed)?);
    }
    Ok(findings)
}

fn check_package(package: &Value, allowed: &[String]) -> Result<Vec<String>> {
    let name =
        format!("{} {}", workspace::text(&package["name"])?, workspace::text(&package["version"])?);
    let mut findings = Vec::new();
    match package["license"].as_str() {
        None => findings.push(format!("{name}: names no licence")),
        Some(expression) if !permits(expression, allowed) => {
            findings
                .push(format!("{name}: its licence `{expression}` is not allowed by deny.toml"));
        }
        Some(_) => {}
    }
    match package["source"].as_str() {
        Some(source) if source != REGISTRY => {
            findings.push(format!("{name}: comes from {source}, not from the registry"));
        }
        Some(_) => {}
        None => {
            for dependency in workspace::array(&package["dependencies"])? {
                if dependency["path"].is_null() && dependency["req"] == "*" {
                    findings.push(format!("{name}: any version of {} will do", dependency["name"]));
                }
            }
        }
    }
    Ok(findings)
}

/// The strings of `allow = [...]` in the section `[licenses]`.
fn allowed_licences(deny: &str) -> Vec<String> {
    let without_comments: String =
        deny.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
    let list = without_comments
        .split_once("[licenses]")
        .and_then(|(_, section)| section.split_once("allow = ["))
        .and_then(|(_, list)| list.split_once(']'));
    let Some((list, _)) = list else {
        return Vec::new();
    };
    list.split('"').skip(1).step_by(2).map(str::to_string).collect()
}

/// Whether an SPDX expression can be met with the allowed licences. `/` is how it was once written
/// for OR; `WITH` adds a permission, so the licence before it decides.
fn permits(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &[String]) -> bool {
    let mut permitted = all_of(words, allowed);
    while let Some(rest) = words.strip_prefix(&["OR"]) {
        *words = rest;
        permitted |= all_of(words, allowed);
    }
    permitted
}

fn all_of(words: &mut &[&str], allowed: &[String]) -> bool {
    let mut permitted = one(words, allowed);
    while let Some(rest) = words.strip_prefix(&["AND"]) {
        *words = rest;
        permitted &= one(words, allowed);
    }
    permitted
}

fn one(words: &mut &[&str], allowed: &[String]) -> bool {
    let Some((first, rest)) = words.split_first() else {
        return false;
    };
    *words = rest;
    if *first == "(" {
        let permitted = any_of(words, allowed);
        match words.strip_prefix(&[")"]) {
            Some(rest) => *words = rest,
            None => return false,
        }
        return permitted;
    }
    if let [with, _exception, rest @ ..] = *words
        && *with == "WITH"
    {
        *words = rest;
    }
    allowed.iter().any(|licence| licence == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allowed() -> Vec<String> {
        ["MIT", "Apache-2.0", "Unicode-3.0"].map(String::from).to_vec()
    }

    #[test]
    fn licence_expressions_are_weighed() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
            "LGPL-2.1-or-later OR (MIT AND Apache-2.0)",
        ] {
            assert!(permits(good, &allowed()), "{good}");
        }
        for bad in ["GPL-2.0", "MIT AND GPL-2.0", "(MIT OR Apache-2.0) AND NCSA", "", "MIT MIT"] {
            assert!(!permits(bad, &allowed()), "{bad}");
        }
    }

    #[test]
    fn the_allow_list_is_read_from_the_licence_section() {
        let deny =
            "[bans]\nallow = [\"x\"]\n[licenses]\nallow = [\n  \"MIT\", # why\n  \"Zlib\",\n]\n";
        assert_eq!(allowed_licences(deny), ["MIT", "Zlib"]);
    }

    #[test]
    fn a_crate_with_a_foreign_licence_or_origin_is_found() {
        let package = |licence: &str, source: &str| json!({"name": "a", "version": "1.0.0", "license": licence, "source": source});
        let found = |package: Value| check_package(&package, &allowed()).unwrap();
        assert!(found(package("MIT", REGISTRY)).is_empty());
        assert_eq!(
            found(package("AGPL-3.0", REGISTRY)),
            ["a 1.0.0: its licence `AGPL-3.0` is not allowed by deny.toml"]
        );
        assert_eq!(found(package("MIT", "git+https://example.org/a")).len(), 1);
    }

    #[test]
    fn a_dependency_on_any_version_is_found() {
        let ours = json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": null,
            "dependencies": [{"name": "b", "path": null, "req": "*"}]});
        assert_eq!(check_package(&ours, &allowed()).unwrap().len(), 1);
    }
}
