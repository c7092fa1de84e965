//! What the guest's image has to know of ELF files: which libraries a program needs, how to live
//! without some of them, and what a kernel module says about itself. Files are bytes here.

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::{self, FileHeader64, Sym64, Vernaux, Verneed};
use object::pod;
use object::read::elf::{Dyn, FileHeader, SectionHeader, SectionTable, Sym};

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// Whether this is an ELF file at all; scripts are not.
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

/// The names of the libraries that the dynamic linker loads with this file (DT_NEEDED).
pub fn needed(file: &[u8]) -> Result<Vec<String>> {
    let sections = sections(file)?;
    let Some((entries, link)) = sections.dynamic(ENDIAN, file)? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(ENDIAN, file, link)?;
    entries
        .iter()
        .filter(|entry| entry.tag(ENDIAN) == elf::DT_NEEDED)
        .map(|entry| Ok(text(entry.string(ENDIAN, strings)?)))
        .collect()
}

/// Changes `file` so that it starts without the libraries for which `omitted` holds: whatever it
/// imports may then be missing and is null. It must not use what they would have brought.
///
/// The entry of an omitted library is made to name the C library a second time, so are the versions
/// wanted of it, and every imported symbol becomes weak.
pub fn omit(file: &mut [u8], omitted: impl Fn(&str) -> bool) -> Result<()> {
    let mut changes: Vec<(usize, Vec<u8>)> = Vec::new();
    let sections = sections(file)?;
    let mut c_library = None;
    for section in sections.iter() {
        let start = section.sh_offset(ENDIAN) as usize;
        if let Some((entries, link)) = section.dynamic(ENDIAN, &*file)? {
            let strings = sections.strings(ENDIAN, &*file, link)?;
            for (index, entry) in entries.iter().enumerate() {
                if entry.tag(ENDIAN) != elf::DT_NEEDED {
                    continue;
                }
                let name = text(entry.string(ENDIAN, strings)?);
                if name.starts_with("libc.so.") {
                    c_library = Some(entry.val(ENDIAN));
                } else if omitted(&name) {
                    // The value follows the tag; it is filled in below.
                    let value = start + index * size_of_val(entry) + 8;
                    changes.push((value, vec![0; 8]));
                }
            }
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    let c_library = c_library.context("it needs no C library")?;
    changes.iter_mut().for_each(|(_, value)| value.copy_from_slice(&c_library.to_le_bytes()));
    let versions = wanted_versions(file, &sections)?;
    let of_c_library = versions.iter().find(|version| version.library.starts_with("libc.so."));
    for version in versions.iter().filter(|version| omitted(&version.library)) {
        let known = of_c_library.context("it wants no version of the C library")?;
        // vn_file, after two halfwords; then vna_hash at the start, vna_name after 8 bytes.
        changes.push((version.library_at + 4, (c_library as u32).to_le_bytes().to_vec()));
        changes.push((version.at, known.hash.to_le_bytes().to_vec()));
        changes.push((version.at + 8, known.name.to_le_bytes().to_vec()));
    }
    for section in sections.iter() {
        let start = section.sh_offset(ENDIAN) as usize;
        if section.sh_type(ENDIAN) == elf::SHT_DYNSYM {
            let symbols: &[Sym64<LittleEndian>] = section.data_as_array(ENDIAN, &*file)?;
            for (index, symbol) in symbols.iter().enumerate() {
                if symbol.is_undefined(ENDIAN) && symbol.st_bind() == elf::STB_GLOBAL {
                    let mut weak = *symbol;
                    weak.set_st_info(elf::STB_WEAK, symbol.st_type());
                    // st_info, after the name.
                    changes.push((start + index * size_of_val(symbol) + 4, vec![weak.st_info.0]));
                }
            }
        }
    }
    for (offset, bytes) in changes {
        file[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(())
}

/// A version of a library's symbols that a file wants (an entry of .gnu.version_r).
struct WantedVersion {
    library: String,
    /// Where the library's entry lies in the file, and the version's.
    library_at: usize,
    at: usize,
    hash: u32,
    /// The name's offset among the strings.
    name: u32,
}

fn wanted_versions(file: &[u8], sections: &SectionTable<'_, Header>) -> Result<Vec<WantedVersion>> {
    let mut found = Vec::new();
    for section in sections.iter() {
        let Some((_, link)) = section.gnu_verneed(ENDIAN, file)? else {
            continue;
        };
        let strings = sections.strings(ENDIAN, file, link)?;
        let mut library_at = section.sh_offset(ENDIAN) as usize;
        loop {
            let entry: &Verneed<LittleEndian> = at(file, library_at)?;
            let library = text(strings.get(entry.vn_file.get(ENDIAN)).unwrap_or_default());
            let mut version_at = library_at + entry.vn_aux.get(ENDIAN) as usize;
            for _ in 0..entry.vn_cnt.get(ENDIAN) {
                let version: &Vernaux<LittleEndian> = at(file, version_at)?;
                let (hash, name) = (version.vna_hash.get(ENDIAN), version.vna_name.get(ENDIAN));
                let library = library.clone();
                found.push(WantedVersion { library, library_at, at: version_at, hash, name });
                version_at += version.vna_next.get(ENDIAN) as usize;
            }
            match entry.vn_next.get(ENDIAN) {
                0 => break,
                next => library_at += next as usize,
            }
        }
    }
    Ok(found)
}

/// What a kernel module says under `key` in its .modinfo section, once for each time it says it.
pub fn module_says(file: &[u8], key: &str) -> Result<Vec<String>> {
    let sections = sections(file)?;
    let Some((_, section)) = sections.section_by_name(ENDIAN, b".modinfo") else {
        bail!("no kernel module: it has no section .modinfo");
    };
    let said = text(section.data(ENDIAN, file)?);
    let values = said.split('\0').filter_map(|line| line.split_once('='));
    Ok(values.filter(|(name, _)| *name == key).map(|(_, value)| value.to_string()).collect())
}

/// Where the symbol `name` lies in memory, and what the file has there, up to the end of its section.
pub fn symbol<'a>(file: &'a [u8], name: &str) -> Result<(u64, &'a [u8])> {
    let sections = sections(file)?;
    let symbols = sections.symbols(ENDIAN, file, elf::SHT_SYMTAB)?;
    let found = symbols
        .iter()
        .find(|symbol| {
            symbols.symbol_name(ENDIAN, symbol).is_ok_and(|found| found == name.as_bytes())
        })
        .with_context(|| format!("it has no symbol {name}"))?;
    let address = found.st_value(ENDIAN);
    let content = sections
        .iter()
        .filter(|section| section.sh_type(ENDIAN) == elf::SHT_PROGBITS)
        .filter_map(|section| {
            let offset = usize::try_from(address.checked_sub(section.sh_addr(ENDIAN))?).ok()?;
            section.data(ENDIAN, file).ok()?.get(offset..).filter(|content| !content.is_empty())
        })
        .next();
    Ok((address, content.with_context(|| format!("the symbol {name} is nowhere in it"))?))
}

fn sections(file: &[u8]) -> Result<SectionTable<'_, Header>> {
    let header = Header::parse(file).context("no 64-bit ELF file")?;
    Ok(header.sections(ENDIAN, file)?)
}

fn at<T: pod::Pod>(file: &[u8], offset: usize) -> Result<&T> {
    let from = file.get(offset..).context("an offset past the end")?;
    let Ok((entry, _)) = pod::from_bytes(from) else {
        bail!("an entry past the end");
    };
    Ok(entry)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any dynamically linked program will do; this test is one.
    fn a_program() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn a_program_needs_its_libraries() {
        assert!(needed(&a_program()).unwrap().iter().any(|name| name.starts_with("libc.so.")));
        assert!(needed(b"\x7fELF, it says").is_err());
    }

    /// The proof that it still starts is that it is started.
    #[test]
    fn a_program_starts_without_an_omitted_library() {
        let mut program = a_program();
        assert!(needed(&program).unwrap().iter().any(|name| name.starts_with("libgcc_s")));
        omit(&mut program, |name| name.starts_with("libgcc_s")).unwrap();
        assert!(!needed(&program).unwrap().iter().any(|name| name.starts_with("libgcc_s")));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, &program).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let listed = std::process::Command::new(&path).arg("--list").output().unwrap();
        assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
    }

    #[test]
    fn what_is_omitted_from_a_program_that_does_not_need_it_changes_nothing() {
        let mut program = a_program();
        let before = program.clone();
        omit(&mut program, |name| name == "libabsent.so.1").unwrap();
        assert!(program == before);
    }
}
