//! Attaches programs to interfaces.
//!
//! A link is pinned as soon as it is made, so that frames go on flowing when
//! the daemon is gone. The next daemon finds the pin and swaps its own program in,
//! which the kernel does between two frames.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::LinkOrder;
use aya::programs::TcAttachType;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use nix::net::if_::if_nametoindex;

use super::load::{
    PORT_PROGRAM, SLOW_PROGRAM, UNDERLAY_PROGRAM, XDP_PORT_PROGRAMS, XDP_UNDERLAY_PROGRAMS, classifier, xdp,
};
use crate::plan::{Attachment, Hook, XdpMode};

/// The programs' attachments.
#[derive(Debug)]
pub struct Attachments {
    directory: PathBuf,
    links: BTreeMap<(u32, Hook), PinnedLink>,
    /// Optional ones that the kernel refused, and its reason.
    refused: BTreeMap<(u32, Hook), String>,
}

/// A hook's program and place.
enum Place {
    Tc(&'static str, TcAttachType),
    /// For packets of one page, and of several.
    Xdp([&'static str; 2]),
}

impl Hook {
    const ALL: [Self; 6] =
        [Self::Underlay, Self::Port, Self::HostPort, Self::XdpUnderlay, Self::XdpPort, Self::Slow];

    /// Which program it is, and where it sits.
    const fn place(self) -> Place {
        match self {
            Self::Underlay => Place::Tc(UNDERLAY_PROGRAM, TcAttachType::Ingress),
            Self::Port => Place::Tc(PORT_PROGRAM, TcAttachType::Ingress),
            Self::HostPort => Place::Tc(PORT_PROGRAM, TcAttachType::Egress),
            Self::Slow => Place::Tc(SLOW_PROGRAM, TcAttachType::Ingress),
            Self::XdpUnderlay => Place::Xdp(XDP_UNDERLAY_PROGRAMS),
            Self::XdpPort => Place::Xdp(XDP_PORT_PROGRAMS),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Underlay => "underlay",
            Self::Port => "port",
            Self::HostPort => "host-port",
            Self::XdpUnderlay => "xdp-underlay",
            Self::XdpPort => "xdp-port",
            Self::Slow => "slow",
        }
    }
}

fn pin_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.name())
}

fn parse_pin_name(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, hook) = name.split_once('-')?;
    let hook = Hook::ALL.into_iter().find(|candidate| candidate.name() == hook)?;
    Some((ifindex.parse().ok()?, hook))
}

impl Attachments {
    /// With pins in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory, links: BTreeMap::new(), refused: BTreeMap::new() })
    }

    /// What an earlier daemon attached and pinned.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn left_behind(directory: &Path) -> Result<Vec<(u32, Hook)>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", directory.display()));
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(parse_pin_name));
        }
        Ok(found)
    }

    /// Where a link is pinned in a directory.
    pub(super) fn pin_in(directory: &Path, ifindex: u32, hook: Hook) -> PathBuf {
        directory.join(pin_name(ifindex, hook))
    }

    fn pin(&self, ifindex: u32, hook: Hook) -> PathBuf {
        Self::pin_in(&self.directory, ifindex, hook)
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
        let pin = self.pin(ifindex, hook);
        let old = open_pin(&pin)?;
        check_index(&attachment.interface, ifindex)?;
        let link = match hook.place() {
            Place::Tc(name, attach_type) => {
                attach_tc(programs, name, attach_type, &attachment.interface, old)
            }
            Place::Xdp(names) => attach_xdp(programs, names, ifindex, attachment, old),
        }
        .with_context(|| format!("cannot attach to {}", attachment.interface))?;
        let pinned = match link {
            // The kernel's link is the pinned one; the file stays.
            Attached::TakenOver => PinnedLink::from_pin(&pin)?,
            Attached::New(link) => {
                remove_file(&pin)?;
                link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?
            }
        };
        self.links.insert((ifindex, hook), pinned);
        Ok(())
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
        let early = |hook: &Hook| matches!(hook, Hook::XdpUnderlay | Hook::XdpPort);
        self.links.keys().filter(move |(_, hook)| early(hook)).map(|(ifindex, _)| *ifindex)
    }

    /// Takes a program off an interface.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach(&mut self, ifindex: u32, hook: Hook) -> Result<()> {
        self.links.remove(&(ifindex, hook));
        self.refused.remove(&(ifindex, hook));
        remove_file(&self.pin(ifindex, hook))
    }

    /// Takes off what an earlier daemon left and this one has no use for.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach_unused(&mut self) -> Result<()> {
        for (ifindex, hook) in Self::left_behind(&self.directory)? {
            if !self.links.contains_key(&(ifindex, hook)) {
                self.detach(ifindex, hook)?;
            }
        }
        Ok(())
    }

    /// Takes everything off and removes the directory.
    ///
    /// # Errors
    /// A pin or the directory cannot be removed.
    pub fn detach_all(&mut self) -> Result<()> {
        self.links.clear();
        self.detach_unused()?;
        remove_directories(&self.directory)
    }
}

