//! Lunar on the emulator: card, host and initiator as separate processes on emulated hardware, what
//! checks and measures them, and the floor they are compared with.
//!
//! * [`pieces`]: the processes. [`card`]: `lunar-firmware` with emulated providers. [`driver`]:
//!   `lunar-initiator`; [`measure`] is its measuring loop. [`conversation`]: how it is told what to do.
//! * [`demonstration`]: the run as a whole. [`configuration`], [`image`], [`cores`], [`report`]: its
//!   parts. [`floor`]: the floor program.
//!
//! Nothing here decides about commands, and nothing that ships depends on it.
#![forbid(unsafe_code)]

pub mod card;
pub mod configuration;
pub mod conversation;
pub mod cores;
pub mod demonstration;
pub mod driver;
pub mod floor;
pub mod image;
mod measure;
pub mod pieces;
pub mod report;
