//! lunar-backend
