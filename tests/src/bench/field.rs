//! Who takes part.

use std::path::PathBuf;

use anyhow::Result;

use super::{contestant::Contestant, kind::Kind, race::Race, stop};

/// The contestants that were asked for, each built when the first part needs it.
#[derive(Debug)]
pub struct Field {
    wanted: Vec<Kind>,
    quick: bool,
    /// The other build of mgre.
    old: Option<PathBuf>,
    built: Vec<Contestant>,
}

impl Field {
    /// Of these kinds; of all if there are none, or of the most telling ones if it must be quick.
    pub fn new(wanted: &[Kind], quick: bool, old: Option<PathBuf>) -> Self {
        let default = |kind: &Kind| wanted.is_empty() && !(quick && kind.is_variant());
        let chosen = |kind: &Kind| default(kind) || wanted.contains(kind);
        let wanted = Kind::ALL.into_iter().filter(chosen).collect();
        Self { wanted, quick, old, built: Vec::new() }
    }

    /// Those of a race, in the order of [`Kind::ALL`].
    ///
    /// # Errors
    /// One cannot be built.
    pub fn on_start(&mut self, race: Race) -> Result<Vec<&Contestant>> {
        let short = self.quick;
        // Who looks in a hurry sees of IPv6 what the programs alone cost.
        let too_long = |kind: Kind| short && kind.is_v6();
        let takes_part = |kind: &Kind| race.admits(*kind) && kind.missing().is_none() && !too_long(*kind);
        let kinds: Vec<Kind> = self.wanted.iter().copied().filter(takes_part).collect();
        self.these(&kinds)
    }

    /// These, whatever was asked for.
    ///
    /// # Errors
    /// One cannot be built.
    pub fn these(&mut self, kinds: &[Kind]) -> Result<Vec<&Contestant>> {
        for kind in kinds {
            self.build(*kind)?;
        }
        let find = |kind: &Kind| self.built.iter().find(|one| one.kind == *kind);
        Ok(kinds.iter().filter_map(find).collect())
    }

    /// Who was asked for and cannot take part, and why.
    pub fn absent(&self) -> Vec<String> {
        let why = |kind: &Kind| Some(format!("left out: {}, {}", kind.title(), kind.missing()?));
        self.wanted.iter().filter_map(why).collect()
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
            self.built.push(Contestant::build(kind, self.old.as_deref())?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_part() {
        assert_eq!(Field::new(&[], false, None).wanted, Kind::ALL);
        assert!(!Field::new(&[], true, None).wanted.contains(&Kind::VxlanDefault));
        let asked = [Kind::Direct, Kind::VxlanDefault];
        assert_eq!(Field::new(&asked, true, None).wanted, [Kind::VxlanDefault, Kind::Direct]);
    }

    #[test]
    fn xdp_takes_part_where_no_superframes_are() {
        for kind in Kind::ALL {
            assert!(Race::Xdp.admits(kind));
            assert_eq!(Race::Bulk.admits(kind), !kind.is_xdp());
        }
    }
}
