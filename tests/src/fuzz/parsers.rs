//! What people and programs write to the daemon: bodies of requests, configurations, the journal's records, addresses.
//! No text makes a parser panic, and what was read is read again from what is written of it.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use mgre_common::wire::MacAddr;
use mgre_user::api::messages::FdbFilter;
use mgre_user::model::{
    Cidr, Df, Document, Encap, LinkLocal, Locals, Mode, Mtu, PeerSettings, PortSettings, Record,
    SegmentSettings, StormLimit, Tos,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Gives bytes to the parser that the first one says, and checks what it makes of the others.
///
/// # Panics
/// A parser does, or what it read is not read again.
pub fn check(bytes: &[u8]) {
    let Some((which, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match which % 17 {
        0 => toml(text),
        1 => json::<Document>(text),
        2 => json::<SegmentSettings>(text),
        3 => json::<PortSettings>(text),
        4 => json::<PeerSettings>(text),
        5 => json::<Record>(text),
        6 => json::<Locals>(text),
        7 => drop(serde_json::from_str::<FdbFilter>(text)),
        8 => words::<MacAddr>(text),
        9 => words::<Cidr>(text),
        10 => words::<Mtu>(text),
        11 => words::<StormLimit>(text),
        12 => words::<LinkLocal>(text),
        13 => json::<Tos>(text),
        14 => json::<Mode>(text),
        15 => json::<Df>(text),
        _ => json::<Encap>(text),
    }
}

fn toml(text: &str) {
    let Ok(document) = Document::from_toml(text) else { return };
    let written = document.to_toml().expect("a document can be written");
    let again = Document::from_toml(&written).expect("what was written can be read");
    assert_eq!(again, document, "{written}");
    let _changes = document.into_changes();
}

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) {
    let Ok(value) = serde_json::from_str::<T>(text) else { return };
    let written = serde_json::to_string(&value).expect("what was read can be written");
    let again: T = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{written}: {error}"));
    assert_eq!(again, value, "{written}");
}

fn words<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    assert_eq!(written.parse::<T>().ok(), Some(value), "{written}");
}
