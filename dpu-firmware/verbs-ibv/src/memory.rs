//! Card memory: page-aligned, zeroed, registered with the device.
#![allow(unsafe_code)] // mmap, registration, and slices of what was mapped

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use lunar_platform::{ArenaId, HostArena, LocalKey, Memory, MemoryError, Region};
use lunar_verbs_ibv_sys as sys;
use rustix::mm::{MapFlags, ProtFlags};

use crate::device::DeviceState;
use crate::error::checked_pointer;
use crate::host_link::Imports;
use crate::keys::Keys;

/// Above this huge pages are tried first.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Anonymous memory of this process.
#[derive(Debug)]
struct Mapping {
    first: NonNull<u8>,
    bytes: usize,
    mapped_bytes: usize,
}

// SAFETY: memory may be used from any thread; who may touch it when is its owner's business.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let map = |mapped_bytes, flags| {
            // SAFETY: a fresh private mapping, which aliases nothing.
            unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    mapped_bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | flags,
                )
            }
        };
        let huge = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let small = bytes.max(1).next_multiple_of(page);
        let mut mapped_bytes = huge;
        let mut first = Err(rustix::io::Errno::NOMEM);
        if bytes >= HUGE_PAGE_BYTES {
            first = map(huge, MapFlags::HUGETLB);
        }
        if first.is_err() {
            mapped_bytes = small;
            first = map(small, MapFlags::empty());
        }
        let first = NonNull::new(first?.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // A forked child would take the pages away from under the device (copy on write).
        // SAFETY: exactly the mapping made above.
        let kept = unsafe {
            rustix::mm::madvise(
                first.as_ptr().cast(),
                mapped_bytes,
                rustix::mm::Advice::LinuxDontFork,
            )
        };
        let mapping = Self { first, bytes, mapped_bytes };
        kept?;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nothing refers to it any more. Nothing can be done
        // about an error.
        let _ = unsafe { rustix::mm::munmap(self.first.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// A registration of memory with a device. Dropping it revokes the keys.
#[derive(Debug)]
pub(crate) struct Registration {
    device: Arc<DeviceState>,
    mr: *mut sys::ibv_mr,
}

// SAFETY: libibverbs takes calls about a memory region from any thread.
unsafe impl Send for Registration {}
// SAFETY: as above; there is no method that changes it.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `bytes` from `first` with rights out of `IBV_ACCESS_*`.
    ///
    /// # Safety
    /// The memory must stay mapped as long as the registration lives, and bear the writes that its
    /// rights allow.
    pub(crate) unsafe fn new(
        device: &Arc<DeviceState>,
        first: *mut u8,
        bytes: usize,
        access: u32,
    ) -> io::Result<Self> {
        let access = i32::try_from(access).unwrap_or(0);
        // SAFETY: the caller's.
        let mr = checked_pointer(unsafe {
            (device.library.ibv_reg_mr)(device.pd, first.cast(), bytes, access)
        })?;
        Ok(Self { device: Arc::clone(device), mr })
    }

    pub(crate) fn lkey(&self) -> u32 {
        // SAFETY: the region lives until `drop`.
        unsafe { (*self.mr).lkey }
    }

    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: the region lives until `drop`.
        unsafe { (*self.mr).rkey }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: registered by us and not revoked yet.
        let result = unsafe { (self.device.library.ibv_dereg_mr)(self.mr) };
        if result != 0 {
            tracing::error!(errno = result, "memory could not be taken from the device");
        }
    }
}

/// A registered range of card memory. Dropping it revokes its key, then unmaps it.
#[derive(Debug)]
pub struct IbvRegion {
    key: LocalKey,
    keys: Arc<Keys>,
    /// Before the mapping: the devices must let go first. The second where the DMA context has a device of
    /// its own.
    _registrations: (Registration, Option<Registration>),
    mapping: Mapping,
}

impl IbvRegion {
    /// Claims `bytes` and registers them, with the right of local writes, with the HCA and with the device of
    /// the DMA context.
    pub(crate) fn claim(
        device: &Arc<DeviceState>,
        dma_device: &Arc<DeviceState>,
        keys: &Arc<Keys>,
        bytes: usize,
    ) -> io::Result<Self> {
        let mapping = Mapping::new(bytes)?;
        let (first, access) = (mapping.first.as_ptr(), sys::IBV_ACCESS_LOCAL_WRITE);
        // SAFETY: the region drops its registration before its mapping, and its memory is for the
        // device to write.
        let registration = unsafe { Registration::new(device, first, bytes.max(1), access) }?;
        let other = !Arc::ptr_eq(device, dma_device);
        // SAFETY: as above.
        let of_dma = other
            .then(|| unsafe { Registration::new(dma_device, first, bytes.max(1), access) })
            .transpose()?;
        let lkey = registration.lkey();
        let lkeys = (lkey, of_dma.as_ref().map_or(lkey, Registration::lkey));
        let key = keys
            .insert(lkeys, first as u64, bytes as u64)
            .ok_or_else(|| io::Error::other("too many regions are registered"))?;
        let registrations = (registration, of_dma);
        Ok(Self { key, keys: Arc::clone(keys), _registrations: registrations, mapping })
    }
}

impl Drop for IbvRegion {
    fn drop(&mut self) {
        self.keys.remove(self.key);
    }
}

impl Region for IbvRegion {
    fn key(&self) -> LocalKey {
        self.key
    }

    fn base(&self) -> u64 {
        self.mapping.first.as_ptr() as u64
    }

    fn length(&self) -> usize {
        self.mapping.bytes
    }

    #[inline]
    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        match offset.checked_add(length) {
            // SAFETY: inside the mapping, which lives as long as `self`. The device writes only
            // where its owner posted work, and the owner reads elsewhere (`Region`'s contract).
            Some(end) if end <= self.mapping.bytes => unsafe {
                std::slice::from_raw_parts(self.mapping.first.as_ptr().add(offset), length)
            },
            _ => &[],
        }
    }

    #[inline]
    fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        match offset.checked_add(length) {
            // SAFETY: as above, and `self` is borrowed exclusively.
            Some(end) if end <= self.mapping.bytes => unsafe {
                std::slice::from_raw_parts_mut(self.mapping.first.as_ptr().add(offset), length)
            },
            _ => &mut [],
        }
    }
}

/// One poll group's registrar.
#[derive(Debug)]
pub struct IbvMemory {
    pub(crate) device: Arc<DeviceState>,
    pub(crate) dma_device: Arc<DeviceState>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) imports: Arc<Imports>,
}

impl Memory for IbvMemory {
    type Region = IbvRegion;

    fn claim(&mut self, length_bytes: usize) -> Result<IbvRegion, MemoryError> {
        IbvRegion::claim(&self.device, &self.dma_device, &self.keys, length_bytes).map_err(|error| {
            tracing::error!(
                bytes = length_bytes,
                %error,
                "memory could not be registered with the device; `ulimit -l` must allow it to be \
                 locked"
            );
            MemoryError::NoMemory { wanted_bytes: length_bytes as u64 }
        })
    }

    fn import(&mut self, blob: &[u8]) -> Result<HostArena, MemoryError> {
        self.imports.import(blob)
    }

    fn unimport(&mut self, arena: ArenaId) {
        self.imports.unimport(arena);
    }
}
