//! Attaches programs to interfaces.
//!
//! A link is pinned as soon as it is made, so that frames go on flowing when
//! the daemon is gone. The next daemon finds the pin and swaps its own program in,
//! which the kernel does between two frames. A filter (`clsact`), in place of a TCX link, stays by itself.
//!
//! A daemon that attaches in another way than the one before attaches its own programs first, and takes the others off
//! then. Until then a frame meets both: TCX comes before the filters, and the second program sees what the first one
//! passed on, untouched, alone. So no frame is handled twice, nor by none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use nix::net::if_::if_indextoname;

use super::calls::Calls;
use super::clsact::{Clsact, Own};
use super::handed::{self, Handed};
use super::link::{Attached, Ending, attach_tcx, attach_xdp, check_index, is_attached, wait_for_end};
use super::load::{
    PORT_PROGRAM, SLOW_PROGRAM, UNDERLAY_PROGRAM, XDP_PORT_PROGRAMS, XDP_UNDERLAY_PROGRAMS, classifier,
};
use super::pins::{self, remove_directories, remove_file};
use crate::netlink::Direction;
use crate::plan::{Attachment, Hook, TcHook};

/// Where an instance's programs are attached, and where that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The instance.
    pub instance: String,
    /// The hook of programs for socket buffers.
    pub tc: TcHook,
    /// The directory of pinned links.
    pub pins: PathBuf,
    /// The directory in which all instances note which qdiscs they made.
    pub qdiscs: PathBuf,
}

/// The programs' attachments.
#[derive(Debug)]
pub struct Attachments {
    tc: TcHook,
    directory: PathBuf,
    clsact: Clsact,
    held: BTreeMap<(u32, Hook), Held>,
    calls: Calls,
    /// Whether the tables that are pinned are this daemon's, not those of the one before.
    handed: bool,
    /// Optional ones that the kernel refused, and its reason.
    refused: BTreeMap<(u32, Hook), String>,
}

/// What holds a program at its hook.
#[derive(Debug)]
enum Held {
    /// For as long as this or the pin is there.
    Link(#[expect(dead_code, reason = "it is held, not used")] PinnedLink),
    /// A filter that runs the program with this id.
    Filter(u32),
}

/// A program of an earlier daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftBehind {
    /// Where it is attached.
    pub hook: Hook,
    /// Its id.
    pub program: u32,
}

/// What an earlier daemon left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The programs that are attached.
    pub programs: Vec<LeftBehind>,
    /// Where it pinned its tables.
    pub pins: PathBuf,
}

/// A hook's program and place.
enum Place {
    Tc(&'static str, Direction),
    /// For packets of one page, and of several.
    Xdp([&'static str; 2]),
}

impl Hook {
    pub(super) const ALL: [Self; 6] =
        [Self::Underlay, Self::Port, Self::HostPort, Self::XdpUnderlay, Self::XdpPort, Self::Slow];

    /// Which program it is, and where it sits.
    const fn place(self) -> Place {
        match self {
            Self::Underlay => Place::Tc(UNDERLAY_PROGRAM, Direction::Ingress),
            Self::Port => Place::Tc(PORT_PROGRAM, Direction::Ingress),
            Self::HostPort => Place::Tc(PORT_PROGRAM, Direction::Egress),
            Self::Slow => Place::Tc(SLOW_PROGRAM, Direction::Ingress),
            Self::XdpUnderlay => Place::Xdp(XDP_UNDERLAY_PROGRAMS),
            Self::XdpPort => Place::Xdp(XDP_PORT_PROGRAMS),
        }
    }

    /// Which one a filter is at.
    fn of(filter: &Own) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| match hook.place() {
            Place::Tc(program, direction) => program == filter.program && direction == filter.direction,
            Place::Xdp(_) => false,
        })
    }
}

impl Attachments {
    /// With pins in a directory, which is made if it is not there; that of the programs that others go on in among
    /// them.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(placement: Placement, calls: ProgramArray<MapData>) -> Result<Self> {
        let Placement { instance, tc, pins: directory, qdiscs } = placement;
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let clsact = Clsact::new(instance, qdiscs)?;
        let calls = Calls::pin(calls, &directory)?;
        Ok(Self {
            tc,
            directory,
            clsact,
            held: BTreeMap::new(),
            calls,
            handed: false,
            refused: BTreeMap::new(),
        })
    }

    /// The hook of programs for socket buffers.
    pub const fn tc_hook(&self) -> TcHook {
        self.tc
    }

