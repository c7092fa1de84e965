//! Memory that the card's data path lives on: fixed slots with generations ([`slots`]) and the SGV
//! buffer cache ([`sgv`]).
//!
//! Everything is allocated in `new` and nothing after. Who gets memory when there is too little is
//! decided by the caller; this crate only says what there is. No I/O, no clock (time is an argument),
//! no locks: one poll group owns each value.
#![forbid(unsafe_code)]

pub mod sgv;
pub mod slots;
