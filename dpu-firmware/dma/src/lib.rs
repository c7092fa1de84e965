//! lunar-dma