/// Removes a pin directory and those above it that are then empty, up to mgre's own.
fn remove_directories(directory: &Path) -> Result<()> {
    let mut directory = directory;
    // links, the instance, the schema version, mgre.
    for _ in 0..4 {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
        let Some(parent) = directory.parent() else { return Ok(()) };
        directory = parent;
    }
    Ok(())
}

/// What came of attaching.
enum Attached {
    /// The program was swapped into the link that was there.
    TakenOver,
    /// A new link.
    New(FdLink),
}

fn attach_tc(
    programs: &mut Ebpf,
    name: &str,
    attach_type: TcAttachType,
    interface: &str,
    old: Option<FdLink>,
) -> Result<Attached> {
    let program = classifier(programs, name)?;
    if let Some(old) = old.and_then(|old| SchedClassifierLink::try_from(old).ok())
        && let Ok(id) = program.attach_to_link(old)
    {
        program.take_link(id)?;
        return Ok(Attached::TakenOver);
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, attach_type, options)?;
    Ok(Attached::New(program.take_link(id)?.try_into()?))
}

fn attach_xdp(
    programs: &mut Ebpf,
    names: [&str; 2],
    ifindex: u32,
    attachment: &Attachment,
    old: Option<FdLink>,
) -> Result<Attached> {
    let hook = attachment.xdp.context("no XDP mode")?;
    let program = xdp(programs, names[usize::from(hook.several_pages)])?;
    if let Some(old) = old.and_then(|old| XdpLink::try_from(old).ok())
        && let Ok(id) = program.attach_to_link(old)
    {
        program.take_link(id)?;
        return Ok(Attached::TakenOver);
    }
    let mode = match hook.mode {
        XdpMode::Native => aya::programs::XdpMode::Driver,
        XdpMode::Generic => aya::programs::XdpMode::Skb,
    };
    let id = program.attach_to_if_index(ifindex, mode)?;
    let link = program.take_link(id)?;
    // One made by netlink is no link that could be pinned.
    Ok(Attached::New(link.try_into().context("the kernel made no link for the XDP program")?))
}

/// The name is what is attached to: it may be another interface's by now.
fn check_index(interface: &str, ifindex: u32) -> Result<()> {
    let there = if_nametoindex(interface).ok();
    ensure!(there == Some(ifindex), "cannot attach to {interface}: it is gone, or another interface");
    Ok(())
}

fn open_pin(pin: &Path) -> Result<Option<FdLink>> {
    match PinnedLink::from_pin(pin) {
        Ok(pinned) => Ok(Some(FdLink::from(pinned))),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => bail!("cannot open {}: {error}", pin.display()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names() {
        for hook in Hook::ALL {
            assert_eq!(parse_pin_name(&pin_name(7, hook)), Some((7, hook)));
        }
        assert_eq!(parse_pin_name("7-xdp-else"), None);
        assert_eq!(parse_pin_name("seven-port"), None);
    }
}
