//! lunar-board
