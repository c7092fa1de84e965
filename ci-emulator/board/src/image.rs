//! The image behind LUN 0: the user's, or one made for the run.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use crate::conversation::{Content, Range};

/// Bytes of the file system on a made image.
const FILE_SYSTEM_BYTES: u64 = 64 << 20;
/// Bytes behind the file system that belong to the demonstration.
const SCRATCH_BYTES: u64 = 16 << 20;
/// Bytes of the range that is written on a user's image.
const FREE_BYTES: u64 = 1 << 20;

/// An image, and what may be written on it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// What it is, for people.
    pub description: String,
    /// A range of zeros that is written and restored; `None` where there is none.
    pub free: Option<Range>,
    /// It was made for this run, so writes to `free` may be measured.
    pub made: bool,
    /// Its SHA-256 before anything was done.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

impl Image {
    /// Makes an image in `directory`: ext4 with files where mke2fs is to be had, a pattern where not;
    /// zeros behind it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("disk1.img");
        let description = match make_ext4(directory, &path) {
            Ok(files) => format!("ext4 with {files} files, made by mke2fs"),
            Err(reason) => {
                make_pattern(&path)?;
                format!("a generated pattern ({reason:#})")
            }
        };
        File::options()
            .write(true)
            .open(&path)?
            .set_len(FILE_SYSTEM_BYTES + SCRATCH_BYTES)
            .with_context(|| format!("{} cannot be made longer", path.display()))?;
        let free = Some(Range { offset: FILE_SYSTEM_BYTES, bytes: SCRATCH_BYTES });
        let (sha256, bytes) = hash(&path, u64::MAX)?;
        Ok(Self { path, description, free, made: true, sha256, bytes })
    }

    /// The user's image at `path`. Its free range is its last mebibyte of zeros on a mebibyte's
    /// border.
    ///
    /// # Errors
    /// When it cannot be read, or is not a whole number of 512-byte blocks.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let path = path.canonicalize().with_context(|| format!("--image {shown}"))?;
        let (sha256, bytes) = hash(&path, u64::MAX).with_context(|| format!("--image {shown}"))?;
        ensure!(
            bytes > 0 && bytes.is_multiple_of(512),
            "--image {shown}: {bytes} bytes are not a whole number of 512-byte blocks"
        );
        let free = last_zeros(&path, bytes)?;
        let description = "the image given with --image".to_owned();
        Ok(Self { path, description, free, made: false, sha256, bytes })
    }

    /// Whether `range` of the file holds `content`: the first byte that differs.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn difference(&self, range: Range, content: Content) -> anyhow::Result<Option<u64>> {
        let file = File::open(&self.path)?;
        let (mut found, mut wanted) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut done = 0;
        while done < range.bytes {
            let count = (range.bytes - done).min(found.len() as u64) as usize;
            let offset = range.offset + done;
            file.read_exact_at(&mut found[..count], offset)?;
            content.fill(offset, &mut wanted[..count]);
            let pairs = found[..count].iter().zip(&wanted[..count]);
            if let Some(place) = pairs.into_iter().position(|(found, wanted)| found != wanted) {
                return Ok(Some(offset + place as u64));
            }
            done += count as u64;
        }
        Ok(None)
    }
}

/// Puts the zeros of a free range back when a run ends before it did so over SRP. Dropped after the
/// processes that could still write.
#[derive(Debug)]
pub struct Restorer {
    image: PathBuf,
    range: Option<Range>,
}

impl Restorer {
    /// A restorer with nothing to do yet.
    #[must_use]
    pub fn new(image: &Path) -> Self {
        Self { image: image.to_owned(), range: None }
    }

    /// `range` is about to be written.
    pub fn begin(&mut self, range: Range) {
        self.range = Some(range);
    }

    /// It is as it was.
    pub fn done(&mut self) {
        self.range = None;
    }
}

