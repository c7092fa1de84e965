//! lunar-core
