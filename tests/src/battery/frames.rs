//! Frames that a station may send: of all kinds, and of all lengths around the edges.

use anyhow::Result;
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6FragmentHeader, Ipv6Header,
    PacketBuilder, PacketBuilderStep, UdpHeader, ip_number,
};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};

use crate::packet::{BROADCAST, ETHERTYPE_EXPERIMENT, Mac, TRANSPARENT_ETHERNET, frame, tagged};

/// Length of Ethernet's header.
const ETHERNET: usize = 14;
/// An 802.1Q tag's protocol.
const VLAN: u16 = 0x8100;
/// An 802.1ad tag's protocol.
const SERVICE_VLAN: u16 = 0x88a8;

/// A frame with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it is; begins with its kind.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Who sends and who is to get them: the last byte of their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sender's number.
    pub from: u8,
    /// The receiver's number.
    pub to: u8,
}

/// The MAC address of a station that exists in hand-made frames alone. Hosts neither take what is for it nor answer.
pub const fn mac(number: u8) -> Mac {
    [0x02, 0, 0, 0, number, 0xbb]
}

/// Its IPv4 address.
const fn v4(number: u8) -> [u8; 4] {
    [10, 77, 0, 100 + number]
}

/// Its IPv6 address.
const fn v6(number: u8) -> [u8; 16] {
    [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, number]
}

/// Makes frames from one to the other.
struct Maker {
    ends: Ends,
    random: SmallRng,
    made: Vec<Named>,
}

impl Maker {
    fn add(&mut self, name: impl Into<String>, bytes: Vec<u8>) {
        self.made.push(Named { name: name.into(), bytes });
    }

    /// To the other station.
    fn unicast(&mut self, name: impl Into<String>, ethertype: u16, payload: &[u8]) {
        self.add(name, frame(mac(self.ends.to), mac(self.ends.from), ethertype, payload));
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut noise = vec![0; length];
        self.random.fill_bytes(&mut noise);
        noise
    }

