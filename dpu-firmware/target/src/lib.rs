//! lunar-target
