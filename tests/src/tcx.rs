//! How many programs are attached to an interface.

use std::{io, mem::size_of, ptr};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

use crate::{clsact, netns::Netns};

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// What `bpf(BPF_PROG_QUERY)` takes: the part `query` of the kernel's `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    reserved: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// How many programs the kernel has at the interface's TC hooks, ingress and egress: TCX programs, and filters of mgre.
///
/// # Errors
/// There is no such interface.
pub fn attached(netns: &Netns, interface: &str) -> Result<u32> {
    let links = netns.enter(|| -> Result<u32> {
        Ok(query(interface, BPF_TCX_INGRESS)? + query(interface, BPF_TCX_EGRESS)?)
    })??;
    Ok(links + u32::try_from(clsact::own(netns, interface)?.len())?)
}

fn query(interface: &str, attach_type: u32) -> Result<u32> {
    let target_ifindex = if_nametoindex(interface)?;
    let mut query = Query { target_ifindex, attach_type, ..Query::default() };
    // SAFETY: the pointer and the length are those of one structure, laid out as the kernel's; with a count of zero
    // the kernel writes to nothing else.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, ptr::from_mut(&mut query), size_of::<Query>())
    };
    if result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        // A kernel without TCX.
        return Ok(0);
    }
    if result < 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot query the programs of {interface}"));
    }
    Ok(query.count)
}
