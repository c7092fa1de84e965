//! libibverbs and librdmacm as Rust declarations, opened while the program runs.
//!
//! Here live the C structures that cross the libraries' stable ABI, the constants that go with them,
//! and [`Library`], the table of their functions. Nothing that decides anything may live here: the
//! safe layer is `lunar-verbs-ibv`.
//!
//! Declared by hand and not generated: what a target needs is small, the ABI is frozen (symbol
//! versions IBVERBS_1.1 and RDMACM_1.0), and neither building nor starting a program then needs
//! clang, headers or the libraries. `tests/layout.rs` has the C compiler compare every structure and
//! constant with the installed headers.
#![allow(non_camel_case_types)] // the names are C's

mod library;
mod rdma_cma;
mod verbs;

pub use library::{Library, Missing};
pub use rdma_cma::*;
pub use verbs::*;