impl Drop for Restorer {
    fn drop(&mut self) {
        let Some(range) = self.range else { return };
        let zeros = vec![0; range.bytes as usize];
        let written = File::options()
            .write(true)
            .open(&self.image)
            .and_then(|file| file.write_all_at(&zeros, range.offset));
        if let Err(error) = written {
            eprintln!(
                "emulate: {}: {} bytes from byte {} were zeros and could not be restored: {error}",
                self.image.display(),
                range.bytes,
                range.offset
            );
        }
    }
}

/// SHA-256 of the first `bytes_max` bytes of a file, and how many there were.
///
/// # Errors
/// When it cannot be read.
pub fn hash(path: &Path, bytes_max: u64) -> anyhow::Result<(String, u64)> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut file = file.take(bytes_max);
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            let hexadecimal = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((hexadecimal, bytes));
        }
        digest.update(&piece[..count]);
        bytes += count as u64;
    }
}

fn last_zeros(path: &Path, bytes: u64) -> anyhow::Result<Option<Range>> {
    let file = File::open(path)?;
    let mut piece = vec![0; FREE_BYTES as usize];
    for index in (0..bytes / FREE_BYTES).rev() {
        let offset = index * FREE_BYTES;
        file.read_exact_at(&mut piece, offset)?;
        if piece.iter().all(|byte| *byte == 0) {
            return Ok(Some(Range { offset, bytes: FREE_BYTES }));
        }
    }
    Ok(None)
}

/// Makes a file system with files in it; their number.
fn make_ext4(directory: &Path, image: &Path) -> anyhow::Result<usize> {
    let tree = directory.join("files");
    std::fs::create_dir_all(tree.join("etc"))?;
    std::fs::create_dir_all(tree.join("bin"))?;
    std::fs::write(tree.join("etc/scst.conf"), crate::configuration::EXAMPLE)?;
    std::fs::write(tree.join("README"), "A file system that Lunar exports as LUN 0.\n")?;
    // A file of some size that is different in each build.
    let mut program = Vec::new();
    File::open("/proc/self/exe")?.take(24 << 20).read_to_end(&mut program)?;
    std::fs::write(tree.join("bin/emulate"), program)?;
    File::create(image)?.set_len(FILE_SYSTEM_BYTES)?;
    let search = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("mke2fs")
        // Where it lies on most systems, and where users' PATHs often do not lead.
        .env("PATH", format!("{search}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(image)
        .stdin(Stdio::null())
        .output()
        .context("mke2fs is not there")?;
    ensure!(
        output.status.success(),
        "mke2fs failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    std::fs::remove_dir_all(&tree)?;
    Ok(3)
}

fn make_pattern(image: &Path) -> anyhow::Result<()> {
    let mut file = File::create(image)?;
    let mut piece = vec![0; 1 << 20];
    for offset in (0..FILE_SYSTEM_BYTES).step_by(piece.len()) {
        Content::Pattern(1).fill(offset, &mut piece);
        file.write_all(&piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_image_gives_its_last_mebibyte_of_zeros() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let mut bytes = vec![1; 5 << 20];
        bytes[1 << 20..4 << 20].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let image = Image::open(&path).unwrap();
        assert_eq!(image.free, Some(Range { offset: 3 << 20, bytes: 1 << 20 }));
        assert!(!image.made);
        std::fs::write(&path, vec![1; 2 << 20]).unwrap();
        assert_eq!(Image::open(&path).unwrap().free, None);
        std::fs::write(&path, vec![1; 700]).unwrap();
        assert!(Image::open(&path).unwrap_err().to_string().contains("512"));
    }

    #[test]
    fn the_first_difference_is_found_and_an_unfinished_write_is_restored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, vec![0; 4 << 20]).unwrap();
        let image = Image::open(&path).unwrap();
        let range = image.free.unwrap();
        assert_eq!(image.difference(range, Content::Zeros).unwrap(), None);
        let mut restorer = Restorer::new(&path);
        restorer.begin(range);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[7], range.offset + 5000).unwrap();
        assert_eq!(image.difference(range, Content::Zeros).unwrap(), Some(range.offset + 5000));
        drop(restorer);
        assert_eq!(hash(&path, u64::MAX).unwrap().0, image.sha256);
    }
}
