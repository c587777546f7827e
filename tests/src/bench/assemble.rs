//! The generator's and the sink's programs, instruction by instruction.
//!
//! Each instruction is the kernel's `struct bpf_insn`: opcode, destination and source register, 16-bit offset, 32-bit
//! immediate value (RFC 9669 3).

use std::os::fd::RawFd;

use super::{
    bpf::Kind,
    frame::{FLOWS, FRAME_LEN, PAYLOAD_AT, UDP_AT, UDP_PORT},
};

/// `enum xdp_action`.
const XDP_ABORTED: i32 = 0;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// Of `TC_ACT_*` and `enum tcx_action_base`: the next program, or the stack, gets the frame.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
/// Helper functions by their numbers.
const HELPER_VLAN_PUSH: i32 = 18;
const HELPER_VLAN_POP: i32 = 19;
const HELPER_REDIRECT: i32 = 23;
const HELPER_REDIRECT_MAP: i32 = 51;
/// The source register of a 64-bit immediate load that stands for a map.
const PSEUDO_MAP: u8 = 1;
/// The source register of a 64-bit immediate load that stands for the address of a map's value.
const PSEUDO_MAP_VALUE: u8 = 2;

/// Where `struct xdp_md` has `data` and `data_end`.
const XDP_DATA: [i16; 2] = [0, 4];
/// Where `struct __sk_buff` has them.
const SKB_DATA: [i16; 2] = [76, 80];
/// Where it has `vlan_tci`: the tag that is kept beside the frame.
const SKB_VLAN_TCI: i16 = 24;

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;

const fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, value: i32) -> u64 {
    u64::from_ne_bytes({
        let [a, b] = offset.to_ne_bytes();
        let [c, d, e, f] = value.to_ne_bytes();
        // The registers share a byte, the destination in its low half on little-endian machines.
        let registers = if cfg!(target_endian = "little") {
            destination | source << 4
        } else {
            destination << 4 | source
        };
        [opcode, registers, a, b, c, d, e, f]
    })
}

const fn set(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, 0, 0, value)
}

const fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

const fn add(register: u8, value: i32) -> u64 {
    instruction(0x07, register, 0, 0, value)
}

const fn and(register: u8, value: i32) -> u64 {
    instruction(0x57, register, 0, 0, value)
}

const fn subtract_register(to: u8, what: u8) -> u64 {
    instruction(0x1f, to, what, 0, 0)
}

const fn load_u16(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x69, to, from, offset, 0)
}

const fn load_u32(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, to, from, offset, 0)
}

const fn load_u64(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x79, to, from, offset, 0)
}

const fn store_u8(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x73, to, from, offset, 0)
}

const fn store_u64(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x7b, to, from, offset, 0)
}

const fn atomic_add_u64(to: u8, from: u8) -> u64 {
    instruction(0xdb, to, from, 0, 0)
}

/// Goes on so many instructions further if `a > b`.
const fn jump_if_greater(a: u8, b: u8, further: i16) -> u64 {
    instruction(0x2d, a, b, further, 0)
}