    fn ethernet(&self, destination: Mac) -> PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2(mac(self.ends.from), destination)
    }

    /// A UDP datagram with so many bytes in it.
    fn udp(&mut self, is_v4: bool, data: usize) -> Result<Vec<u8>> {
        let payload = self.noise(data);
        let ethernet = self.ethernet(mac(self.ends.to));
        let mut bytes = Vec::new();
        let Ends { from, to } = self.ends;
        if is_v4 {
            let ip = IpHeaders::Ipv4(self.ipv4_header(ip_number::UDP, 0)?, Ipv4Extensions::default());
            ethernet.ip(ip).udp(5000, 9).write(&mut bytes, &payload)?;
        } else {
            ethernet.ipv6(v6(from), v6(to), 64).udp(5000, 9).write(&mut bytes, &payload)?;
        }
        Ok(bytes)
    }

    fn ipv4_header(&self, protocol: IpNumber, payload: usize) -> Result<Ipv4Header> {
        let Ends { from, to } = self.ends;
        let mut header = Ipv4Header::new(u16::try_from(payload)?, 64, protocol, v4(from), v4(to))?;
        header.identification = 77;
        // It may be cut: what may not, and is too long for a path, is not carried but answered.
        header.dont_fragment = false;
        Ok(header)
    }

    fn ipv4(&mut self, name: &str, mut header: Ipv4Header, payload: &[u8]) {
        header.header_checksum = header.calc_header_checksum();
        self.unicast(name, 0x0800, &[&header.to_bytes()[..], payload].concat());
    }

    /// Who asks for an address of the stations' network that nobody has, 10.77.0.1`wanted`.
    fn arp(&self, wanted: u8) -> Vec<u8> {
        let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
        let Ends { from, .. } = self.ends;
        [&fixed[..], &mac(from), &v4(from), &[0; 6], &v4(wanted)].concat()
    }

    fn internet(&mut self, mtu: usize) -> Result<()> {
        for data in [1, 18, 19, 20, 21, 64, 65, 333, 1000, mtu - 28] {
            let bytes = self.udp(true, data)?;
            self.add(format!("ipv4 udp {data}"), bytes);
        }
        for data in [1, 12, 13, 500, mtu - 48] {
            let bytes = self.udp(false, data)?;
            self.add(format!("ipv6 udp {data}"), bytes);
        }
        let mut padded = self.udp(true, 2)?;
        padded.resize(60, 0);
        self.add("ipv4 udp 2 padded", padded);

        let data = self.noise(64);
        let mut first = self.ipv4_header(ip_number::UDP, 64)?;
        first.more_fragments = true;
        self.ipv4("ipv4 first fragment", first, &data);
        let mut later = self.ipv4_header(ip_number::UDP, 64)?;
        later.fragment_offset = IpFragOffset::try_new(5)?;
        self.ipv4("ipv4 later fragment", later, &data);
        let mut marked = self.ipv4_header(ip_number::UDP, 64)?;
        (marked.dscp, marked.ecn, marked.dont_fragment) = (46.try_into()?, 1.try_into()?, true);
        let no_checksum = UdpHeader { source_port: 5000, destination_port: 9, length: 64, checksum: 0 };
        let datagram = [&no_checksum.to_bytes()[..], &data[8..]].concat();
        self.ipv4("ipv4 udp without checksum, EF, ECT(1), DF", marked, &datagram);
        let mut with_options = self.ipv4_header(ip_number::UDP, 64)?;
        // Router alert (RFC 2113).
        with_options.options = (&[0x94, 4, 0, 0][..]).try_into()?;
        with_options.set_payload_len(64)?;
        self.ipv4("ipv4 options", with_options, &datagram);

        let fragment = Ipv6FragmentHeader {
            next_header: ip_number::UDP,
            fragment_offset: IpFragOffset::ZERO,
            more_fragments: true,
            identification: 77,
        };
        let header = Ipv6Header {
            traffic_class: 0,
            payload_length: 8 + 64,
            next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
            hop_limit: 64,
            source: v6(self.ends.from),
            destination: v6(self.ends.to),
            ..Ipv6Header::default()
        };
        let bytes = [&header.to_bytes()[..], &fragment.to_bytes(), &data].concat();
        self.unicast("ipv6 fragment", 0x86dd, &bytes);

        let mut tcp = Vec::new();
        let Ends { from, to } = self.ends;
        let segment = self.ethernet(mac(to)).ipv4(v4(from), v4(to), 64).tcp(5000, 9, 7, 1000).ack(1);
        segment.write(&mut tcp, &data)?;
        self.add("ipv4 tcp segment", tcp);
        Ok(())
    }

    fn groups(&mut self) -> Result<()> {
        let arp = self.arp(97);
        let source = mac(self.ends.from);
        self.add("arp broadcast", frame(BROADCAST, source, 0x0806, &arp));
        self.add(
            "arp broadcast padded",
            frame(BROADCAST, source, 0x0806, &[&self.arp(98)[..], &[0; 18]].concat()),
        );
        self.unicast("arp unicast", 0x0806, &arp);
        for (name, is_v4, group) in [
            ("ipv4 multicast", true, [1, 0, 0x5e, 1, 2, 3]),
            ("ipv6 multicast", false, [0x33, 0x33, 0, 0, 0, 0x77]),
        ] {
            let mut bytes = self.udp(is_v4, 40)?;
            bytes[..6].copy_from_slice(&group);
            self.add(name, bytes);
        }
        Ok(())
    }

    fn others(&mut self, mtu: usize) -> Result<()> {
        for length in [1, 20, 46, 47, 100, mtu] {
            let noise = self.noise(length);
            self.unicast(format!("experiment {length}"), ETHERTYPE_EXPERIMENT, &noise);
        }
        let ip = self.udp(true, 30)?.split_off(ETHERNET);
        // Label 100, bottom of stack, TTL 255.
        self.unicast("mpls", 0x8847, &[&0x0006_41ff_u32.to_be_bytes()[..], &ip].concat());
        let noise = self.noise(52);
        let session = [&[0x11, 0, 0, 1, 0, 32, 0, 0x21][..], &noise[..30]].concat();
        self.unicast("pppoe session", 0x8864, &session);
        self.unicast("llc 802.3", 60, &[&[0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0][..], &noise].concat());
        self.add("lldp", frame([1, 0x80, 0xc2, 0, 0, 0xe], mac(self.ends.from), 0x88cc, &noise));

        let inner = self.udp(true, 60)?;
        let gre = [&[0, 0][..], &TRANSPARENT_ETHERNET.to_be_bytes(), &inner].concat();
        let header = self.ipv4_header(ip_number::GRE, gre.len())?;
        self.ipv4("ipv4 gre in it", header, &gre);
        let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat();
        let udp = UdpHeader::without_ipv4_checksum(50_000, 4789, vxlan.len())?;
        let header = self.ipv4_header(ip_number::UDP, 8 + vxlan.len())?;
        self.ipv4("ipv4 vxlan in it", header, &[&udp.to_bytes()[..], &vxlan].concat());
        Ok(())
    }

    fn tags(&mut self, mtu: usize) -> Result<()> {
        let arp = frame(mac(self.ends.to), mac(self.ends.from), 0x0806, &self.arp(99));
        let noise = self.noise(46);
        let experiment = frame(mac(self.ends.to), mac(self.ends.from), ETHERTYPE_EXPERIMENT, &noise);
        let full = "ipv4 full";
        let inside = [
            ("ipv4", self.udp(true, 40)?),
            ("ipv6", self.udp(false, 40)?),
            ("arp", arp),
            ("experiment", experiment),
            (full, self.udp(true, mtu - 32)?),
        ];
        for (name, bytes) in inside {
            // VLAN 100 with priority 3, and priority 4 alone.
            self.add(format!("vlan 100 {name}"), tagged(&bytes, 0x6064));
            self.add(format!("vlan 0 {name}"), tagged(&bytes, 0x8000));
            if name == full {
                continue;
            }
            self.add(format!("vlan 802.1ad {name}"), tag(&bytes, SERVICE_VLAN, 200));
            self.add(format!("vlan 802.1ad+q {name}"), tag(&tag(&bytes, VLAN, 100), SERVICE_VLAN, 200));
        }
        Ok(())
    }
}

