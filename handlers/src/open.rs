//! What opening a device can say: an error that names object, value, reason and way out, or the
//! device with warnings. Only words live here.

use std::fmt;

/// Why a device could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {device}: {parameter} {value}: {reason}; {way_out}")]
pub struct OpenError {
    /// The device's name in the configuration.
    pub device: String,
    /// The parameter that could not be honoured, as in scst.conf.
    pub parameter: &'static str,
    /// Its value.
    pub value: String,
    /// Why not.
    pub reason: String,
    /// What the reader can do about it.
    pub way_out: String,
}

impl OpenError {
    pub(crate) fn new(
        device: &str,
        parameter: &'static str,
        value: impl fmt::Display,
        reason: impl fmt::Display,
        way_out: impl Into<String>,
    ) -> Self {
        Self {
            device: device.to_owned(),
            parameter,
            value: value.to_string(),
            reason: reason.to_string(),
            way_out: way_out.into(),
        }
    }
}

/// An opened device, and what its owner should know about it.
#[derive(Debug)]
pub struct Opened<D> {
    /// The device, ready for requests.
    pub device: D,
    /// One sentence each: a tail that is ignored, an engine that had to be replaced.
    pub warnings: Vec<String>,
}

/// Refuses a block length that is not a power of two from 512 to 65536 bytes.
pub(crate) fn check_block_bytes(device: &str, block_bytes: u32) -> Result<(), OpenError> {
    use crate::device::Geometry;
    if block_bytes.is_power_of_two()
        && (Geometry::BLOCK_BYTES_MIN..=Geometry::BLOCK_BYTES_MAX).contains(&block_bytes)
    {
        return Ok(());
    }
    Err(OpenError::new(
        device,
        "blocksize",
        block_bytes,
        "not a power of two from 512 to 65536",
        "use 512 or 4096",
    ))
}
