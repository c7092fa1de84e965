//! lunar-agent
