//! lunar-initiator
