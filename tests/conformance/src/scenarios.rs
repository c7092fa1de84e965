//! The scenarios: shell scripts in `guest/scenarios`, and what each says of itself in its first lines.
//!
//!     #: mkfs, mount, copy, verify, unmount and fsck       what it proves
//!     #: targets lio lunar                                 against which targets; none without it
//!     #: machines 2                                        how many; one without it
//!     #: partition                                         in a partition with a VSCSI adapter instead
//!     #: limit 300                                         seconds, far above what it takes

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A scenario against one target, or without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// `boot`, or with its target before it: `lio:files`.
    pub name: String,
    /// What it proves.
    pub proves: String,
    /// The target that it runs against.
    pub target: Option<String>,
    /// Where it runs.
    pub place: Place,
    /// How long it may take before it counts as hung.
    pub limit: Duration,
}

/// Where a scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a machine of its own.
    Alone,
    /// In the first of two machines.
    FirstOfTwo,
    /// In a partition with a VSCSI adapter.
    Partition,
}

/// What a scenario may take that says nothing of it.
const LIMIT_DEFAULT: Duration = Duration::from_secs(120);

/// All scenarios below `guest`: those without a target first, then one target after the other, then those that need
/// two machines, and those of a partition last.
pub fn all(guest: &Path) -> Result<Vec<Scenario>> {
    let folder = guest.join("scenarios");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sh") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let script = fs::read_to_string(&path)?;
            found.extend(parse(&name, &script).with_context(|| path.display().to_string())?);
        }
    }
    let place =
        |scenario: &Scenario| (scenario.place, scenario.target.clone(), scenario.name.clone());
    found.sort_by_key(place);
    Ok(found)
}

/// Those that are named: by their names, by a target (`lunar`), or by what is the same against every target
/// (`files`). All of them without a name.
pub fn named(all: &[Scenario], names: &[String]) -> Result<Vec<Scenario>> {
    for name in names {
        if !all.iter().any(|scenario| answers_to(scenario, name)) {
            bail!("no scenario `{name}`: `cargo xtask vm --list` lists them");
        }
    }
    let is_meant =
        |scenario: &&Scenario| names.is_empty() || names.iter().any(|n| answers_to(scenario, n));
    Ok(all.iter().filter(is_meant).cloned().collect())
}

fn answers_to(scenario: &Scenario, name: &str) -> bool {
    scenario.name == name
        || scenario.target.as_deref() == Some(name)
        || scenario.name.split_once(':').is_some_and(|(_, of_any)| of_any == name)
}

fn parse(name: &str, script: &str) -> Result<Vec<Scenario>> {
    let mut lines = script.lines().filter_map(|line| line.strip_prefix("#: "));
    let proves = lines.next().context("it does not say what it proves, in a first line `#: …`")?;
    let mut targets = Vec::new();
    let mut place = Place::Alone;
    let mut limit = LIMIT_DEFAULT;
    for line in lines {
        match line.split_once(' ') {
            Some(("targets", names)) => targets.extend(names.split(' ').map(str::to_string)),
            Some(("limit", seconds)) => {
                let seconds = seconds.trim().parse();
                limit = Duration::from_secs(seconds.with_context(|| format!("`#: {line}`"))?);
            }
            Some(("machines", "2")) => place = Place::FirstOfTwo,
            None if line == "partition" => place = Place::Partition,
            _ => bail!("`#: {line}` is none of `targets`, `machines 2`, `partition` and `limit`"),
        }
    }
    let scenario = |target: Option<String>| Scenario {
        name: target.as_ref().map_or(name.to_string(), |target| format!("{target}:{name}")),
        proves: proves.to_string(),
        target,
        place,
        limit,
    };
    Ok(if targets.is_empty() {
        vec![scenario(None)]
    } else {
        targets.into_iter().map(|target| scenario(Some(target))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_says_what_it_proves_and_runs_once_for_each_target() {
        let script = "#: files survive\n#: targets lio lunar\n#: limit 300\ncheck a b\n";
        let found = parse("files", script).unwrap();
        let names: Vec<&str> = found.iter().map(|scenario| scenario.name.as_str()).collect();
        assert_eq!(names, ["lio:files", "lunar:files"]);
        assert_eq!(found[0].limit, Duration::from_secs(300));
        assert_eq!(found[1].proves, "files survive");
        assert!(parse("silent", "check a b\n").is_err());
        let place = |script| parse("apart", script).unwrap()[0].place;
        assert_eq!(found[0].place, Place::Alone);
        assert_eq!(place("#: x\n#: machines 2\n"), Place::FirstOfTwo);
        assert_eq!(place("#: x\n#: partition\n"), Place::Partition);
        assert!(parse("apart", "#: x\n#: machines 3\n").is_err());
        assert!(parse("odd", "#: x\n#: colour blue\n").is_err());
    }

    #[test]
    fn a_name_means_a_scenario_a_target_or_one_scenario_against_all() {
        let all = [
            parse("boot", "#: boots").unwrap(),
            parse("files", "#: f\n#: targets lio lunar").unwrap(),
            parse("reset", "#: r\n#: targets lio lunar").unwrap(),
        ]
        .concat();
        let names = |wanted: &[&str]| -> Vec<String> {
            let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
            named(&all, &wanted).unwrap().into_iter().map(|scenario| scenario.name).collect()
        };
        assert_eq!(names(&[]).len(), 5);
        assert_eq!(names(&["lunar"]), ["lunar:files", "lunar:reset"]);
        assert_eq!(names(&["boot"]), ["boot"]);
        assert_eq!(names(&["lio"]), ["lio:files", "lio:reset"]);
        assert_eq!(names(&["files"]), ["lio:files", "lunar:files"]);
        assert_eq!(names(&["lunar:reset"]), ["lunar:reset"]);
        assert!(named(&all, &["absent".to_string()]).is_err());
    }

    /// The scripts that are there.
    #[test]
    fn every_scenario_of_this_crate_can_be_read() {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        assert!(all(&guest).unwrap().iter().any(|scenario| scenario.name == "boot"));
    }
}
