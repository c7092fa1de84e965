//! What the guest starts from: the kernel, and a first root file system with the programs and modules
//! that the scenarios use. The scenarios themselves are not in it: the guest mounts their directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::architecture::Architecture;
use crate::cpio::Archive;
use crate::elf;
use crate::modules::Modules;
use crate::packages::{self, Packages};

/// What a guest is made of, its architecture and its kernel aside.
pub struct Contents {
    /// The packages, their libraries aside.
    packages: &'static [&'static str],
    /// Packages, by the beginnings of their names, that programs depend on for the sake of storage that no guest has;
    /// they are large.
    unwanted: &'static [&'static str],
    /// What the programs are started without: the libraries of `unwanted`.
    omitted: &'static [&'static str],
    /// The programs. A `*` at the end takes all that begin so.
    programs: &'static [&'static str],
    /// Further names of programs that act by their name.
    names: &'static [(&'static str, &'static str)],
    /// Libraries that are loaded by name at run time, so that no program tells of them.
    libraries: &'static [&'static str],
    /// What libibverbs loads for soft RoCE.
    soft_roce: bool,
    /// The modules, without those that they need.
    modules: &'static [&'static str],
}

/// The machine with soft RoCE that most scenarios run in.
pub const SERVER: Contents = Contents {
    packages: &[
        "busybox-static",
        "dmsetup",
        "e2fsprogs",
        "fio",
        "genisoimage",
        "ibverbs-providers",
        "ibverbs-utils",
        "iproute2",
        "libgcc-s1",
        "libiscsi-bin",
        "rdmacm-utils",
        "sg3-utils",
    ],
    unwanted: &["librados", "librbd", "libgfapi", "libnbd", "libpmem"],
    omitted: &["librados.", "librbd.", "libgfapi.", "libnbd.", "libpmem"],
    programs: &[
        "busybox",
        "dmsetup",
        "e2fsck",
        "fio",
        "genisoimage",
        "ibv_*",
        "iscsi-inq",
        "iscsi-test-cu",
        "mke2fs",
        "rdma",
        "rping",
        "sg_*",
        "ucmatose",
    ],
    names: &[("sbin/mkfs.ext4", "mke2fs"), ("sbin/fsck.ext4", "e2fsck"), ("bin/sh", "busybox")],
    libraries: &["libibverbs.so.1", "librdmacm.so.1", "libgcc_s.so.1", "libm.so.6"],
    soft_roce: true,
    modules: &[
        // The machine.
        "virtio_pci",
        "virtio_net",
        "virtio_blk",
        "9pnet_virtio",
        "9p",
        "configfs",
        "loop",
        "ext4",
        // What other modules ask the crypto layer for.
        "crc32_generic",
        "crc32c_generic",
        // RDMA.
        "rdma_rxe",
        "ib_uverbs",
        "ib_umad",
        // A second network for a second RDMA device.
        "dummy",
        "rdma_ucm",
        // SCSI, from both ends.
        "ib_srp",
        "sd_mod",
        "sg",
        "sr_mod",
        "isofs",
        "ib_srpt",
        "target_core_mod",
        "target_core_file",
        "target_core_iblock",
        "target_core_pscsi",
        "scsi_debug",
        "null_blk",
        "brd",
        // Several paths to a disk.
        "dm_multipath",
        "dm_round_robin",
        "dm_service_time",
        "dm_queue_length",
        "scsi_dh_alua",
        // I/O schedulers.
        "bfq",
        "kyber-iosched",
    ],
};

/// A partition whose disks are virtual SCSI's.
pub const PARTITION: Contents = Contents {
    packages: &["busybox-static", "sg3-utils"],
    unwanted: &[],
    omitted: &[],
    programs: &["busybox", "sg_*"],
    names: &[("bin/sh", "busybox")],
    libraries: &[],
    soft_roce: false,
    modules: &["ibmvscsi", "sd_mod", "sg"],
};

/// Where programs may lie, in the order in which they are looked for.
const PROGRAM_FOLDERS: &[&str] = &["usr/bin", "usr/sbin", "bin", "sbin"];

/// What QEMU starts.
pub struct Image {
    /// The kernel, as an ELF file where the package has it compressed.
    pub kernel: PathBuf,
    /// The first root file system.
    pub initramfs: PathBuf,
}

/// The unpacked packages of the guest.
pub fn unpacked(
    architecture: &Architecture,
    contents: &Contents,
    refresh: bool,
) -> Result<Packages> {
    packages::unpacked(architecture, contents.packages, contents.unwanted, refresh)
}

/// Makes the image in `folder`, with `own` files besides, by their paths in the guest. One of them is `init`, its first
/// program.
pub fn make(
    architecture: &Architecture,
    contents: &Contents,
    packages: &Packages,
    own: &BTreeMap<String, Vec<u8>>,
    folder: &Path,
) -> Result<Image> {
    let version = kernel_version(&packages.root)?;
    let kernel = kernel(packages, &version)?;
    let initramfs = folder.join(format!("initramfs-{}.cpio", architecture.debian));
    let mut archive = Archive::new(BufWriter::new(File::create(&initramfs)?));
    for empty in ["proc", "sys", "dev", "run", "tmp", "mnt", "guest", "out", "share", "var"] {
        archive.directory(empty)?;
    }
    let mut files = programs(architecture, contents, &packages.root)?;
    add_libraries(architecture, contents, &packages.root, &mut files)?;
    if contents.soft_roce {
        add_providers(architecture, &packages.root, &mut files)?;
    }
    for (path, content) in files.iter().chain(own) {
        archive.file(path, content)?;
    }
    for (name, program) in contents.names {
        let path = files.keys().find(|path| path.rsplit('/').next() == Some(program));
        let path = path.with_context(|| format!("no program {program} for {name}"))?;
        archive.link(name, &format!("/{path}"))?;
    }
    let modules = Modules::below(&packages.root.join("lib/modules").join(&version))?;
    for (path, content) in modules.closure(contents.modules, plain)? {
        let path = path.strip_prefix(&packages.root)?.to_string_lossy().into_owned();
        archive.file(path.trim_end_matches(".xz"), &content)?;
    }
    archive.finish()?;
    Ok(Image { kernel, initramfs })
}