    /// The programs that an earlier daemon attached, those at links and those at filters. Those that use all tables
    /// come first.
    ///
    /// # Errors
    /// There are some, but they cannot be looked at.
    pub fn left_behind(&mut self) -> Result<Remains> {
        let mut found = Vec::new();
        for (ifindex, hook) in pins::pinned_in(&self.directory)? {
            if let Some(link) = pins::own_link(&self.pin(ifindex, hook))? {
                found.push(LeftBehind { hook, program: link.info()?.program_id() });
            }
        }
        // Filters do not say of which version they are; one of another leaves its program array there. Its tables are
        // none that could be read.
        if pins::elsewhere(&self.directory)?.is_empty() {
            for filter in self.clsact.left_behind()? {
                found.extend(Hook::of(&filter).map(|hook| LeftBehind { hook, program: filter.id }));
            }
        }
        found.sort_by_key(|left| (left.hook == Hook::Slow, left.hook.is_xdp()));
        Ok(Remains { programs: found, pins: self.directory.clone() })
    }

    /// Where an earlier daemon, of whatever version, attached programs by links that it pinned.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn pinned(directory: &Path) -> Result<Vec<(u32, Hook)>> {
        let mut found = pins::pinned_in(directory)?;
        for other in pins::elsewhere(directory)? {
            found.extend(pins::pinned_in(&other)?);
        }
        Ok(found)
    }

    fn pin(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.directory.join(pins::name(ifindex, hook))
    }

    /// Attaches the hook's program to an interface: swaps it in where an earlier
    /// daemon left a link, makes a new link otherwise.
    ///
    /// # Errors
    /// The kernel refuses, and the interface cannot do without.
    pub fn attach(
        &mut self,
        programs: &mut Ebpf,
        ifindex: u32,
        hook: Hook,
        attachment: &Attachment,
    ) -> Result<()> {
        match self.attach_required(programs, ifindex, hook, attachment) {
            Err(error) if attachment.optional => {
                // A driver may lack queues for XDP, or want an offload turned off first.
                tracing::warn!("{error:#}; doing without {}", hook.name());
                self.refused.insert((ifindex, hook), format!("{:#}", error.root_cause()));
                Ok(())
            }
            result => result,
        }
    }

    fn attach_required(
        &mut self,
        programs: &mut Ebpf,
        ifindex: u32,
        hook: Hook,
        attachment: &Attachment,
    ) -> Result<()> {
        check_index(&attachment.interface, ifindex)?;
        let held = match (hook.place(), self.tc) {
            (Place::Tc(name, direction), TcHook::Clsact) => {
                self.attach_filter(programs, name, ifindex, direction)
            }
            (Place::Tc(name, direction), TcHook::Tcx) => self.attach_link(ifindex, hook, |old| {
                attach_tcx(programs, name, direction, &attachment.interface, old)
            }),
            (Place::Xdp(names), _) => {
                self.attach_link(ifindex, hook, |old| attach_xdp(programs, names, ifindex, attachment, old))
            }
        };
        let held = held.with_context(|| format!("cannot attach to {}", attachment.interface))?;
        self.held.insert((ifindex, hook), held);
        Ok(())
    }

    fn attach_filter(
        &mut self,
        programs: &mut Ebpf,
        name: &str,
        ifindex: u32,
        direction: Direction,
    ) -> Result<Held> {
        let program = classifier(programs, name)?;
        self.clsact.attach((program.fd()?.as_fd(), name), ifindex, direction)?;
        Ok(Held::Filter(program.info()?.id()))
    }

    fn attach_link(
        &self,
        ifindex: u32,
        hook: Hook,
        attach: impl FnOnce(Option<FdLink>) -> Result<Attached>,
    ) -> Result<Held> {
        let pin = self.pin(ifindex, hook);
        let theirs = if pin.exists() { None } else { pins::elsewhere_named(&self.directory, ifindex, hook)? };
        let old = pins::own_link(theirs.as_ref().unwrap_or(&pin))?;
        let pinned = match (attach(old)?, theirs) {
            // The kernel's link is the pinned one; the file stays.
            (Attached::TakenOver, None) => PinnedLink::from_pin(&pin)?,
            (Attached::TakenOver, Some(theirs)) => PinnedLink::from_pin(&theirs)?.unpin()?.pin(&pin)?,
            (Attached::New(link), theirs) => {
                remove_file(&pin)?;
                let pinned = link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
                theirs.iter().try_for_each(|theirs| remove_file(theirs))?;
                pinned
            }
        };
        Ok(Held::Link(pinned))
    }

    /// Puts back filters of ours that somebody else removed or changed, on some interfaces or on all. Says where that
    /// was.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mend(&mut self, programs: &mut Ebpf, interfaces: Option<&BTreeSet<u32>>) -> Result<Vec<u32>> {
        let filters = self.held.iter().filter_map(|((ifindex, hook), held)| match held {
            Held::Filter(program) => Some((*ifindex, *hook, *program)),
            Held::Link(_) => None,
        });
        let asked = |ifindex: u32| interfaces.is_none_or(|interfaces| interfaces.contains(&ifindex));
        let filters: Vec<_> = filters.filter(|(ifindex, ..)| asked(*ifindex)).collect();
        let mut mended = Vec::new();
        for (ifindex, hook, program) in filters {
            let Place::Tc(name, direction) = hook.place() else { continue };
            if self.clsact.is_attached((name, program), ifindex, direction)? || !is_there(ifindex) {
                continue;
            }
            let held = self.attach_filter(programs, name, ifindex, direction)?;
            self.held.insert((ifindex, hook), held);
            mended.push(ifindex);
        }
        Ok(mended)
    }

    /// Attaches again what somebody else took off: links that hold programs no more. Says where that was.
    ///
    /// An XDP program's absence is told by the interfaces that have `lost` theirs, as far as that was looked at.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mend_links(
        &mut self,
        programs: &mut Ebpf,
        wanted: &BTreeMap<(u32, Hook), Attachment>,
        lost: &BTreeSet<u32>,
    ) -> Result<Vec<u32>> {
        let links = self.held.iter().filter(|(_, held)| matches!(held, Held::Link(_)));
        let links: Vec<_> = links.map(|(place, _)| *place).collect();
        let mut mended = Vec::new();
        for (ifindex, hook) in links {
            let attached = match hook.place() {
                Place::Tc(name, direction) => {
                    let program = classifier(programs, name)?.info()?.id();
                    is_attached(ifindex, direction, program).unwrap_or(true)
                }
                Place::Xdp(_) => !lost.contains(&ifindex),
            };
            if let Some(attachment) = wanted.get(&(ifindex, hook)).filter(|_| !attached)
                && check_index(&attachment.interface, ifindex).is_ok()
            {
                self.attach_required(programs, ifindex, hook, attachment)?;
                mended.push(ifindex);
            }
        }
        mended.dedup();
        Ok(mended)
    }

    /// Why the kernel refused a program that the interface does without.
    pub fn refusal(&self, ifindex: u32, hook: Hook) -> Option<&str> {
        self.refused.get(&(ifindex, hook)).map(String::as_str)
    }

    /// Whether no interface had to do without a hook's program.
    pub fn all_attached(&self, hook: Hook) -> bool {
        !self.refused.keys().any(|(_, refused)| *refused == hook)
    }

    /// Interfaces that have an XDP program of ours.
    pub fn xdp_interfaces(&self) -> impl Iterator<Item = u32> {
        self.held.keys().filter(|(_, hook)| hook.is_xdp()).map(|(ifindex, _)| *ifindex)
    }

    /// Takes a program off an interface.
    ///
    /// # Errors
    /// The pin or the filter cannot be removed.
    pub fn detach(&mut self, ifindex: u32, hook: Hook) -> Result<()> {
        let held = self.held.remove(&(ifindex, hook));
        self.refused.remove(&(ifindex, hook));
        if let (Some(Held::Filter(_)), Place::Tc(program, direction)) = (held, hook.place()) {
            self.clsact.detach(program, ifindex, direction)?;
        }
        remove_file(&self.pin(ifindex, hook))?;
        self.tidy(ifindex)
    }

    /// Removes the qdisc that an interface was given, once it has no program any more.
    fn tidy(&mut self, ifindex: u32) -> Result<()> {
        let used = self.held.keys().any(|(held, _)| *held == ifindex);
        if used { Ok(()) } else { self.clsact.tidy(ifindex) }
    }

    /// Takes off what an earlier daemon left and this one has no use for.
    ///
    /// # Errors
    /// A pin or a filter cannot be removed.
    pub fn detach_unused(&mut self) -> Result<()> {
        let mut ending = Vec::new();
        for (ifindex, hook) in pins::pinned_in(&self.directory)? {
            if !matches!(self.held.get(&(ifindex, hook)), Some(Held::Link(_))) {
                ending.extend(unpin(&self.pin(ifindex, hook), ifindex, hook)?);
            }
        }
        for other in pins::elsewhere(&self.directory)? {
            for (ifindex, hook) in pins::pinned_in(&other)? {
                ending.extend(unpin(&other.join(pins::name(ifindex, hook)), ifindex, hook)?);
            }
        }
        wait_for_end(&ending);
        for filter in self.clsact.left_behind()? {
            let (ifindex, direction) = (filter.ifindex, filter.direction);
            let held = Hook::of(&filter).and_then(|hook| self.held.get(&(ifindex, hook)));
            if !matches!(held, Some(Held::Filter(_))) {
                self.clsact.detach(&filter.program, ifindex, direction)?;
                self.tidy(ifindex)?;
            }
        }
        Ok(())
    }

    /// Takes everything off and removes the directories.
    ///
    /// # Errors
    /// A pin, a filter or a directory cannot be removed.
    pub fn detach_all(&mut self) -> Result<()> {
        self.held.clear();
        self.detach_unused()?;
        self.clsact.tidy_all()?;
        self.calls.remove_all()?;
        handed::remove(&self.directory)?;
        remove_directories(&self.directory)
    }

    fn remove_handed(&self) -> Result<()> {
        if self.handed { handed::remove(&self.directory) } else { Ok(()) }
    }

    /// Pins the tables that the next daemon goes on from.
    ///
    /// # Errors
    /// One cannot be pinned.
    pub fn hand_over(&mut self, tables: &Handed) -> Result<()> {
        self.handed = true;
        tables.pin(&self.directory)
    }

    /// Removes the program arrays of earlier daemons. None of their programs runs any more.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn forget_other_calls(&self) -> Result<()> {
        self.calls.remove_others()?;
        pins::elsewhere(&self.directory)?.iter().try_for_each(|other| pins::remove_all(other).map(drop))
    }
}

