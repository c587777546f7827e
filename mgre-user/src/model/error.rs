//! Why a change cannot be.

use mgre_common::template::Key;

use super::locals::LocalsError;
use super::types::{Mode, Mtu};

/// What an error means to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It names something that is not there.
    NotFound,
    /// It does not go together with something that is there.
    Conflict,
    /// It could never be.
    Invalid,
}

/// Why a change cannot be, in one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No such thing.
    #[error("there is no {noun} {name:?}{known}")]
    NotFound {
        /// What was looked for.
        noun: &'static str,
        /// Its name.
        name: String,
        /// Which there are, if few.
        known: String,
    },
    /// The name is taken.
    #[error("{noun} {name:?} exists already{hint}")]
    Exists {
        /// What was to be added.
        noun: &'static str,
        /// Its name.
        name: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// Two segments may not share a key: packets could not be told apart.
    #[error("segment {segment:?} already has {}: packets of the two could not be told apart", key_text(*.key))]
    KeyTaken {
        /// The key that is there.
        key: Key,
        /// Whose it is.
        segment: String,
    },
    /// NVGRE packets have no checksum and no sequence number.
    #[error(
        "peer {peer:?} cannot have {option} in segment {segment:?}, whose packets are NVGRE: they have neither checksum nor sequence number (RFC 7637 3.2)"
    )]
    NotInNvgre {
        /// The peer.
        peer: String,
        /// What it has or was to have.
        option: &'static str,
        /// The segment.
        segment: String,
    },
    /// There is a port with this name.
    #[error("{name} is already a port of segment {segment:?}; remove it there first (mgre port del {name})")]
    PortTaken {
        /// The name.
        name: String,
        /// Its segment.
        segment: String,
    },
    /// Ports of one interface are attached to in one way.
    #[error("{interface} is attached to with mode {mode} for port {port}; say --mode {mode}")]
    OtherMode {
        /// The interface.
        interface: String,
        /// The mode of its other ports.
        mode: Mode,
        /// One of them.
        port: String,
    },
    /// An interface of the host has no VLANs.
    #[error("{interface} was made for this host, whose frames have no tag; it has no ports for VLANs")]
    VlanOfHost {
        /// The interface.
        interface: String,
    },
    /// An underlay has an address.
    #[error("underlay {interface} needs a local address")]
    NoLocal {
        /// The interface.
        interface: String,
    },
    /// An underlay has one local address for each IP version.
    #[error("underlay {interface}: {error}; to change it, use mgre underlay set")]
    LocalTaken {
        /// The interface.
        interface: String,
        /// What there would be.
        error: LocalsError,
    },
    /// An underlay has settings of its own, not for each address.
    #[error("underlay {interface} has {has}; to change it, use mgre underlay set")]
    UnderlayHas {
        /// The interface.
        interface: String,
        /// What it has.
        has: String,
    },
    /// An underlay cannot be a port, nor a port an underlay.
    #[error("{interface} is {role}, it cannot be {wanted} too")]
    Role {
        /// The interface.
        interface: String,
        /// What it is.
        role: &'static str,
        /// What it was to become.
        wanted: &'static str,
    },
    /// Two peers of one segment with one endpoint could not be told apart.
    #[error("peer {peer:?} in segment {segment:?} already has the remote {remote}")]
    RemoteTaken {
        /// The remote.
        remote: String,
        /// Whose it is.
        peer: String,
        /// Where.
        segment: String,
    },
    /// A peer cannot be this host.
    #[error("{remote} is this host's own endpoint on underlay {interface}; a peer is another host")]
    RemoteIsLocal {
        /// The remote.
        remote: String,
        /// The underlay.
        interface: String,
    },
    /// An address that cannot be an endpoint, or text that is neither address nor DNS name.
    #[error("{address:?} cannot be {role}: {why}")]
    BadEndpoint {
        /// The text.
        address: String,
        /// What it was to be.
        role: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// Something is still in the segment.
    #[error("segment {segment:?} still has {users}; remove them first")]
    SegmentInUse {
        /// The segment.
        segment: String,
        /// Its ports and peers.
        users: String,
    },
    /// A limit is reached.
    #[error("{what} at the limit of {limit}")]
    Full {
        /// What is full.
        what: String,
        /// The limit.
        limit: u32,
    },
    /// All free ids were in use a moment ago.
    #[error("the last free {what} was removed a moment ago; try again in a few seconds")]
    Resting {
        /// What was to be added.
        what: &'static str,
    },
    /// A name that cannot be.
    #[error("{name:?} cannot be the name of {noun}: {why}")]
    BadName {
        /// What was to be named.
        noun: &'static str,
        /// The name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A number out of its range.
    #[error("{what} {value} is out of range: {range}")]
    BadNumber {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: u32,
        /// What it may be.
        range: &'static str,
    },
    /// An MTU out of its range.
    #[error("MTU {mtu} is out of range: {lowest} to {highest} bytes")]
    BadMtu {
        /// The value.
        mtu: Mtu,
        /// The lowest.
        lowest: u32,
        /// The highest.
        highest: u32,
    },
    /// A group address, or zero.
    #[error("{0} is no station's address: it is a group address or zero")]
    BadMac(mgre_common::wire::MacAddr),
    /// A setting that must be given.
    #[error("{0}")]
    Missing(&'static str),
    /// The target of an FDB entry is not in its segment.
    #[error("{noun} {name:?} is not in segment {segment:?}")]
    NotMember {
        /// What was to be the target.
        noun: &'static str,
        /// Its name.
        name: String,
        /// The segment.
        segment: String,
    },
}

fn key_text(key: Key) -> String {
    match key {
        Key::None => "no key".to_owned(),
        Key::Plain(key) => format!("key {key}"),
        Key::Vsid(vsid) => format!("VSID {vsid}, which is the first three bytes of a key"),
    }
}

impl ModelError {
    /// What it means to a client.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. }
            | Self::KeyTaken { .. }
            | Self::NotInNvgre { .. }
            | Self::PortTaken { .. }
            | Self::OtherMode { .. }
            | Self::VlanOfHost { .. }
            | Self::LocalTaken { .. }
            | Self::UnderlayHas { .. }
            | Self::Role { .. }
            | Self::RemoteTaken { .. }
            | Self::RemoteIsLocal { .. }
            | Self::SegmentInUse { .. }
            | Self::Full { .. }
            | Self::Resting { .. }
            | Self::NotMember { .. } => ErrorKind::Conflict,
            Self::BadEndpoint { .. }
            | Self::BadName { .. }
            | Self::BadNumber { .. }
            | Self::BadMtu { .. }
            | Self::BadMac(_)
            | Self::NoLocal { .. }
            | Self::Missing(_) => ErrorKind::Invalid,
        }
    }

    /// That there is no such thing, and which there are.
    pub fn not_found<'a, T: AsRef<str> + ?Sized + 'a>(
        noun: &'static str,
        name: &str,
        existing: impl ExactSizeIterator<Item = &'a T>,
    ) -> Self {
        const FEW: usize = 8;
        let known = match existing.len() {
            0 => format!(" (there is no {noun} yet)"),
            1..=FEW => {
                format!(" (there is: {})", existing.map(T::as_ref).collect::<Vec<_>>().join(", "))
            }
            _ => String::new(),
        };
        Self::NotFound { noun, name: name.to_owned(), known }
    }
}
