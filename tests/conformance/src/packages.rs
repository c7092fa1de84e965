//! Debian packages: downloaded and unpacked into a directory of ours, not installed, so that the
//! machine stays as it is and a guest may be of another processor. Only QEMU is installed.
//!
//! apt gets a state directory of its own. It uses the machine's sources and keys and changes nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::architecture::Architecture;

/// The variable that names the cache, in place of `lunar/vm` in the user's cache directory.
pub const CACHE_VARIABLE: &str = "LUNAR_VM_CACHE";

/// Unpacked packages of one architecture.
pub struct Packages {
    /// Where they are unpacked, one over the other: a root file system that nobody starts.
    pub root: PathBuf,
    /// Where what is made from them may be kept; emptied when they change.
    pub made: PathBuf,
    /// The package files, by which the versions can be told.
    pub files: Vec<String>,
    /// Held as long as they are used, so that nobody unpacks others meanwhile.
    _lock: File,
}

/// What apt is told beyond its configuration: where to keep what it knows, and for whom.
struct Apt<'a> {
    folder: PathBuf,
    architecture: &'a Architecture,
}

/// The packages `wanted` with the libraries that they depend on, except the `unwanted` ones (by the
/// beginnings of their names). Taken from the cache when it holds the same choice, whatever newer
/// versions there may be, unless `refresh`.
pub fn unpacked(
    architecture: &Architecture,
    wanted: &[&str],
    unwanted: &[&str],
    refresh: bool,
) -> Result<Packages> {
    let cache = cache()?.join(architecture.debian);
    fs::create_dir_all(&cache).with_context(|| format!("{} cannot be made", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    let (root, made, stamp) = (cache.join("root"), cache.join("made"), cache.join("stamp"));
    let choice = format!("{} without {}", wanted.join(" "), unwanted.join(" "));
    lock.lock_shared()?;
    let found = |lock: &File| -> Option<Vec<String>> {
        let _ = lock;
        let stamp = fs::read_to_string(&stamp).ok()?;
        let (of, files) = stamp.split_once('\n')?;
        (of == choice).then(|| files.lines().map(str::to_string).collect())
    };
    if let (Some(files), false) = (found(&lock), refresh) {
        return Ok(Packages { root, made, files, _lock: lock });
    }
    lock.lock()?;
    // Another process may have been faster.
    if let (Some(files), false) = (found(&lock), refresh) {
        return Ok(Packages { root, made, files, _lock: lock });
    }
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if !on_path(program) {
            bail!("the guest is made of Debian packages, and {program} is not installed");
        }
    }
    let apt = Apt { folder: cache.join("apt"), architecture };
    apt.prepare(refresh)?;
    let names = apt.with_libraries(wanted, unwanted)?;
    println!("downloading {} packages of Debian for the guest", names.len());
    let folder = cache.join("packages");
    fs::create_dir_all(&folder)?;
    if apt.download(&names, &folder).is_err() {
        // A mirror forgets old versions: what apt knows of it is old.
        apt.update()?;
        apt.download(&names, &folder)?;
    }
    for gone in [&root, &made] {
        if gone.exists() {
            fs::remove_dir_all(gone)?;
        }
        fs::create_dir_all(gone)?;
    }
    let _ = fs::remove_file(&stamp);
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&root))?;
        files.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    files.sort();
    fs::write(&stamp, format!("{choice}\n{}\n", files.join("\n")))?;
    // What is unpacked is not needed packed.
    fs::remove_dir_all(&folder)?;
    lock.lock_shared()?;
    Ok(Packages { root, made, files, _lock: lock })
}

/// Whether `program` can be run by its name.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Installs `package` where this process may and `program` is missing; says why when it cannot.
pub fn installed(program: &str, package: &str) -> Result<()> {
    if on_path(program) {
        return Ok(());
    }
    let by_hand = format!("{program} is not installed (apt-get install {package})");
    let is_root = fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0);
    if !is_root || !on_path("apt-get") {
        bail!(by_hand);
    }
    println!("installing {package}, for {program}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]);
        command.args(arguments);
        run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let install = ["install", "--yes", "--no-install-recommends", package];
    if apt(&install).is_err() {
        apt(&["update"]).and_then(|_| apt(&install)).context(by_hand.clone())?;
    }
    if on_path(program) { Ok(()) } else { Err(anyhow!(by_hand)) }
}

/// Runs a command; its standard output, or what it complained about.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} did not start"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_string();
        bail!("{program}: {}: {complaint}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where downloads are kept, outside the source tree.
fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(CACHE_VARIABLE) {
        return Ok(PathBuf::from(folder));
    }
    let of_user = match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let home = std::env::var_os("HOME");
            PathBuf::from(home.context(format!("neither HOME nor {CACHE_VARIABLE} is set"))?)
                .join(".cache")
        }
    };
    Ok(of_user.join("lunar/vm"))
}

