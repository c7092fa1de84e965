//! Configuration values that were checked.
