//! What the harness is in the guest, under the name `discontiguous-io`: a program that writes and reads a
//! block device from buffers in many pieces with gaps between them, which no tool of the guest can.

use std::fs::OpenOptions;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, bail, ensure};

/// The name that the harness acts by.
pub const NAME: &str = "discontiguous-io";

/// The pieces' memory begins at a multiple of this.
const PAGE: usize = 4096;

/// Memory for pieces of one size with gaps of that size between them.
struct Pieces {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl Pieces {
    fn new(size: usize, count: usize) -> Pieces {
        let memory = vec![0; 2 * size * count + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Pieces { memory, start, size }
    }

    /// The pieces; the gaps are left out.
    fn each(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let size = self.size;
        let end = self.memory.len() - PAGE + self.start;
        self.memory[self.start..end].chunks_exact_mut(2 * size).map(move |pair| &mut pair[..size])
    }
}

/// `DEVICE SIZE COUNT`: writes COUNT pieces of SIZE bytes to the start of DEVICE in one call, reads them
/// back in one call, the other way round in memory, and compares.
pub fn run(arguments: &[String]) -> Result<()> {
    let [device, size, count] = arguments else {
        bail!("usage: {NAME} DEVICE SIZE COUNT");
    };
    let (size, count): (usize, usize) = (size.parse()?, count.parse()?);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let mut file = options.open(device).with_context(|| device.clone())?;

    // Different at each run, so that what an earlier one left is not taken for what this one wrote.
    let seed = std::process::id() as usize;
    let byte = |piece: usize, at: usize| (seed.wrapping_add(piece * 31 + at * 7 + at / 256)) as u8;
    let mut written = Pieces::new(size, count);
    for (piece, bytes) in written.each().enumerate() {
        bytes.iter_mut().enumerate().for_each(|(at, to)| *to = byte(piece, at));
    }
    let slices: Vec<IoSlice<'_>> = written.each().map(|bytes| IoSlice::new(bytes)).collect();
    let bytes = file.write_vectored(&slices)?;
    ensure!(bytes == size * count, "{bytes} of {} bytes were written", size * count);

    let mut read = Pieces::new(size, count);
    let mut slices: Vec<IoSliceMut<'_>> = read.each().map(IoSliceMut::new).collect();
    slices.reverse();
    file.rewind()?;
    let bytes = file.read_vectored(&mut slices)?;
    ensure!(bytes == size * count, "{bytes} of {} bytes were read", size * count);
    for (piece, bytes) in slices.iter().enumerate() {
        let wrong = bytes.iter().enumerate().find(|(at, found)| **found != byte(piece, *at));
        if let Some((at, _)) = wrong {
            bail!("byte {at} of piece {piece} is not what was written");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_where_they_should_be_with_gaps_between_them() {
        let mut pieces = Pieces::new(512, 3);
        let starts: Vec<usize> = pieces.each().map(|piece| piece.as_ptr().addr()).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts[0].is_multiple_of(PAGE));
        assert_eq!([starts[1] - starts[0], starts[2] - starts[1]], [1024, 1024]);
    }

    /// The target directory is on a real file system, which direct I/O needs.
    #[test]
    fn what_is_written_is_read() {
        let folder = std::env::current_exe().unwrap().with_file_name("");
        let file = tempfile::NamedTempFile::new_in(folder).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let path = file.path().to_string_lossy().into_owned();
        run(&[path, "4096".into(), "16".into()]).unwrap();
    }
}
