//! lunar-pcie