fn tag(bytes: &[u8], protocol: u16, tci: u16) -> Vec<u8> {
    let mut tagged = bytes.to_vec();
    tagged.splice(12..12, [protocol.to_be_bytes(), tci.to_be_bytes()].concat());
    tagged
}

/// All of them; the longest fill an MTU of at least 1200.
///
/// # Errors
/// The MTU is no frame's.
pub fn catalogue(ends: Ends, mtu: usize) -> Result<Vec<Named>> {
    let seed = 7 + u64::from(ends.from) * 256 + u64::from(ends.to);
    let mut maker = Maker { ends, random: SmallRng::seed_from_u64(seed), made: Vec::new() };
    maker.internet(mtu)?;
    maker.groups()?;
    maker.others(mtu)?;
    maker.tags(mtu)?;
    Ok(maker.made)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::packet::checksums_ok;

    #[test]
    fn each_frame_is_another_one_and_none_exceeds_the_mtu() {
        let mtu = 1458;
        let frames = catalogue(Ends { from: 1, to: 2 }, mtu).expect("frames");
        let names: BTreeSet<_> = frames.iter().map(|frame| &frame.name).collect();
        let bytes: BTreeSet<_> = frames.iter().map(|frame| &frame.bytes).collect();
        assert_eq!((names.len(), bytes.len()), (frames.len(), frames.len()));
        let longest = frames.iter().map(|frame| frame.bytes.len()).max();
        assert_eq!(longest, Some(mtu + ETHERNET));
        for frame in &frames {
            assert_eq!(frame.bytes[6..12], mac(1), "{}", frame.name);
        }
    }

    #[test]
    fn ip_inside_is_valid() {
        for frame in catalogue(Ends { from: 2, to: 1 }, 8958).expect("frames") {
            if frame.name.starts_with("ip") {
                assert!(checksums_ok(&frame.bytes).unwrap_or_else(|error| panic!("{}: {error}", frame.name)));
            }
        }
    }
}
