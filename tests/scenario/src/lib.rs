//! lunar-scenario
