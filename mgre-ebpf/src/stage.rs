//! The hooks at which a frame is decided about, and what each can look at.

use mgre_common::reason::DropReason;

use crate::frame::{Frame, Strip, Whole};
use crate::neighbor::Scene;
use crate::outer::Claims;
use crate::tables::Tables;
use crate::verify;

/// Which hook decides.
pub trait Stage {
    /// Whether another hook comes after it.
    const EARLY: bool;
    /// Whether checksums may still be left to a device to finish: a sender on this host, or on another guest of the
    /// same one, leaves that to the device, and a virtual one leaves it at that.
    const UNFINISHED: bool = false;
    /// Whether the packet is where it was sent to. (One that comes back has been somewhere else.)
    const ARRIVES: bool = true;
}

/// The hook that every frame can be finished at: TC.
#[derive(Clone, Copy, Debug)]
pub struct Last;

/// The same, for packets that come back from the slow interface.
#[derive(Clone, Copy, Debug)]
pub struct Returned;

/// A hook before that, for known unicast: XDP.
#[derive(Clone, Copy, Debug)]
pub struct Early;

/// How a hook checks what only a look at the whole packet tells.
pub trait Admission<F: Frame>: Stage {
    /// Verifies checksums.
    ///
    /// # Errors
    /// One is wrong.
    fn verify(frame: &F, strip: Strip, claims: Claims) -> Result<(), DropReason>;

    /// Takes note of what ARP or ND say.
    fn listen<T: Tables>(frame: &F, tables: &T, scene: &Scene);
}

impl<F: Frame> Admission<F> for Early {
    /// It leaves packets with checksums to the last hook.
    #[inline(always)]
    fn verify(_: &F, _: Strip, _: Claims) -> Result<(), DropReason> {
        Ok(())
    }

    /// It leaves them to the last hook.
    #[inline(always)]
    fn listen<T: Tables>(_: &F, _: &T, _: &Scene) {}
}

impl<F: Whole> Admission<F> for Last {
    #[inline(always)]
    fn verify(frame: &F, strip: Strip, claims: Claims) -> Result<(), DropReason> {
        verify::checksums(frame, strip, claims)
    }

    #[inline(always)]
    fn listen<T: Tables>(frame: &F, tables: &T, scene: &Scene) {
        frame.listen(tables, scene);
    }
}

impl<F: Whole> Admission<F> for Returned {
    #[inline(always)]
    fn verify(frame: &F, strip: Strip, claims: Claims) -> Result<(), DropReason> {
        Last::verify(frame, strip, claims)
    }

    #[inline(always)]
    fn listen<T: Tables>(frame: &F, tables: &T, scene: &Scene) {
        Last::listen(frame, tables, scene);
    }
}

impl Stage for Last {
    const EARLY: bool = false;
    const UNFINISHED: bool = true;
}

impl Stage for Returned {
    const EARLY: bool = false;
    const ARRIVES: bool = false;
}

impl Stage for Early {
    const EARLY: bool = true;
}
