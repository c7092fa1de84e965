#[cfg(loom)]
mod loom_ring;
#[cfg(not(loom))]
mod one_thread;
