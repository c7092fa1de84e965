//! lunar-cli
