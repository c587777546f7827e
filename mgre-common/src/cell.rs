//! Words in memory that the datapath and the daemon share.
//!
//! On the host these are the standard atomics. The eBPF target has none of 32
//! bits, and none with acquire or release order on the kernels we support; there
//! a word is loaded and stored whole, by one volatile access. What the datapath
//! needs of order beyond that, it gets from the protocols that the tables
//! document, which do not rely on it ([`crate::fdb`]).
//!
//! In a build with `--cfg loom` they are a model checker's, which has only the parts
//! of this crate whose protocol it is to check.

#[cfg(not(any(target_arch = "bpf", loom)))]
pub use core::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(target_arch = "bpf")]
pub use bpf::{AtomicU32, AtomicU64};

#[cfg(target_arch = "bpf")]
mod bpf {
    use core::cell::UnsafeCell;
    use core::sync::atomic::Ordering;

    macro_rules! word {
        ($name:ident, $int:ty) => {
            /// A word that is loaded and stored whole; see the module.
            #[repr(transparent)]
            #[derive(Debug, Default)]
            pub struct $name(UnsafeCell<$int>);

            // SAFETY: every access is one volatile load or store of an aligned word,
            // which the eBPF machine does whole.
            unsafe impl Sync for $name {}

            impl $name {
                /// A word with this value.
                pub const fn new(value: $int) -> Self {
                    Self(UnsafeCell::new(value))
                }

                /// Its value.
                #[inline(always)]
                pub fn load(&self, _order: Ordering) -> $int {
                    // SAFETY: the pointer is this word's own.
                    unsafe { self.0.get().read_volatile() }
                }

                /// Sets it.
                #[inline(always)]
                pub fn store(&self, value: $int, _order: Ordering) {
                    // SAFETY: the pointer is this word's own.
                    unsafe { self.0.get().write_volatile(value) }
                }
            }
        };
    }

    word!(AtomicU32, u32);
    word!(AtomicU64, u64);
}
