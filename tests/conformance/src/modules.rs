//! Kernel modules: which files a set of them needs, told by what each says of itself. Debian's package
//! has no modules.dep; the guest makes its own over the few modules that it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::elf;

/// The modules below a directory, by name.
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds the modules below `folder` (`lib/modules/VERSION`).
    pub fn below(folder: &Path) -> Result<Modules> {
        let mut files = BTreeMap::new();
        let mut next = vec![folder.to_path_buf()];
        while let Some(folder) = next.pop() {
            let entries = fs::read_dir(&folder)
                .with_context(|| format!("{}: no kernel modules there", folder.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() && !path.is_symlink() {
                    next.push(path);
                } else if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Modules { files })
    }

    /// The files of the named modules and of all that they need, by what `read` says of each.
    /// A name without a file is an error: what is built into the kernel needs no naming.
    pub fn closure(
        &self,
        names: &[&str],
        mut read: impl FnMut(&Path) -> Result<Vec<u8>>,
    ) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut seen: BTreeSet<String> = names.iter().map(|name| canonical(name)).collect();
        let mut next: Vec<String> = seen.iter().cloned().collect();
        let mut found = BTreeMap::new();
        while let Some(name) = next.pop() {
            let Some(path) = self.files.get(&name) else {
                bail!("this kernel has no module {name}");
            };
            let content = read(path)?;
            for needed in needs(&content).with_context(|| path.display().to_string())? {
                // A soft dependency may be built in; a hard one is a module.
                let is_there = self.files.contains_key(&needed.name);
                if (is_there || needed.hard) && seen.insert(needed.name.clone()) {
                    next.push(needed.name);
                }
            }
            found.insert(path.clone(), content);
        }
        Ok(found)
    }
}

struct Needed {
    name: String,
    hard: bool,
}

fn needs(module: &[u8]) -> Result<Vec<Needed>> {
    let list = |key: &str| -> Result<String> { Ok(elf::module_says(module, key)?.join(" ")) };
    let (depends, soft) = (list("depends")?, list("softdep")?);
    let hard = depends.split([',', ' ']).map(|name| (name, true));
    // `pre: crc32c platform:x post: y`
    let soft = soft.split_whitespace().filter(|word| !word.contains(':')).map(|name| (name, false));
    Ok(hard
        .chain(soft)
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, hard)| Needed { name: canonical(name), hard })
        .collect())
}

/// Modules are named with underscores, their files with either sign.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_string_lossy().into_owned();
    let name = file.strip_suffix(".xz").unwrap_or(&file).strip_suffix(".ko")?;
    Some(canonical(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF file with a .modinfo section: header, contents, names, three section headers.
    pub fn module(says: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.names\0";
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let contents = file.len();
        file.extend_from_slice(says.as_bytes());
        let names_at = file.len();
        file.extend_from_slice(names);
        let table = file.len();
        // Name, type, offset and size; all else is zero.
        for (name, kind, offset, size) in
            [(0u32, 0u32, 0, 0), (1, 1, contents, says.len()), (10, 3, names_at, names.len())]
        {
            let mut header = [0; 64];
            header[0..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&3u16.to_le_bytes());
        file[62..64].copy_from_slice(&2u16.to_le_bytes());
        file
    }

    #[test]
    fn a_module_comes_with_all_that_it_needs_but_not_with_what_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("kernel/drivers");
        fs::create_dir_all(&below).unwrap();
        let write = |file: &str, says: &str| fs::write(below.join(file), module(says)).unwrap();
        write("ib-core.ko", "license=GPL\0depends=\0");
        write("rdma_rxe.ko", "depends=ib_core,udp\0softdep=pre: crc32 builtin\0");
        write("udp.ko", "depends=ib-core\0");
        write("crc32.ko", "depends=\0");
        write("other.ko", "depends=\0");
        let modules = Modules::below(folder.path()).unwrap();
        let found = modules.closure(&["rdma-rxe"], |path| Ok(fs::read(path)?)).unwrap();
        let names: Vec<String> = found.keys().filter_map(|path| name_of(path)).collect();
        assert_eq!(names, ["crc32", "ib_core", "rdma_rxe", "udp"]);
        let missing = modules.closure(&["absent"], |path| Ok(fs::read(path)?));
        assert_eq!(missing.unwrap_err().to_string(), "this kernel has no module absent");
    }
}
