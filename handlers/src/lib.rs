//! lunar-handlers
