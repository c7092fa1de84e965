//! lunar-srp
