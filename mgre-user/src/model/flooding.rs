//! What may be flooded: storm limits, and the addresses that bridges keep to one link.

use std::fmt;
use std::str::FromStr;

use mgre_common::storm::MAX_STORM_LIMIT;
use mgre_common::wire::PAUSE_GROUP;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::types::{NumberOrWord, ParseError};

/// How many frames a second a port or a peer may have flooded: broadcast, multicast, unknown destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StormLimit {
    /// As many as it sends.
    #[default]
    Off,
    /// So many, one at least.
    Frames(u32),
}

impl StormLimit {
    /// As the datapath has it: zero for none.
    pub const fn frames_per_second(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Frames(frames) => frames,
        }
    }
}

impl NumberOrWord for StormLimit {
    const WANTED: &'static str =
        "a storm limit is a number of frames a second from 1 to 100000000, or \"off\"";
    const WORD: (&'static str, Self) = ("off", Self::Off);

    fn from_number(number: u64) -> Option<Self> {
        let frames = u32::try_from(number).ok()?;
        (1..=MAX_STORM_LIMIT).contains(&frames).then_some(Self::Frames(frames))
    }

    fn number(self) -> Option<u32> {
        match self {
            Self::Off => None,
            Self::Frames(frames) => Some(frames),
        }
    }
}

impl fmt::Display for StormLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Frames(frames) => write!(f, "{frames}"),
        }
    }
}

impl FromStr for StormLimit {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        NumberOrWord::parse(text)
    }
}

impl Serialize for StormLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.write(serializer)
    }
}

impl<'de> Deserialize<'de> for StormLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer)
    }
}

/// Which of the sixteen group addresses that bridges keep to one link (802.1Q 8.6.3) a segment passes.
/// That of pause frames is never among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLocal(u16);

/// What is sent to some of the addresses, by the last octet's lower half.
const NAMES: [(u16, &str); 6] =
    [(0, "stp"), (2, "lacp"), (3, "eapol"), (7, "elmi"), (0xd, "mvrp"), (0xe, "lldp")];

const WANTED: ParseError = ParseError(
    "link-local is \"forward\", \"drop\", or a list of what passes: stp, lacp, eapol, elmi, mvrp, lldp, 0x0 to 0xf (but 0x1, pause)",
);

impl LinkLocal {
    /// All but pause frames: the segment is a long cable.
    pub const FORWARD: Self = Self(!(1 << PAUSE_GROUP));
    /// None: the segment is a bridge.
    pub const DROP: Self = Self(0);

    /// Those that do not pass.
    pub const fn blocked(self) -> u16 {
        !self.0
    }

    fn one(name: &str) -> Option<u16> {
        let number = match name.strip_prefix("0x") {
            Some(digits) if digits.len() == 1 => u16::from_str_radix(digits, 16).ok()?,
            Some(_) => return None,
            None => NAMES.iter().find(|(_, known)| *known == name)?.0,
        };
        (u32::from(number) != PAUSE_GROUP).then_some(number)
    }
}

impl Default for LinkLocal {
    fn default() -> Self {
        Self::FORWARD
    }
}

impl fmt::Display for LinkLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::FORWARD => return f.write_str("forward"),
            Self::DROP => return f.write_str("drop"),
            Self(_) => {}
        }
        let mut separator = "";
        for number in (0..16).filter(|number| self.0 >> number & 1 != 0) {
            f.write_str(separator)?;
            match NAMES.iter().find(|(named, _)| *named == number) {
                Some((_, name)) => f.write_str(name)?,
                None => write!(f, "{number:#x}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for LinkLocal {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "forward" => Ok(Self::FORWARD),
            "drop" => Ok(Self::DROP),
            list => list
                .split(',')
                .map(|name| Self::one(name.trim()).ok_or(WANTED))
                .try_fold(Self::DROP, |passed, number| Ok(Self(passed.0 | 1 << number?))),
        }
    }
}

impl Serialize for LinkLocal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LinkLocal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storm_limit_text() {
        for (limit, text) in [(StormLimit::Frames(10_000), "10000"), (StormLimit::Off, "\"off\"")] {
            assert_eq!(serde_json::to_string(&limit).expect("serializes"), text);
            assert_eq!(serde_json::from_str::<StormLimit>(text).expect("parses"), limit);
            assert_eq!(limit.to_string().parse(), Ok(limit));
        }
        for bad in ["0", "-1", "100000001", "on", "1k", ""] {
            assert!(bad.parse::<StormLimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn link_local_text() {
        for (text, blocked) in [
            ("forward", 1 << 1),
            ("drop", 0xffff),
            ("stp", 0xfffe),
            ("stp,lldp", !(1 | 1 << 14)),
            ("lacp,eapol,0x4", !(1 << 2 | 1 << 3 | 1 << 4)),
        ] {
            let parsed: LinkLocal = text.parse().expect("parses");
            assert_eq!(parsed.blocked(), blocked, "{text}");
            assert_eq!(parsed.to_string(), text);
            let json = serde_json::to_string(&parsed).expect("serializes");
            assert_eq!(serde_json::from_str::<LinkLocal>(&json).expect("parses"), parsed);
        }
        assert_eq!(" lldp , stp".parse::<LinkLocal>().expect("parses").to_string(), "stp,lldp");
        for bad in ["", "pause", "0x1", "0x10", "0x", "stp,", "1", "Forward", "stp lldp"] {
            assert!(bad.parse::<LinkLocal>().is_err(), "{bad}");
        }
    }
}
