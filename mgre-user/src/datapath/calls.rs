//! The programs that others go on in, by a tail call.
//!
//! The kernel empties a program array when nobody outside the kernel has it open any more, even while programs use it.
//! So it is pinned beside the links: frames go on flowing when the daemon is gone. While the daemon runs, it has it
//! open as well.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Array, Map, MapData, ProgramArray};
use mgre_common::{call, map_name};

use super::load::{FORWARD_PROGRAM, REPLICATE_PROGRAM, classifier};

/// Pins are called so, and by a number.
const PIN_PREFIX: &str = "calls-";

/// Enters the programs, which are loaded, into the array.
///
/// # Errors
/// The kernel refuses one, or the object lacks something.
pub(super) fn fill(programs: &mut Ebpf) -> Result<ProgramArray<MapData>> {
    let map = programs.take_map(map_name::CALLS).context("the eBPF object has no program array")?;
    let mut calls = ProgramArray::try_from(map)?;
    for (index, name) in [(call::FORWARD, FORWARD_PROGRAM), (call::FLOOD, REPLICATE_PROGRAM)] {
        let program = classifier(programs, name)?.fd()?;
        calls
            .set(index, program, 0)
            .with_context(|| format!("cannot enter {name} into the program array"))?;
    }
    Ok(calls)
}

/// An array that stays filled.
#[derive(Debug)]
pub(super) struct Calls {
    pin: PathBuf,
    /// Somebody may remove the pin while the daemon runs.
    _open: MapData,
}

impl Calls {
    /// Pins one in a directory that is there.
    ///
    /// # Errors
    /// It cannot be pinned.
    pub(super) fn pin(array: ProgramArray<MapData>, directory: &Path) -> Result<Self> {
        let pinned = pins(directory)?;
        let free = (0_u32..).map(|number| directory.join(format!("{PIN_PREFIX}{number}")));
        let pin = free.take(pinned.len() + 1).find(|pin| !pinned.contains(pin)).context("no free name")?;
        array.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        let open = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        Ok(Self { pin, _open: open })
    }

    /// Removes the pins of earlier daemons in a directory, whose programs must not be attached any more.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub(super) fn remove_others(&self) -> Result<()> {
        let directory = self.pin.parent().context("a pin without a directory")?;
        pins(directory)?.iter().filter(|pin| **pin != self.pin).try_for_each(|pin| remove(pin))
    }

    /// Removes this one's pin. Its programs must not be attached any more.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub(super) fn remove(&self) -> Result<()> {
        remove(&self.pin)
    }

    /// Removes all pins. No program must be attached any more.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub(super) fn remove_all(&self) -> Result<()> {
        self.remove_others()?;
        self.remove()
    }
}

/// Whether a pin is that of such an array.
pub(super) fn is_calls(pin: &Path) -> bool {
    pin.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PIN_PREFIX))
}

fn pins(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if is_calls(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

fn remove(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

/// The ids of the programs in an array of another daemon.
///
/// # Errors
/// It cannot be read.
pub(super) fn programs_in(array: u32) -> Result<Vec<u32>> {
    // Read from outside, an entry is the program's id.
    let data = MapData::from_id(array)?;
    let Ok(entries) = Array::<_, u32>::try_from(Map::Array(data)) else { bail!("not a program array") };
    Ok((0..entries.len()).filter_map(|index| entries.get(&index, 0).ok()).collect())
}
