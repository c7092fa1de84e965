//! lunar-firmware
