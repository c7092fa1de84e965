//! x
#![allow(dead_code)]
pub mod api;
mod control_channel;
mod devices;
mod epoch;
mod latency;
mod line;
mod show;