fn kernel_version(root: &Path) -> Result<String> {
    let folder = root.join("lib/modules");
    let entry = fs::read_dir(&folder)
        .with_context(|| format!("{}: no kernel was unpacked", folder.display()))?
        .next()
        .context("no kernel was unpacked")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The kernel as QEMU starts it fastest: not compressed.
fn kernel(packages: &Packages, version: &str) -> Result<PathBuf> {
    let plain = packages.root.join(format!("boot/vmlinux-{version}"));
    if plain.is_file() {
        return Ok(plain);
    }
    let unpacked = packages.made.join(format!("vmlinux-{version}"));
    if unpacked.is_file() {
        return Ok(unpacked);
    }
    let compressed = packages.root.join(format!("boot/vmlinuz-{version}"));
    let content = fs::read(&compressed)
        .with_context(|| format!("{}: cannot be read", compressed.display()))?;
    // The loader that Linux prepends to it holds no such bytes.
    let magic = b"\xfd7zXZ\0";
    let Some(start) = content.windows(magic.len()).position(|bytes| bytes == magic) else {
        bail!("{}: no XZ stream in it, which is how Debian packs it", compressed.display());
    };
    let stream = packages.made.join(format!("vmlinux.{}.xz", std::process::id()));
    fs::write(&stream, &content[start..])?;
    let kernel = unxz(&stream);
    fs::remove_file(&stream)?;
    let kernel = kernel?;
    if !elf::is_elf(&kernel) {
        bail!("{}: what is packed in it is no ELF file", compressed.display());
    }
    // Renamed when complete: another process may be looking.
    fs::write(&stream, kernel)?;
    fs::rename(&stream, &unpacked)?;
    Ok(unpacked)
}

/// The content of a file that may be compressed.
fn plain(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return unxz(path);
    }
    fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))
}

/// The first XZ stream in a file, whatever follows it.
fn unxz(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .arg(path)
        .output()
        .context("xz did not start")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} cannot be unpacked: {}", path.display(), complaint.trim());
    }
    Ok(output.stdout)
}

/// The programs by their paths in the guest.
fn programs(
    architecture: &Architecture,
    contents: &Contents,
    root: &Path,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let is_omitted = |library: &str| contents.omitted.iter().any(|name| library.starts_with(name));
    let mut files = BTreeMap::new();
    for program in contents.programs {
        let mut found = false;
        for folder in PROGRAM_FOLDERS {
            let Ok(entries) = fs::read_dir(root.join(folder)) else {
                continue;
            };
            for entry in entries {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let is_meant = match program.strip_suffix('*') {
                    Some(beginning) => name.starts_with(beginning),
                    None => name == *program,
                };
                if is_meant {
                    let mut content = plain(&root.join(folder).join(&name))?;
                    if elf::is_elf(&content) {
                        elf::omit(&mut content, is_omitted).with_context(|| name.clone())?;
                    }
                    files.insert(format!("{folder}/{name}"), content);
                    found = true;
                }
            }
        }
        if !found {
            bail!("none of the guest's {} packages has the program {program}", architecture.debian);
        }
    }
    Ok(files)
}

/// Adds the libraries that `files` and those loaded by name need, and the dynamic linker under the name that
/// programs call it by.
fn add_libraries(
    architecture: &Architecture,
    contents: &Contents,
    root: &Path,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    let mut next: Vec<String> = contents.libraries.iter().map(|name| name.to_string()).collect();
    for content in files.values().filter(|content| elf::is_elf(content)) {
        next.extend(elf::needed(content)?);
    }
    let mut seen: BTreeSet<String> = BTreeSet::new();
    while let Some(name) = next.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let folder = ["lib", "usr/lib"]
            .map(|folder| format!("{folder}/{}", architecture.triplet))
            .into_iter()
            .find(|folder| root.join(folder).join(&name).exists())
            .with_context(|| format!("none of the guest's packages has the library {name}"))?;
        let path = format!("{folder}/{name}");
        let content = plain(&root.join(&path))?;
        next.extend(elf::needed(&content)?);
        files.insert(path, content);
    }
    // lib64/ld-… is a link by absolute path, of use only in the guest.
    for entry in fs::read_dir(root.join("lib64"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let at_home = root.join("lib").join(architecture.triplet).join(&name);
        files.insert(format!("lib64/{name}"), plain(&at_home)?);
    }
    Ok(())
}

/// Adds what libibverbs loads for soft RoCE, and the file that tells it so.
fn add_providers(
    architecture: &Architecture,
    root: &Path,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    let folder = format!("usr/lib/{}/libibverbs", architecture.triplet);
    for entry in fs::read_dir(root.join(&folder))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("librxe-") {
            let path = format!("{folder}/{name}");
            files.insert(path.clone(), plain(&root.join(path))?);
        }
    }
    let path = "etc/libibverbs.d/rxe.driver";
    files.insert(path.to_string(), plain(&root.join(path))?);
    Ok(())
}
