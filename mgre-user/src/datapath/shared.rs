//! An array map in the daemon's own memory.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A type that the datapath and the daemon may both have a reference to.
///
/// # Safety
/// Every bit pattern is a value, and whatever one side may change while the other
/// looks is behind interior mutability, or is read by [`SharedArray::read`].
pub unsafe trait Shared {}

// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::table::Clock {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::near::NearMacs {}
// SAFETY: as above.
unsafe impl Shared for mgre_common::table::Port {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::table::PortSlot {}
// SAFETY: all fields are atomics, but for zeros that nobody writes.
unsafe impl Shared for mgre_common::endpoint::EndpointSlot {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::table::Segment {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::table::FloodSlot {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::fdb::Bucket {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::table::Sequence {}
// SAFETY: all fields are atomics.
unsafe impl Shared for mgre_common::storm::Storm {}
// SAFETY: atomics and templates, which the daemon alone changes, by its documented protocol.
unsafe impl Shared for mgre_common::table::Adjacency {}
// SAFETY: atomics alone.
unsafe impl Shared for mgre_common::tally::Tally {}
// SAFETY: plain counters that the datapath writes; only ever copied out.
unsafe impl Shared for mgre_common::counters::Traffic {}
// SAFETY: plain counters that the datapath writes; only ever copied out.
unsafe impl Shared for mgre_common::counters::Drops {}
// SAFETY: plain counters that the datapath writes; only ever copied out.
unsafe impl Shared for mgre_common::counters::SegmentTraffic {}

/// A `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE`, mapped: reading and writing it
/// costs no system call.
#[derive(Debug)]
pub struct SharedArray<T> {
    start: NonNull<u8>,
    mapped: NonZeroUsize,
    len: u32,
    _values: PhantomData<T>,
}

// SAFETY: the memory is the map's, valid from any thread; `Shared` says how it may be used.
unsafe impl<T: Shared> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for SharedArray<T> {}

impl<T: Shared> SharedArray<T> {
    /// Bytes from one value to the next: the kernel rounds up to eight.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps a map's values.
    ///
    /// # Errors
    /// The map is not an array of such values, or cannot be mapped.
    pub fn map(data: &MapData) -> Result<Self> {
        let info = data.info().context("cannot read a map's layout")?;
        ensure!(
            info.value_size() as usize == size_of::<T>(),
            "map {} has values of {} bytes, not {}",
            info.name_as_str().unwrap_or("?"),
            info.value_size(),
            size_of::<T>(),
        );
        let len = info.max_entries();
        let mapped = NonZeroUsize::new((len as usize * Self::STRIDE).next_multiple_of(page_size()))
            .context("an empty map cannot be mapped")?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(None, mapped, access, MapFlags::MAP_SHARED, data.fd().as_fd(), 0)
        }
        .with_context(|| format!("cannot map {}", info.name_as_str().unwrap_or("?")))?;
        Ok(Self { start: start.cast(), mapped, len, _values: PhantomData })
    }

    /// As many zeroed values in ordinary memory.
    #[cfg(test)]
    pub(super) fn anonymous(len: u32) -> Self {
        let mapped = NonZeroUsize::new((len as usize * Self::STRIDE).next_multiple_of(page_size()))
            .expect("at least one value");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, mapped, access, MapFlags::MAP_PRIVATE) }
            .expect("memory");
        Self { start: start.cast(), mapped, len, _values: PhantomData }
    }

    /// How many values there are.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A pointer to a value.
    pub fn ptr(&self, index: u32) -> Option<NonNull<T>> {
        // SAFETY: the offset is within the mapping.
        (index < self.len).then(|| unsafe { self.start.add(index as usize * Self::STRIDE).cast() })
    }

    /// A value.
    pub fn get(&self, index: u32) -> Option<&T> {
        // SAFETY: the pointer is valid for as long as `self`; `Shared` allows the reference.
        self.ptr(index).map(|value| unsafe { value.as_ref() })
    }
}

impl<T: Shared + Copy> SharedArray<T> {
    /// A copy of a value. Words that the datapath is changing are read whole, but
    /// not at one time.
    pub fn read(&self, index: u32) -> Option<T> {
        // SAFETY: the pointer is valid, and any bits are a value.
        self.ptr(index).map(|value| unsafe { value.as_ptr().read_volatile() })
    }

    /// Overwrites a value.
    pub fn write(&self, index: u32, value: T) {
        if let Some(place) = self.ptr(index) {
            // SAFETY: the pointer is valid, and any bits are a value.
            unsafe { place.as_ptr().write_volatile(value) }
        }
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference outlives it.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.mapped.get()) } {
            tracing::warn!(%error, "cannot unmap a table");
        }
    }
}

fn page_size() -> usize {
    // SAFETY: no memory is passed.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
