//! The management tree as plain data, and the reader and writer of `scst.conf`.
//!
//! This crate decides: it takes text and gives back a [`tree::Tree`] or the mistakes in it. It opens no file, reads no
//! clock, starts no thread and writes no log; whoever has the bytes calls [`read`], whoever opens the devices does so
//! from the tree it gives. A configuration with one mistake in it is refused as a whole: there is no half a tree.
//!
//! * [`tree`]: the tree itself.
//! * [`attributes`]: every attribute by name, with what it may be: the one list that the reader, the writer and the
//!   messages about unknown names share.
//! * [`syntax`]: bytes to statements. [`reader`]: statements to a tree. [`writer`]: a tree to text.
//! * [`diagnostic`]: what a mistake looks like to its author.
//! * [`snapshot`]: a tree to the `Configuration` that the card is sent.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

pub mod attributes;
pub mod diagnostic;
pub mod reader;
pub mod snapshot;
pub mod syntax;
pub mod tree;
pub mod writer;

pub use diagnostic::{Diagnostic, Refused};
pub use reader::read;
pub use tree::Tree;
pub use writer::write;
