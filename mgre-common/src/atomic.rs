//! 32-bit words shared with the datapath.
//!
//! rustc's eBPF targets have atomics of 64 bits only, though a 32-bit load or store is one instruction there too.

#[cfg(not(target_arch = "bpf"))]
pub use core::sync::atomic::AtomicU32;

#[cfg(target_arch = "bpf")]
pub use ebpf::AtomicU32;

#[cfg(target_arch = "bpf")]
mod ebpf {
    use core::{cell::UnsafeCell, fmt, ptr, sync::atomic::Ordering};

    /// A `u32` read and written as a whole, like [`core::sync::atomic::AtomicU32`].
    ///
    /// The ordering has no effect: rustc compiles this target as single-threaded, so that its 64-bit atomics
    /// are plain loads and stores as well.
    #[derive(Default)]
    #[repr(transparent)]
    pub struct AtomicU32(UnsafeCell<u32>);

    // SAFETY: every access is one aligned volatile load or store of the word.
    unsafe impl Sync for AtomicU32 {}

    impl AtomicU32 {
        /// A word of this value.
        #[must_use]
        pub const fn new(value: u32) -> Self {
            Self(UnsafeCell::new(value))
        }

        /// Reads the word.
        #[inline(always)]
        pub fn load(&self, _order: Ordering) -> u32 {
            // SAFETY: the cell is valid and aligned for as long as `self` is borrowed.
            unsafe { ptr::read_volatile(self.0.get()) }
        }

        /// Writes the word.
        #[inline(always)]
        pub fn store(&self, value: u32, _order: Ordering) {
            // SAFETY: the cell is valid and aligned for as long as `self` is borrowed.
            unsafe { ptr::write_volatile(self.0.get(), value) }
        }
    }

    impl fmt::Debug for AtomicU32 {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.load(Ordering::Relaxed).fmt(f)
        }
    }
}
