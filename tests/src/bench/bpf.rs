//! The few `bpf(2)` calls that the benchmark makes itself: its generator and its sink need no compiler and no library,
//! and what it says about mgre's programs is what the kernel says.

use std::{
    ffi::CString,
    io,
    mem::{offset_of, size_of},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
const OBJECT_GET: libc::c_int = 7;
const PROGRAM_TEST_RUN: libc::c_int = 10;
const PROGRAM_BY_ID: libc::c_int = 13;
const OBJECT_INFO: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_DEVMAP: u32 = 14;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18: what the program returns is done to the frame.
const TEST_LIVE_FRAMES: u32 = 1 << 1;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A classifier: TC and TCX.
    Classifier = 3,
    /// XDP.
    Xdp = 6,
}

/// Where a program is attached, in this thread's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// XDP.
    Xdp = 37,
    /// TCX, where frames come in. Linux 6.6.
    TcxIngress = 46,
    /// TCX, where frames go out.
    TcxEgress = 47,
}

/// Calls the kernel. Every attribute here is a prefix of `union bpf_attr`, whose rest the kernel takes for zero.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<RawFd> {
    // SAFETY: the attribute is valid for its size, and the callers' pointers in it for what the command reads and
    // writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}

fn bpf_fd<T>(command: libc::c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attribute)?;
    // SAFETY: the command returned a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T: ?Sized>(value: &T) -> u64 {
    ptr::from_ref(value).cast::<u8>() as u64
}

fn descriptor(fd: &OwnedFd) -> u32 {
    // Never negative while it is open.
    fd.as_raw_fd() as u32
}

/// A map of one entry, with a 32-bit key.
fn new_map(map_type: u32, value_size: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attribute {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let mut attribute = Attribute { map_type, key_size: 4, value_size, max_entries: 1 };
    bpf_fd(MAP_CREATE, &mut attribute).context("the kernel refuses a map")
}

/// Reads or writes the one entry of a map.
fn entry(command: libc::c_int, map: &OwnedFd, value: *mut u8) -> io::Result<()> {
    #[repr(C)]
    struct Attribute {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0_u32;
    let mut attribute =
        Attribute { map: descriptor(map), padding: 0, key: address(&key), value: value as u64, flags: 0 };
    bpf(command, &mut attribute).map(|_| ())
}

/// A map with one 64-bit counter.
#[derive(Debug)]
pub struct Counter(OwnedFd);

impl Counter {
    /// Makes one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        Ok(Self(new_map(MAP_TYPE_ARRAY, 8)?))
    }

    /// Its descriptor, for instructions that refer to it.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// What it counted.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&self) -> Result<u64> {
        let mut value = 0_u64;
        entry(MAP_LOOKUP, &self.0, ptr::from_mut(&mut value).cast()).context("cannot read a counter")?;
        Ok(value)
    }
}

/// A device map with one interface, which XDP programs can redirect to.
#[derive(Debug)]
pub struct DeviceMap(OwnedFd);

impl DeviceMap {
    /// Makes one that holds an interface of this thread's namespace.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn new(interface: &str) -> Result<Self> {
        let map = new_map(MAP_TYPE_DEVMAP, 4)?;
        let mut ifindex = if_nametoindex(interface)?;
        entry(MAP_UPDATE, &map, ptr::from_mut(&mut ifindex).cast())
            .with_context(|| format!("the kernel refuses {interface} in a device map"))?;
        Ok(Self(map))
    }

    /// Its descriptor, for instructions that refer to it.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// A program's attachment to an interface; ends when dropped.
