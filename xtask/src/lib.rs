//! Finding the eBPF toolchain and building the eBPF object.
