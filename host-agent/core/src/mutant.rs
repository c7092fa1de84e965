//! Deliberate mistakes that the simulator must catch (DESIGN section 7), as the card has its own. Without the feature
//! `mutants` every question here is the constant `false` and nothing of it is in the binary.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// None: the code as it ships.
    None = 0,
    /// A change of reservations is answered when it is kept, before the card enforces it.
    GoodBeforeEnforced,
    /// A change of reservations is answered before it is kept.
    GoodBeforeKept,
    /// PERSISTENT RESERVE IN tells of changes that the card does not enforce yet.
    ReadBeforeEnforced,
    /// EXTENDED COPY goes on for a nexus that a change keeps out.
    CopyNotFenced,
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use core::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Mutant> = const { Cell::new(Mutant::None) };
    }

    /// Chooses the mistake that this thread's agents make.
    pub fn choose(mutant: Mutant) {
        CHOSEN.with(|chosen| chosen.set(mutant));
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.with(|chosen| chosen.get() == mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::choose;
#[cfg(feature = "mutants")]
pub(crate) use switch::is;

#[cfg(not(feature = "mutants"))]
#[inline]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}