#[derive(Debug)]
pub struct Link(#[expect(dead_code, reason = "held for its end")] OwnedFd);

impl Program {
    /// Loads instructions.
    ///
    /// # Errors
    /// The verifier refuses them; its log is in the error.
    pub fn load(kind: Kind, instructions: &[u64]) -> Result<Self> {
        #[repr(C)]
        struct Attribute {
            kind: u32,
            instruction_count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
        }
        let mut log = vec![0_u8; 1 << 16];
        let mut attribute = Attribute {
            kind: kind as u32,
            instruction_count: u32::try_from(instructions.len())?,
            instructions: address(instructions),
            license: address(c"Dual MIT/GPL".to_bytes_with_nul()),
            log_level: 1,
            log_size: u32::try_from(log.len())?,
            log: log.as_mut_ptr() as u64,
        };
        bpf_fd(PROGRAM_LOAD, &mut attribute).map(Self).with_context(|| {
            let text: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
            format!("the kernel refuses a program: {}", String::from_utf8_lossy(&text).trim())
        })
    }

    /// Attaches it to an interface of this thread's namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&self, hook: Hook, interface: &str) -> Result<Link> {
        #[repr(C)]
        struct Attribute {
            program: u32,
            ifindex: u32,
            attach_type: u32,
            flags: u32,
            relative: u32,
            padding: u32,
            expected_revision: u64,
        }
        let mut attribute = Attribute {
            program: descriptor(&self.0),
            ifindex: if_nametoindex(interface)?,
            attach_type: hook as u32,
            flags: 0,
            relative: 0,
            padding: 0,
            expected_revision: 0,
        };
        Ok(Link(
            bpf_fd(LINK_CREATE, &mut attribute).with_context(|| format!("cannot attach to {interface}"))?,
        ))
    }

    /// Runs it on `count` frames that begin as this one, and does with each what it returns. Says how long that took
    /// for one frame, in ns, without what it takes the kernel to begin and to end.
    ///
    /// # Errors
    /// The kernel refuses, or a signal came between.
    pub fn run_live(&self, frame: &[u8], ifindex: u32, count: u32, batch: u32) -> io::Result<u32> {
        #[repr(C)]
        #[derive(Default)]
        struct Attribute {
            program: u32,
            result: u32,
            data_in_len: u32,
            data_out_len: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_in_len: u32,
            context_out_len: u32,
            context_in: u64,
            context_out: u64,
            flags: u32,
            cpu: u32,
            batch: u32,
            padding: u32,
        }
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
        let context: &[u8] = bytemuck::cast_slice(&context);
        let mut attribute = Attribute {
            program: descriptor(&self.0),
            context_in_len: context.len() as u32,
            context_in: address(context),
            data_in_len: frame.len() as u32,
            data_in: address(frame),
            repeat: count,
            flags: TEST_LIVE_FRAMES,
            batch,
            ..Attribute::default()
        };
        bpf(PROGRAM_TEST_RUN, &mut attribute)?;
        Ok(attribute.duration)
    }

    /// The program of a link that is pinned.
    ///
    /// # Errors
    /// There is no such pin, or it is no link.
    pub fn of_pinned_link(pin: &Path) -> Result<Self> {
        #[repr(C)]
        struct Get {
            path: u64,
            fd: u32,
            flags: u32,
        }
        #[repr(C)]
        struct ById {
            id: u32,
            next: u32,
            flags: u32,
        }
        /// The start of `struct bpf_link_info`.
        #[repr(C)]
        #[derive(Default)]
        struct LinkInfo {
            kind: u32,
            id: u32,
            program: u32,
        }
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut get = Get { path: address(path.as_bytes_with_nul()), fd: 0, flags: 0 };
        let shown = || format!("cannot open {}", pin.display());
        let link = bpf_fd(OBJECT_GET, &mut get).with_context(shown)?;
        let mut info = LinkInfo::default();
        object_info(&link, &mut info).with_context(shown)?;
        let mut by_id = ById { id: info.program, next: 0, flags: 0 };
        Ok(Self(bpf_fd(PROGRAM_BY_ID, &mut by_id).with_context(shown)?))
    }

    /// What the kernel says of it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn info(&self) -> Result<ProgramInfo> {
        let mut info = ProgramInfo::default();
        object_info(&self.0, &mut info).context("cannot ask about a program")?;
        Ok(info)
    }
}

/// `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramInfo {
    kind: u32,
    /// The kernel's number for it.
    pub id: u32,
    tag: [u8; 8],
    /// Bytes of machine code.
    pub jited_len: u32,
    /// Bytes of eBPF after the verifier's rewriting.
    pub translated_len: u32,
    unused: [u64; 5],
    name: [u8; 16],
    unused_2: [u64; 14],
    /// Time spent in it, in ns, while `kernel.bpf_stats_enabled` was set.
    pub run_time_ns: u64,
    /// How often it ran then.
    pub runs: u64,
    recursion_misses: u64,
    /// Instructions that the verifier went through, over all branches.
    pub verified_instructions: u32,
    padding: u32,
}

const _: () = assert!(offset_of!(ProgramInfo, name) == 64);
const _: () = assert!(offset_of!(ProgramInfo, run_time_ns) == 192);
const _: () = assert!(offset_of!(ProgramInfo, verified_instructions) == 216);

impl ProgramInfo {
    /// Its name.
    pub fn name(&self) -> String {
        let name: Vec<u8> = self.name.into_iter().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&name).into_owned()
    }
}

fn object_info<T>(object: &OwnedFd, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attribute {
        object: u32,
        info_len: u32,
        info: u64,
    }
    let info_at = ptr::from_mut(info) as u64;
    let mut attribute =
        Attribute { object: descriptor(object), info_len: size_of::<T>() as u32, info: info_at };
    bpf(OBJECT_INFO, &mut attribute).map(|_| ())
}
