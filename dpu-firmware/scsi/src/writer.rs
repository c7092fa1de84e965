//! Writing bytes into room that may be too small for them, as parameter and sense data are cut.

/// Writes bytes one after the other, goes on counting where there is no more room, and can go back
/// for a length that is known only at the end.
pub(crate) struct Writer<'a> {
    out: &'a mut [u8],
    position: usize,
}

impl<'a> Writer<'a> {
    /// At the beginning of `out`.
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self { out, position: 0 }
    }

    /// Appends.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.patch(self.position, bytes);
        self.position = self.position.saturating_add(bytes.len());
    }

    /// Appends zeros.
    pub(crate) fn zeros(&mut self, count: usize) {
        for _ in 0..count {
            self.put(&[0]);
        }
    }

    /// Writes over what was written at `position`.
    pub(crate) fn patch(&mut self, position: usize, bytes: &[u8]) {
        let rest = self.out.get_mut(position..).unwrap_or_default();
        for (to, from) in rest.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Bytes put so far, those without room included.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Bytes put that had room.
    pub(crate) fn written(&self) -> usize {
        self.position.min(self.out.len())
    }
}
