//! Rules that the model can be told to get wrong: a fuzzer that does not notice is none.

/// A rule that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Congestion met outside is forgotten.
    CongestionForgotten,
    /// What came out of a tunnel goes into another one, hub or not.
    NoSplitHorizon,
    /// A packet without a key is one with key 0.
    KeylessIsKeyZero,
    /// GRE checksums are not looked at.
    ChecksumsUnread,
    /// A hub takes no hop off.
    HopsKept,
    /// A fixed address may move.
    FixedMoves,
    /// One byte more fits than does.
    OneByteMore,
    /// A sequence number may come twice.
    NumbersTwice,
    /// TCP's maximum segment size stays.
    SizeKept,
    /// What is inside may not be fragmented, and nobody says so.
    NobodyTold,
    /// A port gets a frame that is too long for it.
    PortsTakeAll,
    /// A tag goes through NVGRE.
    TagsThroughNvgre,
    /// A loop probe is a frame like others.
    ProbesForwarded,
    /// Frames from an address that is held elsewhere are flooded.
    HeldFlooded,
    /// A question is answered from an entry that is contested.
    ContestedAnswered,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::CongestionForgotten,
        Self::NoSplitHorizon,
        Self::KeylessIsKeyZero,
        Self::ChecksumsUnread,
        Self::HopsKept,
        Self::FixedMoves,
        Self::OneByteMore,
        Self::NumbersTwice,
        Self::SizeKept,
        Self::NobodyTold,
        Self::PortsTakeAll,
        Self::TagsThroughNvgre,
        Self::ProbesForwarded,
        Self::HeldFlooded,
        Self::ContestedAnswered,
    ];
}
