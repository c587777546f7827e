//! Which instance uses which address of an underlay interface. Two instances with one address would each see the
//! other's packets as its own and drop them, so the second one is refused.
//!
//! A claim is a socket with an abstract name (unix(7)), which there can be one of in a network namespace and which
//! is gone with its process.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

use super::engine::Engine;
use crate::api::messages::Problem;
use crate::model::State;

/// How many may ask who holds a claim between two ticks.
const BACKLOG: i32 = 128;

/// An underlay interface's name and a local address of it.
type Place = (String, IpAddr);

/// What this instance has claimed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<Place, Socket>,
    /// What others had when it was last tried.
    refused: BTreeMap<Place, String>,
}

impl Claims {
    /// Claims an address, if it is not claimed already.
    ///
    /// # Errors
    /// Another instance has it: which process that is.
    fn claim(&mut self, place: &Place) -> Result<(), String> {
        if self.held.contains_key(place) {
            return Ok(());
        }
        let unclaimed = match bind(place) {
            Ok(Some(socket)) => {
                self.held.insert(place.clone(), socket);
                return Ok(());
            }
            Ok(None) => match holder(place) {
                Ok(credentials) if credentials.uid() == geteuid().as_raw() => {
                    return Err(format!("another instance of mgre (process {})", credentials.pid()));
                }
                // Names are free for all: what a user claims is no instance's.
                Ok(credentials) => io::Error::other(format!("user {} has the name", credentials.uid())),
                Err(error) => error,
            },
            Err(error) => error,
        };
        tracing::debug!(error = %unclaimed, "cannot claim {} on {}", place.1, place.0);
        Ok(())
    }

    /// Takes up what others asked, so that there is room for the next who does.
    fn hear(&self) {
        for socket in self.held.values() {
            while socket.accept().is_ok() {}
        }
    }

    /// Lets go of what is not in a state.
    fn keep(&mut self, state: &State) {
        self.held.retain(|place, _| has(state, place));
        self.refused.retain(|place, _| has(state, place));
    }
}

fn has(state: &State, (interface, local): &Place) -> bool {
    state.underlays.get(interface).is_some_and(|underlay| underlay.locals.contains(*local))
}

fn places(state: &State) -> impl Iterator<Item = Place> {
    let place = |(interface, local): (&String, IpAddr)| (interface.clone(), local);
    state
        .underlays
        .iter()
        .flat_map(|(name, underlay)| underlay.locals.iter().map(move |ip| (name, ip)))
        .map(place)
}

/// The abstract name of a claim begins with a zero byte.
fn address((interface, local): &Place) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0mgre/underlay/{interface}/{local}"))
}

/// None if another socket has the name.
fn bind(place: &Place) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match socket.bind(&address(place)?) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(None),
        other => other?,
    }
    // So that others can ask whose it is.
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(Some(socket))
}

/// Who holds a claim.
fn holder(place: &Place) -> io::Result<UnixCredentials> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&address(place)?)?;
    Ok(getsockopt(&socket, PeerCredentials)?)
}

impl Engine {
    /// Claims what a state has and this one has not.
    ///
    /// # Errors
    /// Another instance has it.
    pub(super) fn claim_new(&mut self, old: &State, new: &State) -> Result<(), Problem> {
        for place in places(new).filter(|place| !has(old, place)) {
            self.claims.claim(&place).map_err(|holder| {
                let (interface, local) = &place;
                Problem::conflict(format!(
                    "{holder} has {local} on {interface}: make the segment one of its, or use another address \
                     (ip address add)"
                ))
            })?;
        }
        Ok(())
    }

    /// Lets go of what a change that was not made would have needed.
    pub(super) fn keep_claims(&mut self) {
        self.claims.keep(&self.state);
    }

    /// Claims what is in force and not claimed yet, and says what others have.
    pub(super) fn claim_again(&mut self) {
        self.claims.hear();
        for place in places(&self.state) {
            match self.claims.claim(&place) {
                Ok(()) => drop(self.claims.refused.remove(&place)),
                Err(holder) => {
                    if self.claims.refused.get(&place) != Some(&holder) {
                        let (interface, local) = &place;
                        tracing::error!("{holder} has {local} on {interface}, too: packets of one are lost");
                        self.claims.refused.insert(place, holder);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_instances() {
        let place = |last| ("claims-test".to_owned(), IpAddr::from([192, 0, 2, last]));
        let (mut one, mut two) = (Claims::default(), Claims::default());
        assert_eq!(one.claim(&place(1)), Ok(()));
        assert_eq!(one.claim(&place(1)), Ok(()), "it has it");
        // However often it is asked for.
        for _ in 0..20 {
            let holder = two.claim(&place(1)).expect_err("it is taken");
            assert!(holder.starts_with("another instance of mgre"), "{holder}");
        }
        let holder = Claims::default().claim(&place(1)).expect_err("it is taken");
        assert!(holder.starts_with("another instance of mgre"), "{holder}");
        assert_eq!(two.claim(&place(2)), Ok(()));
        one.keep(&State::default());
        assert_eq!(two.claim(&place(1)), Ok(()), "it was let go");
    }
}
