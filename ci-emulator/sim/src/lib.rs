//! lunar-sim
