//! lunar-mgmt
