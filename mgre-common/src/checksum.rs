//! The Internet checksum (RFC 1071), split so that a sum's constant part can be
//! computed once by the daemon and finished by the datapath.
//!
//! All sums are over 16-bit words in network byte order, read as such.

/// Adds `bytes` (the last one padded with zero) to a running sum.
///
/// The sum never overflows for inputs of up to 128 KiB.
pub fn add_bytes(sum: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(sum, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    match rest {
        [last] => sum + (u32::from(*last) << 8),
        _ => sum,
    }
}

/// Folds a running sum to 16 bits, with end-around carry.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum of `bytes`: the ones' complement of their folded sum.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(add_bytes(0, bytes))
}

/// Whether a 20-byte IPv4 header without options carries a right checksum.
///
/// The words are given as five `u32` in any one byte order: a ones' complement
/// sum does not depend on it (RFC 1071 section 2(B)).
#[inline(always)]
pub const fn ipv4_header_ok(words: [u32; 5]) -> bool {
    let mut sum = words[0] as u64;
    sum += words[1] as u64;
    sum += words[2] as u64;
    sum += words[3] as u64;
    sum += words[4] as u64;
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    // At most 0x1ffff is left, and never zero: of all that folds to 0xffff, only these.
    sum == 0xffff || sum == 0x1fffe
}

/// Finishes an IPv4 header checksum: `base` is the folded sum of the header
/// with total length, identification and checksum zero.
#[inline(always)]
pub const fn finish_ipv4(base: u16, total_length: u16, identification: u16) -> u16 {
    !fold(base as u32 + total_length as u32 + identification as u32)
}

/// A folded sum after one of its words was replaced (RFC 1624).
#[inline(always)]
pub const fn replace(base: u16, old: u16, new: u16) -> u16 {
    fold(base as u32 + !old as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_example() {
        assert_eq!(fold(add_bytes(0, &[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn odd_length_is_padded_with_zero() {
        assert_eq!(checksum(&[1, 2, 3]), checksum(&[1, 2, 3, 0]));
    }

    fn words(header: &[u8; 20]) -> [u32; 5] {
        core::array::from_fn(|i| {
            u32::from_ne_bytes([header[4 * i], header[4 * i + 1], header[4 * i + 2], header[4 * i + 3]])
        })
    }

    proptest! {
        #[test]
        fn a_finished_header_verifies(mut header: [u8; 20], length: u16, id: u16) {
            header[2..6].fill(0);
            header[10..12].fill(0);
            let base = fold(add_bytes(0, &header));
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[4..6].copy_from_slice(&id.to_be_bytes());
            header[10..12].copy_from_slice(&finish_ipv4(base, length, id).to_be_bytes());
            prop_assert!(ipv4_header_ok(words(&header)));
            // Any one bit flipped must show.
            for bit in 0..160 {
                let mut bad = header;
                bad[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(!ipv4_header_ok(words(&bad)));
            }
        }

        #[test]
        fn a_replaced_word_is_as_if_it_had_been_there(mut header: [u8; 20], ttl: u8, length: u16, id: u16) {
            header[2..6].fill(0);
            header[10..12].fill(0);
            let base = fold(add_bytes(0, &header));
            let base = replace(base, u16::from(header[8]) << 8, u16::from(ttl) << 8);
            header[8] = ttl;
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[4..6].copy_from_slice(&id.to_be_bytes());
            header[10..12].copy_from_slice(&finish_ipv4(base, length, id).to_be_bytes());
            prop_assert!(ipv4_header_ok(words(&header)));
        }

        #[test]
        fn agrees_with_the_whole_sum(header: [u8; 20]) {
            prop_assert_eq!(ipv4_header_ok(words(&header)), fold(add_bytes(0, &header)) == 0xffff);
        }
    }
}