impl Apt<'_> {
    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("APT::Architecture={}", self.architecture.debian),
            format!("APT::Architectures={}", self.architecture.debian),
            // The cache may lie where the user that apt would otherwise download as cannot write.
            "APT::Sandbox::User=root".to_string(),
            // A source that does not answer is an error, not a reason to go on without it.
            "APT::Update::Error-Mode=any".to_string(),
            "Acquire::Retries=2".to_string(),
            "Acquire::http::Timeout=30".to_string(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn prepare(&self, refresh: bool) -> Result<()> {
        let lists = self.folder.join("state/lists");
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(self.folder.join("cache/archives/partial"))?;
        fs::write(self.folder.join("status"), "")?;
        let is_empty = fs::read_dir(&lists)?.flatten().all(|entry| entry.path().is_dir());
        if !refresh && !is_empty && self.kernel().is_ok() {
            return Ok(());
        }
        match self.update() {
            // A mirror may lack one list for a rare processor. What the others have will do when it has a kernel.
            Err(error) if self.kernel().is_ok() => {
                println!("not all of Debian's package lists: {error:#}");
                Ok(())
            }
            updated => updated,
        }
    }

    fn update(&self) -> Result<()> {
        let mut update = self.command("apt-get");
        run(update.args(["-qq", "update"])).context("Debian's package lists cannot be had")?;
        Ok(())
    }

    /// The package that holds the newest kernel.
    fn kernel(&self) -> Result<String> {
        let name = self.architecture.kernel;
        let mut depends = self.command("apt-cache");
        let printed = run(depends.args(["depends", name]))?;
        depended(&printed)
            .into_iter()
            .map(|(_, package)| package)
            .find(|package| package.starts_with("linux-image-"))
            .with_context(|| format!("{name} names no kernel"))
    }

    /// The packages themselves, the kernel, and the libraries that any of them depends on.
    fn with_libraries(&self, wanted: &[&str], unwanted: &[&str]) -> Result<BTreeSet<String>> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-enhances"]);
        depends.args(["--no-conflicts", "--no-breaks", "--no-replaces"]).args(wanted);
        let printed = run(&mut depends)?;
        let mut names: BTreeSet<String> = closure(&depended(&printed), wanted, unwanted);
        names.insert(self.kernel()?);
        Ok(names)
    }

    fn download(&self, names: &BTreeSet<String>, to: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        download.args(["-qq", "download"]).args(names).current_dir(to);
        run(&mut download).context("the guest's packages cannot be downloaded")?;
        Ok(())
    }
}

/// The edges that `apt-cache depends` prints: a package at the start of a line, below it lines like
/// `  Depends: libc6` and ` |Depends: this-or-the-next`. Virtual packages stand in angle brackets.
fn depended(printed: &str) -> Vec<(String, String)> {
    let mut from = "";
    let mut edges = Vec::new();
    for line in printed.lines() {
        if !line.starts_with([' ', '|']) {
            from = line.trim();
        } else if let Some((kind, to)) = line.trim().trim_start_matches('|').split_once(": ")
            && matches!(kind, "Depends" | "PreDepends")
            && !to.starts_with('<')
        {
            edges.push((from.to_string(), to.to_string()));
        }
    }
    edges
}

/// Everything wanted, and every library that can be reached from it through libraries.
fn closure(edges: &[(String, String)], wanted: &[&str], unwanted: &[&str]) -> BTreeSet<String> {
    let is_library = |name: &str| name.starts_with("lib") || name.starts_with("zlib");
    let is_unwanted = |name: &str| unwanted.iter().any(|beginning| name.starts_with(beginning));
    let mut names: BTreeSet<String> = wanted.iter().map(|name| name.to_string()).collect();
    let mut next: Vec<String> = names.iter().cloned().collect();
    while let Some(name) = next.pop() {
        for (_, to) in edges.iter().filter(|(from, _)| *from == name) {
            if is_library(to) && !is_unwanted(to) && names.insert(to.clone()) {
                next.push(to.clone());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "fio\n  Depends: libaio1\n |Depends: libceph\n  Depends: <awk>\n    mawk\n  \
                           Depends: python3\nlibaio1\n  PreDepends: libc6\npython3\n  Depends: libpython\n";

    #[test]
    fn libraries_of_libraries_are_taken_and_nothing_else() {
        let edges = depended(PRINTED);
        assert_eq!(edges.len(), 5);
        let names = closure(&edges, &["fio"], &["libceph"]);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["fio", "libaio1", "libc6"]);
    }
}
