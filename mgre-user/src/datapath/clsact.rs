//! Attaches programs as TC filters: what there was before TCX.
//!
//! A filter is no link and cannot be pinned, but it stays when the daemon goes. It is named after its program and the
//! instance (`mgre_port:default`), and so the next daemon of the instance finds it, with no state that could be wrong,
//! and exchanges its program.
//!
//! Filters hang on the interface's clsact qdisc. Whether an instance of mgre made that is remembered in the bpf file
//! system, by a directory for each interface (only objects can be files there). That lives as long as what it is
//! about, and the last instance on the interface removes the qdisc, whichever made it.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nameindex;

use crate::netlink::{Direction, Filter, Filters};

/// The priority of our filters, the next free one if it is not to be had: those of lower ones come first, those without
/// one of their own come after (tc(8) numbers them from 49152 down). What mgre does not take goes on to them.
const PRIORITY: u16 = 10;

/// A filter of this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// The interface.
    pub(super) ifindex: u32,
    /// Where it hangs.
    pub(super) direction: Direction,
    /// The name of its program.
    pub(super) program: String,
    /// The program's id.
    pub(super) id: u32,
}

/// The filters of an instance.
#[derive(Debug)]
pub(super) struct Clsact {
    filters: Filters,
    instance: String,
    /// The directory of the directories that say which qdiscs are ours.
    made: PathBuf,
    /// The network namespace's number; interfaces of several may have an index.
    namespace: u64,
}

impl Clsact {
    /// For an instance, in the calling thread's network namespace; `made` is where its qdiscs are remembered.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(super) fn new(instance: String, made: PathBuf) -> Result<Self> {
        let filters = Filters::connect()?;
        let namespace = filters.namespace().context("cannot tell the network namespace")?;
        Ok(Self { filters, instance, made, namespace })
    }

    /// Attaches a program: puts it into the filter that an earlier daemon left, between two frames, or makes a new one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn attach(
        &mut self,
        (program, name): (BorrowedFd<'_>, &str),
        ifindex: u32,
        direction: Direction,
    ) -> Result<()> {
        let filter_name = format!("{name}:{}", self.instance);
        let mut there = self.own(ifindex, direction, name)?.into_iter();
        for filter in there.by_ref() {
            if self.filters.replace(ifindex, direction, &filter, program, &filter_name)? {
                for other in there {
                    self.filters.remove(ifindex, direction, &other)?;
                }
                return Ok(());
            }
        }
        self.ensure_qdisc(ifindex, direction)?;
        let added = free_priority(&self.filters.list(ifindex, direction)?).and_then(|priority| {
            Ok(self.filters.add(ifindex, direction, priority, program, &filter_name)?)
        });
        if added.is_err()
            && let Err(error) = self.tidy(ifindex)
        {
            tracing::warn!("{error:#}");
        }
        added
    }

    /// Whether a program is attached.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(super) fn is_attached(
        &mut self,
        (program, id): (&str, u32),
        ifindex: u32,
        direction: Direction,
    ) -> Result<bool> {
        Ok(self.own(ifindex, direction, program)?.iter().any(|filter| filter.program == Some(id)))
    }

    /// Takes a program off. The qdisc stays: see [`Clsact::tidy`].
    ///
    /// # Errors
    /// The kernel refuses. An interface that is gone is none.
    pub(super) fn detach(&mut self, program: &str, ifindex: u32, direction: Direction) -> Result<()> {
        for filter in self.own(ifindex, direction, program)? {
            match self.filters.remove(ifindex, direction, &filter) {
                Err(error) if !error.is_no_interface() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// All filters of the instance.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(super) fn left_behind(&mut self) -> Result<Vec<Own>> {
        let mut found = Vec::new();
        for interface in if_nameindex().context("cannot list interfaces")?.iter() {
            let ifindex = interface.index();
            for direction in Direction::ALL {
                for filter in self.filters.list(ifindex, direction)? {
                    let program = program_of(&filter, &self.instance).map(str::to_owned);
                    if let (Some(program), Some(id)) = (program, filter.program) {
                        found.push(Own { ifindex, direction, program, id });
                    }
                }
            }
        }
        // A qdisc for received frames alone gives its one list for both directions.
        let ingress: Vec<_> =
            found.iter().filter(|own| own.direction == Direction::Ingress).cloned().collect();
        found.retain(|own| {
            own.direction == Direction::Ingress
                || !ingress.contains(&Own { direction: Direction::Ingress, ..own.clone() })
        });
        Ok(found)
    }

    /// Tidies all interfaces, and removes the directory if nothing is left in it.
    ///
    /// # Errors
    /// The kernel refuses, or the directory cannot be read or not be removed.
    pub(super) fn tidy_all(&mut self) -> Result<()> {
        let entries = match fs::read_dir(&self.made) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.made.display()));
            }
        };
        for entry in entries {
            let name = entry?.file_name();
            let marker = name.to_str().and_then(|name| name.split_once('-'));
            let Some((namespace, ifindex)) = marker else { continue };
            if let (Ok(namespace), Ok(ifindex)) = (namespace.parse::<u64>(), ifindex.parse())
                && namespace == self.namespace
            {
                self.tidy(ifindex)?;
            }
        }
        remove_directory(&self.made)
    }

    /// Removes the qdisc if an instance of mgre made it and nobody has a filter there.
    ///
    /// The kernel stops the interface's transmit queues for that, and for making one (`dev_deactivate()` in
    /// `qdisc_graft()` of net/sched/sch_api.c): what is sent in those milliseconds is lost.
    ///
    /// # Errors
    /// The kernel refuses. An interface that is gone is none.
    pub(super) fn tidy(&mut self, ifindex: u32) -> Result<()> {
        let marker = self.marker(ifindex);
        if !marker.exists() {
            return Ok(());
        }
        for direction in Direction::ALL {
            if !self.filters.list(ifindex, direction)?.is_empty() {
                return Ok(());
            }
        }
        match self.filters.remove_clsact(ifindex) {
            Err(error) if !error.is_no_interface() => return Err(error.into()),
            _ => {}
        }
        remove_directory(&marker)
    }

    /// This instance's filters with a program.
    fn own(&mut self, ifindex: u32, direction: Direction, program: &str) -> Result<Vec<Filter>> {
        let mut filters = self.filters.list(ifindex, direction)?;
        filters.retain(|filter| program_of(filter, &self.instance) == Some(program));
        Ok(filters)
    }

    fn marker(&self, ifindex: u32) -> PathBuf {
        self.made.join(format!("{}-{ifindex}", self.namespace))
    }

    /// Sees to it that the interface has a qdisc that filters can hang on.
    fn ensure_qdisc(&mut self, ifindex: u32, direction: Direction) -> Result<()> {
        let marker = self.marker(ifindex);
        let known = marker.exists();
        // First, so that none is left for ever by a daemon that is killed in between.
        fs::create_dir_all(&marker).with_context(|| format!("cannot make {}", marker.display()))?;
        let made = self.filters.add_clsact(ifindex);
        if !known && !matches!(made, Ok(true)) {
            remove_directory(&marker)?;
        }
        if !made? && direction == Direction::Egress && !self.filters.has_clsact(ifindex)? {
            bail!(
                "its ingress qdisc takes no filters for what is sent: replace it (tc qdisc del dev IFACE ingress; \
                 tc qdisc add dev IFACE clsact)"
            );
        }
        Ok(())
    }
}

