//! What cargo says about the workspace: its members, their declared dependencies, their binaries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::child;

/// The workspace as `cargo metadata --no-deps` describes it.
pub struct Workspace {
    /// Where the workspace's `Cargo.toml` lies.
    pub root: PathBuf,
    /// Cargo's target directory; stages that build with other flags use folders inside it.
    pub target: PathBuf,
    /// Its members.
    pub members: Vec<Member>,
}

/// One member crate.
pub struct Member {
    /// The package's name, such as `lunar-scsi`.
    pub name: String,
    /// Its declared dependencies, optional and target-specific ones included.
    pub dependencies: Vec<Dependency>,
    /// The names of its binaries.
    pub binaries: Vec<String>,
}

/// One line of a `[dependencies]`, `[dev-dependencies]` or `[build-dependencies]` table.
#[derive(Clone)]
pub struct Dependency {
    /// The package depended on.
    pub name: String,
    /// Which table it stands in.
    pub kind: Kind,
    /// Whether it is a crate of this workspace (it is named by path).
    pub ours: bool,
}

/// The table a dependency stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `[dependencies]`: it ships.
    Normal,
    /// `[dev-dependencies]`: tests, benches and examples only.
    Dev,
    /// `[build-dependencies]`: runs while building.
    Build,
}

impl Workspace {
    /// Asks cargo about the workspace this program was built in.
    pub fn find() -> Result<Self> {
        // Cargo sets the variable while it runs us; the folder is tests/xtask.
        let here = std::env::var_os("CARGO_MANIFEST_DIR")
            .context("CARGO_MANIFEST_DIR is not set: run this as `cargo xtask`")?;
        Self::at(Path::new(&here).ancestors().nth(2).context("tests/xtask has no grandparent")?)
    }

    /// Asks cargo about the workspace whose `Cargo.toml` lies in `root`.
    pub fn at(root: &Path) -> Result<Self> {
        let metadata = metadata(root, &["--no-deps"])?;
        let target = text(&metadata["target_directory"])?.into();
        let members = array(&metadata["packages"])?.iter().map(member).collect::<Result<_>>()?;
        Ok(Self { root: root.to_path_buf(), target, members })
    }

    /// `cargo run` of the crate that boots guests, ready for its own arguments.
    pub fn conformance(&self) -> Command {
        let mut command = Command::new(cargo());
        command.args(["run", "--quiet", "--locked", "--package", "lunar-conformance"]);
        command.arg("--manifest-path").arg(self.root.join("Cargo.toml")).arg("--");
        command
    }

    /// Whether the member `package` has a binary called `binary`.
    pub fn has_binary(&self, package: &str, binary: &str) -> bool {
        self.members
            .iter()
            .any(|member| member.name == package && member.binaries.iter().any(|b| b == binary))
    }
}

/// Runs `cargo metadata` in `folder`.
pub fn metadata(folder: &Path, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version=1", "--locked"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("cargo metadata did not start")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata did not print JSON")
}

/// The cargo that started us.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

/// What the compiler calls this machine, such as `x86_64-unknown-linux-gnu`.
pub fn host_triple() -> Result<String> {
    let printed = child::output(Command::new("rustc").arg("-vV"))?;
    let printed = printed.map_err(|error| anyhow!("rustc -vV: {error}"))?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_string())
}

/// A JSON string, or an error that shows what stood there instead.
pub fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("cargo metadata: a string was expected, not {value}"))
}

/// A JSON array, or an error that shows what stood there instead.
pub fn array(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("cargo metadata: a list was expected, not {value}"))
}

fn member(package: &Value) -> Result<Member> {
    let dependencies =
        array(&package["dependencies"])?.iter().map(dependency).collect::<Result<_>>()?;
    let mut binaries = Vec::new();
    for target in array(&package["targets"])? {
        if array(&target["kind"])?.iter().any(|kind| kind == "bin") {
            binaries.push(text(&target["name"])?.to_string());
        }
    }
    Ok(Member { name: text(&package["name"])?.to_string(), dependencies, binaries })
}

fn dependency(declared: &Value) -> Result<Dependency> {
    let kind = match declared["kind"].as_str() {
        None => Kind::Normal,
        Some("dev") => Kind::Dev,
        Some("build") => Kind::Build,
        Some(other) => bail!("cargo metadata: dependency kind `{other}` is not known"),
    };
    let name = text(&declared["name"])?.to_string();
    Ok(Dependency { name, kind, ours: !declared["path"].is_null() })
}