impl Drop for Attachments {
    fn drop(&mut self) {
        // Where nothing is attached, nothing goes on. (A pin that cannot be removed is removed by the next daemon.)
        if self.held.is_empty()
            && let Err(error) = self.calls.remove().and_then(|()| self.remove_handed())
        {
            tracing::debug!("{error:#}");
        }
    }
}

/// Removes a pin. If it held a program at a TCX hook, that is said.
fn unpin(pin: &Path, ifindex: u32, hook: Hook) -> Result<Option<Ending>> {
    let mut ending = None;
    if let (Some(link), Place::Tc(_, direction)) = (pins::own_link(pin)?, hook.place()) {
        ending = Some(Ending { ifindex, direction, program: link.info()?.program_id() });
    }
    remove_file(pin)?;
    Ok(ending)
}

/// Takes off what daemons of an instance left, of whatever version. Says whether there was anything. `base` is the
/// directory of all pins.
///
/// # Errors
/// A pin, a filter or a directory cannot be removed.
pub fn clear(instance: &str, base: &Path) -> Result<bool> {
    let mut found = clear_pins(instance, base)?;
    let mut clsact = Clsact::new(instance.to_owned(), base.join("qdiscs"))?;
    for filter in clsact.left_behind()? {
        found = true;
        clsact.detach(&filter.program, filter.ifindex, filter.direction)?;
        clsact.tidy(filter.ifindex)?;
    }
    clsact.tidy_all()?;
    // Not if another instance has something there.
    fs::remove_dir(base).ok();
    Ok(found)
}

/// Takes off links alone, which are wherever they were attached, and touches nothing in this network namespace.
///
/// # Errors
/// A pin or a directory cannot be removed.
pub fn clear_pins(instance: &str, base: &Path) -> Result<bool> {
    let mut found = false;
    for version in pins::entries(base)? {
        found |= pins::remove_all(&version.join(instance).join("links"))?;
    }
    Ok(found)
}

fn is_there(ifindex: u32) -> bool {
    if_indextoname(ifindex).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_at_one_hook() {
        let own = |program: &str, direction| Own { ifindex: 7, direction, program: program.into(), id: 1 };
        assert_eq!(Hook::of(&own(PORT_PROGRAM, Direction::Ingress)), Some(Hook::Port));
        assert_eq!(Hook::of(&own(PORT_PROGRAM, Direction::Egress)), Some(Hook::HostPort));
        assert_eq!(Hook::of(&own(UNDERLAY_PROGRAM, Direction::Ingress)), Some(Hook::Underlay));
        assert_eq!(Hook::of(&own(UNDERLAY_PROGRAM, Direction::Egress)), None);
        assert_eq!(Hook::of(&own(XDP_PORT_PROGRAMS[0], Direction::Ingress)), None);
    }
}