const fn jump_if_not(register: u8, value: i32, further: i16) -> u64 {
    instruction(0x55, register, 0, further, value)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// The address of a map's first value: two instructions.
const fn load_value_address(register: u8, map: RawFd) -> [u64; 2] {
    [instruction(0x18, register, PSEUDO_MAP_VALUE, 0, map), 0]
}

/// An XDP program that counts each frame, gives it one of [`FLOWS`] source ports, and ends as `ending` does.
///
/// The first payload word goes down as the port goes up, so the UDP checksum stays right.
pub fn generator(counter: RawFd, ending: &[u64]) -> Vec<u64> {
    let [high, low] = load_value_address(R3, counter);
    let work = [
        high,
        low,
        load_u64(R4, R3, 0),
        add(R4, 1),
        store_u64(R3, 0, R4),
        and(R4, i32::from(FLOWS) - 1),
        // Both are big-endian words; their low bytes are their second ones.
        store_u8(R2, UDP_AT as i16 + 1, R4),
        set(R5, 0xff),
        subtract_register(R5, R4),
        store_u8(R2, PAYLOAD_AT as i16 + 1, R5),
    ];
    let mut program = vec![
        load_u32(R2, R1, XDP_DATA[0]),
        load_u32(R3, R1, XDP_DATA[1]),
        copy(R4, R2),
        add(R4, FRAME_LEN as i32),
        jump_if_greater(R4, R3, (work.len() + ending.len()) as i16),
    ];
    program.extend(work);
    program.extend(ending);
    program.extend([set(R0, XDP_ABORTED), EXIT]);
    program
}

/// A program of this kind that counts and drops the generator's frames and lets others pass.
pub fn sink(kind: Kind, counter: RawFd) -> Vec<u64> {
    let (data, drop, next) = match kind {
        Kind::Classifier => (SKB_DATA, TCX_DROP, TCX_NEXT),
        Kind::Xdp => (XDP_DATA, XDP_DROP, XDP_PASS),
    };
    let [high, low] = load_value_address(R6, counter);
    let work = [high, low, set(R2, 1), atomic_add_u64(R6, R2), set(R0, drop), EXIT];
    let port = i32::from(u16::from_ne_bytes(UDP_PORT.to_be_bytes()));
    let mut program = vec![
        load_u32(R2, R1, data[0]),
        load_u32(R3, R1, data[1]),
        copy(R4, R2),
        add(R4, FRAME_LEN as i32),
        jump_if_greater(R4, R3, work.len() as i16 + 2),
        load_u16(R5, R2, UDP_AT as i16 + 2),
        jump_if_not(R5, port, work.len() as i16),
    ];
    program.extend(work);
    program.extend([set(R0, next), EXIT]);
    program
}

/// A TCX program that drops each frame.
pub fn drop_all() -> Vec<u64> {
    vec![set(R0, TCX_DROP), EXIT]
}

/// A program, TCX or XDP, that sends each frame out of an interface.
pub fn redirect(ifindex: u32) -> Vec<u64> {
    vec![set(R1, ifindex as i32), set(R2, 0), call(HELPER_REDIRECT), EXIT]
}

/// An XDP program that sends each frame out of the interface that a [`super::bpf::DeviceMap`] holds.
pub fn redirect_by_map(map: RawFd) -> Vec<u64> {
    let load = [instruction(0x18, R1, PSEUDO_MAP, 0, map), 0];
    [&load[..], &[set(R2, 0), set(R3, 0), call(HELPER_REDIRECT_MAP), EXIT]].concat()
}

/// A TCX program that puts these tags before each frame: protocol and control information of each, the outer one last.
pub fn push_vlans(tags: &[(u16, u16)]) -> Vec<u64> {
    let push = |(protocol, tci): &(u16, u16)| {
        let protocol = i32::from(u16::from_ne_bytes(protocol.to_be_bytes()));
        [copy(R1, R6), set(R2, protocol), set(R3, i32::from(*tci)), call(HELPER_VLAN_PUSH)]
    };
    let mut program = vec![copy(R6, R1)];
    program.extend(tags.iter().flat_map(push));
    program.extend([set(R0, TCX_NEXT), EXIT]);
    program
}

/// A TCX program that takes as many tags off frames whose outer tag is this one, and leaves others alone.
pub fn pop_vlans(outer: u16, count: usize) -> Vec<u64> {
    let pops = [copy(R1, R6), call(HELPER_VLAN_POP)].repeat(count);
    let mut program =
        vec![copy(R6, R1), load_u32(R2, R1, SKB_VLAN_TCI), jump_if_not(R2, outer.into(), pops.len() as i16)];
    program.extend(pops);
    program.extend([set(R0, TCX_NEXT), EXIT]);
    program
}

/// An XDP program that does nothing: with one, a veth polls, and takes frames from XDP.
pub fn pass() -> Vec<u64> {
    vec![set(R0, XDP_PASS), EXIT]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        // r1 = 1; r0 = *(u32 *)(r1 + 4)
        if cfg!(target_endian = "little") {
            assert_eq!(set(R1, 1).to_ne_bytes(), [0xb7, 0x01, 0, 0, 1, 0, 0, 0]);
            assert_eq!(load_u32(R0, R1, 4).to_ne_bytes(), [0x61, 0x10, 4, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn jumps_end_in_the_programs() {
        let generators = [generator(3, &pass()), generator(3, &redirect(2))];
        let sinks = [sink(Kind::Classifier, 3), sink(Kind::Xdp, 3)];
        for program in generators.iter().chain(&sinks) {
            for (at, word) in program.iter().enumerate() {
                let [opcode, _, low, high, ..] = word.to_ne_bytes();
                if opcode == 0x2d || opcode == 0x55 {
                    let target = at as i32 + 1 + i32::from(i16::from_ne_bytes([low, high]));
                    assert_eq!(target, program.len() as i32 - 2, "the other return");
                }
            }
        }
    }
}
