//! The eBPF object: the pipeline bound to the kernel, and its entry points.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod kernel;
mod programs;
