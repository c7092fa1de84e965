//! Writes the archive format that Linux unpacks as its first root file system: cpio's "newc", as
//! Documentation/driver-api/early-userspace/buffer-format.rst describes it. Nothing reads it here.

use std::collections::BTreeSet;
use std::io::{Result, Write};

const MAGIC: &str = "070701";
/// A file's type in its mode, as stat(2) has it.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMBOLIC_LINK: u32 = 0o120_000;
/// Headers and contents start at multiples of this.
const ALIGNMENT: usize = 4;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written. Paths are relative to the root; the directories above an entry
/// are made with it.
pub struct Archive<W: Write> {
    to: W,
    inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An archive without entries.
    pub fn new(to: W) -> Archive<W> {
        Archive { to, inode: 0, directories: BTreeSet::new() }
    }

    /// An empty directory.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.parents(path)?;
        if self.directories.insert(path.to_string()) {
            self.entry(path, DIRECTORY | 0o755, &[])?;
        }
        Ok(())
    }

    /// A file that everybody may read and execute: nothing in the guest runs as anyone but root.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, REGULAR | 0o755, content)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, SYMBOLIC_LINK | 0o777, to.as_bytes())
    }

    /// Ends the archive. One that was not ended is refused by the kernel.
    pub fn finish(mut self) -> Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(std::io::Error::other)?;
        let name_size = name.len() as u32 + 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check.
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from(MAGIC);
        fields.iter().for_each(|field| header.push_str(&format!("{field:08x}")));
        header.push_str(name);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.to.write_all(&[0; ALIGNMENT][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of each entry, read by the format's description.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode as u32, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn an_archive_holds_its_entries_below_their_directories_and_a_trailer() {
        let mut archive = Archive::new(Vec::new());
        archive.file("usr/bin/a", b"12345").unwrap();
        archive.file("usr/bin/b", b"").unwrap();
        archive.link("bin", "usr/bin").unwrap();
        let entries = read(&archive.finish().unwrap());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/a", "usr/bin/b", "bin", "TRAILER!!!"]);
        assert_eq!(entries[0].1, 0o040_755);
        assert_eq!((entries[2].1, &entries[2].2[..]), (0o100_755, &b"12345"[..]));
        assert_eq!((entries[4].1, &entries[4].2[..]), (0o120_777, &b"usr/bin"[..]));
    }
}