/// The name of the program of a filter, if the filter is the instance's.
fn program_of<'a>(filter: &'a Filter, instance: &str) -> Option<&'a str> {
    let (program, owner) = filter.name.as_deref()?.split_once(':')?;
    (owner == instance && filter.is_program()).then_some(program)
}

/// The first priority from ours up that others do not use for filters of another kind.
fn free_priority(filters: &[Filter]) -> Result<u16> {
    (PRIORITY..u16::MAX)
        .find(|priority| {
            let mut those = filters.iter().filter(|filter| filter.chain == 0 && filter.priority == *priority);
            those.all(Filter::is_program)
        })
        .context("filters of others use all priorities")
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(kind: &str, priority: u16, name: Option<&str>) -> Filter {
        Filter {
            kind: kind.to_owned(),
            priority,
            handle: 1,
            all_protocols: kind == "bpf",
            program: Some(1),
            name: name.map(str::to_owned),
            chain: 0,
        }
    }

    #[test]
    fn a_filter_says_whose_it_is() {
        let named = |name| filter("bpf", 10, name);
        assert_eq!(program_of(&named(Some("mgre_port:default")), "default"), Some("mgre_port"));
        assert_eq!(program_of(&named(Some("mgre_port:default")), "def"), None);
        assert_eq!(program_of(&named(Some("mgre_port")), "default"), None);
        assert_eq!(program_of(&named(None), "default"), None);
        assert_eq!(program_of(&filter("flower", 10, Some("mgre_port:default")), "default"), None);
    }

    #[test]
    fn others_keep_their_priorities() {
        assert_eq!(free_priority(&[]).expect("free"), 10);
        assert_eq!(free_priority(&[filter("bpf", 10, Some("theirs"))]).expect("shared"), 10);
        let others = [filter("flower", 10, None), filter("u32", 11, None), filter("flower", 13, None)];
        assert_eq!(free_priority(&others).expect("free"), 12);
        let chained = Filter { chain: 3, ..filter("flower", 10, None) };
        assert_eq!(free_priority(&[chained]).expect("free"), 10, "in a chain of its own");
    }
}
