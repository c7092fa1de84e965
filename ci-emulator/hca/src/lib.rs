//! lunar-hca
