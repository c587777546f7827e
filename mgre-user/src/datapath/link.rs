//! Attaches programs by links that the kernel lets be pinned: TCX and XDP.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::load::{classifier, xdp};
use crate::netlink::Direction;
use crate::plan::{Attachment, XdpMode};

/// Whether the kernel has TCX (since Linux 6.6): asked by looking what is attached to the loopback.
///
/// # Errors
/// The kernel refuses for another reason.
pub fn kernel_has_tcx() -> Result<bool> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(error) => match kernel_error(&error) {
            // BPF_PROG_QUERY knows no such attach type.
            Some(Errno::EINVAL) => Ok(false),
            // There are programs of others, which only CAP_SYS_ADMIN may look at.
            Some(Errno::EPERM) => Ok(true),
            _ => Err(error).context("cannot ask the kernel for TCX"),
        },
    }
}

/// A program at a TCX hook whose link was pinned.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// The interface.
    pub(super) ifindex: u32,
    /// The hook's direction.
    pub(super) direction: Direction,
    /// Its id.
    pub(super) program: u32,
}

impl Ending {
    fn is_attached(&self) -> bool {
        is_attached(self.ifindex, self.direction, self.program).unwrap_or(false)
    }
}

/// Whether a program is at a TCX hook; none if the kernel does not say, as of an interface that is gone.
pub(super) fn is_attached(ifindex: u32, direction: Direction, program: u32) -> Option<bool> {
    let name = if_indextoname(ifindex).ok()?;
    let programs = SchedClassifier::query_tcx(&name.to_string_lossy(), attach_type(direction));
    programs.ok().map(|(_, programs)| programs.iter().any(|attached| attached.id() == program))
}

/// Waits until programs are gone whose pins were removed, for a second at most: the kernel frees links by and by, and
/// until then they run, and go on in programs that must still be there.
pub(super) fn wait_for_end(ending: &[Ending]) {
    const PAUSE: Duration = Duration::from_millis(2);
    const MOST: u32 = 500;
    for _ in 0..MOST {
        if !ending.iter().any(Ending::is_attached) {
            return;
        }
        thread::sleep(PAUSE);
    }
    tracing::warn!("programs of the daemon before are still attached a second after they were taken off");
}

const fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

/// The error number of a system call that failed.
pub(super) fn kernel_error(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error()).map(Errno::from_raw)
}

/// What came of attaching.
pub(super) enum Attached {
    /// The program was swapped into the link that was there.
    TakenOver,
    /// A new link.
    New(FdLink),
}

pub(super) fn attach_tcx(
    programs: &mut Ebpf,
    name: &str,
    direction: Direction,
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
    let id = program.attach_with_options(interface, attach_type(direction), options)?;
    Ok(Attached::New(program.take_link(id)?.try_into()?))
}

pub(super) fn attach_xdp(
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
pub(super) fn check_index(interface: &str, ifindex: u32) -> Result<()> {
    let there = if_nametoindex(interface).ok();
    ensure!(there == Some(ifindex), "cannot attach to {interface}: it is gone, or another interface");
    Ok(())
}
