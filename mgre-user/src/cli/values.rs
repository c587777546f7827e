//! Values of arguments, read from text.

use super::args::{Key, Metrics};
use crate::model::{Tos, check};

/// A number as C writes it: decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

pub(super) fn key(text: &str) -> Result<Key, &'static str> {
    number(text).map(|key| Key(Some(key))).ok_or("a GRE key is a number from 0 to 4294967295")
}

pub(super) fn key_or_none(text: &str) -> Result<Key, &'static str> {
    if text == "none" { Ok(Key(None)) } else { key(text) }
}

pub(super) fn vsid(text: &str) -> Result<Key, String> {
    let vsid = number(text).ok_or("a VSID is a number from 4096 to 16777214")?;
    check::vsid(vsid).map_err(|error| error.to_string())?;
    Ok(Key(Some(vsid)))
}

pub(super) fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("it is on or off"),
    }
}

pub(super) fn tos(text: &str) -> Result<Tos, String> {
    let fixed = || number(text).and_then(|number| u8::try_from(number).ok()).map(Tos::Fixed);
    let inherit = (text == "inherit").then_some(Tos::Inherit);
    let tos = inherit.or_else(fixed).ok_or("a TOS is a number from 0 to 255, or inherit")?;
    check::tos(tos).map_err(|error| error.to_string())?;
    Ok(tos)
}

pub(super) fn metrics(text: &str) -> Result<Metrics, &'static str> {
    if text == "off" {
        return Ok(Metrics(None));
    }
    text.parse()
        .map(|address| Metrics(Some(address)))
        .map_err(|_| "give ADDR:PORT, such as 127.0.0.1:9747, or off")
}

pub(super) fn instance(text: &str) -> Result<String, String> {
    check::name("an instance", text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
