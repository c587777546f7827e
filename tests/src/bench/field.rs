//! Who takes part.

use anyhow::Result;

use super::{
    contestant::{Contestant, Kind},
    race::Race,
    stop,
};

/// The contestants that were asked for, each built when the first part needs it.
#[derive(Debug)]
pub struct Field {
    wanted: Vec<Kind>,
    built: Vec<Contestant>,
}

impl Field {
    /// Of these kinds; of all if there are none.
    pub fn new(wanted: &[Kind]) -> Self {
        let wanted = if wanted.is_empty() { &Kind::ALL } else { wanted };
        Self { wanted: wanted.to_vec(), built: Vec::new() }
    }

    /// Those of a race, in the order of [`Kind::ALL`].
    ///
    /// # Errors
    /// One cannot be built.
    pub fn on_start(&mut self, race: Race) -> Result<Vec<&Contestant>> {
        let takes_part = |kind: &Kind| self.wanted.contains(kind) && race.admits(*kind);
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(takes_part).collect();
        for kind in &kinds {
            self.build(*kind)?;
        }
        let find = |kind: &Kind| self.built.iter().find(|one| one.kind == *kind);
        Ok(kinds.iter().filter_map(find).collect())
    }

    /// One of them, if it is wanted.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn one(&mut self, kind: Kind) -> Result<Option<&Contestant>> {
        if self.wanted.contains(&kind) {
            self.build(kind)?;
        }
        Ok(self.built.iter().find(|one| one.kind == kind))
    }

    fn build(&mut self, kind: Kind) -> Result<()> {
        stop::check()?;
        if self.built.iter().all(|one| one.kind != kind) {
            eprintln!("building {}", kind.title());
            self.built.push(Contestant::build(kind)?);
        }
        Ok(())
    }
}
