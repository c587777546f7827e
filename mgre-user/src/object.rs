//! The eBPF object that the daemon loads.

/// Empty where the build had no eBPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mgre.o"));

/// This `mgre` was built without its eBPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this mgre was built without its eBPF programs, because the eBPF toolchain was missing; \
     run `cargo xtask setup` and build again"
)]
pub struct NoObject;

/// The object, an ELF file aligned for [`aya::EbpfLoader::load`].
///
/// # Errors
///
/// [`NoObject`] where the build had no eBPF toolchain.
pub fn object() -> Result<&'static [u8], NoObject> {
    if OBJECT.is_empty() { Err(NoObject) } else { Ok(OBJECT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_is_an_aligned_ebpf_elf_or_names_the_remedy() {
        match object() {
            Ok(object) => {
                assert_eq!(object.as_ptr().align_offset(8), 0);
                assert_eq!(object.get(..4), Some(b"\x7fELF".as_slice()));
                // e_machine, in the byte order of the object, which is the host's: EM_BPF.
                let machine =
                    object.get(18..20).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
                assert_eq!(machine, Some(247));
            }
            Err(error) => assert!(error.to_string().contains("cargo xtask setup")),
        }
    }
}
