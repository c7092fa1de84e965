//! lunar-keeper
