//! lunar-offload-proto
