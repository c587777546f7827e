//! The engine's part in interfaces of the host (`port create`): makes them, makes them again, changes and removes them.

use std::collections::BTreeMap;
use std::fs;
use std::hash::Hasher;
use std::path::Path;
use std::sync::Once;

use imbl::ordmap::DiffItem;
use mgre_common::wire::MacAddr;
use siphasher::sip::SipHasher24;

use super::engine::Engine;
use super::transact::kernel;
use crate::api::messages::Problem;
use crate::model::{HostInterface, State};
use crate::netlink::{self, Link};

/// The other end of a host's interface gets the first of these names that is free.
const PEER_NAME: &str = "mgre%d";
/// What says which machine this is: machine-id(5), and where it was before systemd.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// An interface that cannot be made is tried again after so many seconds, twice as many each time, up to the most.
const AGAIN_SECONDS: u32 = 5;
const AGAIN_SECONDS_MOST: u32 = 60;

/// An interface that could not be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unmade {
    pub(super) why: String,
    /// What was asked for.
    host: HostInterface,
    /// When it is tried again, and how long that is after the last time. What is made in part and deleted again is
    /// news of interfaces itself, so that news do not make it tried earlier.
    again: u32,
    pause: u32,
}

impl Unmade {
    fn new(why: String, host: &HostInterface, before: Option<&Self>, now: u32) -> Self {
        let before = before.filter(|before| before.host == *host);
        let pause = before
            .map_or(AGAIN_SECONDS, |before| (before.pause * 2).clamp(AGAIN_SECONDS, AGAIN_SECONDS_MOST));
        Self { why, host: host.clone(), again: now + pause, pause }
    }

    /// Whether it is too early to try the same again.
    fn rests(&self, host: &HostInterface, now: u32) -> bool {
        self.host == *host && now < self.again
    }
}

impl Engine {
    /// Makes the interfaces that a state wants and the one before did not: all of them, or none.
    ///
    /// # Errors
    /// One cannot be made.
    pub(super) async fn create_interfaces(
        &mut self,
        before: &State,
        next: &State,
    ) -> Result<Vec<u32>, Problem> {
        let mut created = Vec::new();
        for (name, host, segment) in wanted(next) {
            let old = before.ports.get(name).is_some_and(|port| port.created.is_some());
            if old || self.observed.link(name).is_some() {
                continue;
            }
            match self.create_interface(next, name, host, segment).await {
                Ok(index) => created.push(index),
                Err(problem) => {
                    self.delete_interfaces(&created).await;
                    return Err(problem);
                }
            }
        }
        Ok(created)
    }

    /// Makes the interfaces that are wanted and missing: after a reboot, and where somebody deleted one. Each that
    /// cannot be made is named, tried again, and holds nothing else up. Says whether there are new ones.
    pub(super) async fn restore_interfaces(&mut self) -> bool {
        let state = self.state.clone();
        let now = self.datapath.now();
        let (mut made, mut failed) = (false, BTreeMap::new());
        for (name, host, segment) in wanted(&state) {
            let before = self.unmade.remove(name);
            let result = match self.observed.link(name) {
                Some(link) if self.is_ours(link) => continue,
                Some(_) => {
                    let why = "there is another interface with its name: rename that one".to_owned();
                    if before.as_ref().is_none_or(|before| before.why != why) {
                        tracing::warn!("cannot make {name}: {why}");
                    }
                    // Nothing was tried: once the name is free, it is.
                    failed.insert(name.to_owned(), Unmade { why, host: host.clone(), again: now, pause: 0 });
                    continue;
                }
                None => match before {
                    Some(before) if before.rests(host, now) => {
                        failed.insert(name.to_owned(), before);
                        continue;
                    }
                    _ => self.create_interface(&state, name, host, segment).await,
                },
            };
            match result {
                Ok(_) if self.had_interface(name) => {
                    tracing::warn!("somebody deleted {name}: it is made again");
                    made = true;
                }
                Ok(_) => {
                    tracing::info!("made {name}");
                    made = true;
                }
                Err(Problem { detail: why, .. }) => {
                    if before.as_ref().is_none_or(|before| before.why != why) {
                        tracing::warn!("cannot make {name}: {why}; trying again");
                    }
                    failed.insert(name.to_owned(), Unmade::new(why, host, before.as_ref(), now));
                }
            }
        }
        self.unmade = failed;
        made
    }

    /// Whether the datapath has a port's interface.
    fn had_interface(&self, name: &str) -> bool {
        self.state.ports.get(name).is_some_and(|port| self.plan.ports.contains_key(&port.id))
    }

    /// Has interfaces that could not be made tried again, now and then.
    pub(super) fn restore_again(&mut self, now: u32) {
        if self.unmade.values().any(|unmade| unmade.pause > 0 && unmade.again <= now) {
            self.stale.links = true;
            self.catch_up_soon();
        }
    }

    async fn create_interface(
        &mut self,
        state: &State,
        name: &str,
        host: &HostInterface,
        segment: &str,
    ) -> Result<u32, Problem> {
        let segment = state.segments.get(segment).ok_or_else(|| Problem::internal("no segment"))?;
        let mtu = self.compiled.segment_mtu(state, &self.observed, segment);
        let mac = self.host_mac(name, host);
        let (link, _) =
            self.netlink.create_veth(name, PEER_NAME, mac, mtu, &self.alias()).await.map_err(kernel)?;
        self.observed.made.insert(link.index);
        for cidr in &host.addresses {
            if let Err(error) = self.netlink.add_address(link.index, cidr.address, cidr.prefix).await {
                self.delete_interfaces(&[link.index]).await;
                return Err(Problem::internal(format!("{name}: {error}")));
            }
        }
        Ok(link.index)
    }

    /// The MAC of an interface: what was asked for, or else the same each time it is made. None where nothing says
    /// which machine this is: then the kernel draws one.
    fn host_mac(&self, name: &str, host: &HostInterface) -> Option<MacAddr> {
        host.mac.or_else(|| {
            let Some(machine) = machine_id() else {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(
                        "no machine id in {} (machine-id(5)): interfaces get other MAC addresses each time",
                        MACHINE_IDS[0]
                    );
                });
                return None;
            };
            let state = fs::canonicalize(&self.options.state_dir).ok();
            let state = state.as_deref().unwrap_or(&self.options.state_dir);
            Some(derived_mac(&machine, state, &self.options.instance, name))
        })
    }

    /// Gives interfaces that there are what a state says of them.
    ///
    /// # Errors
    /// The kernel refuses. Some may be done then: the same from `next` to `before` undoes it.
    pub(super) async fn alter_interfaces(&self, before: &State, next: &State) -> Result<bool, Problem> {
        let mut altered = false;
        for item in before.ports.diff(&next.ports) {
            let DiffItem::Update { old: (_, old), new: (name, new) } = item else { continue };
            let (Some(old), Some(new)) = (&old.created, &new.created) else { continue };
            let Some(link) = self.observed.link(name).filter(|link| self.is_ours(link)) else { continue };
            if old != new {
                altered = true;
                self.alter_interface(name, link, old, new)
                    .await
                    .map_err(|error| Problem::internal(format!("{name}: {error}")))?;
            }
        }
        Ok(altered)
    }

    async fn alter_interface(
        &self,
        name: &str,
        link: &Link,
        old: &HostInterface,
        new: &HostInterface,
    ) -> netlink::Result<()> {
        for cidr in old.addresses.iter().filter(|cidr| !new.addresses.contains(cidr)) {
            self.netlink.remove_address(link.index, cidr.address, cidr.prefix).await?;
        }
        // All of them: with the first IPv4 address of a network, the kernel removes the others.
        for cidr in &new.addresses {
            match self.netlink.add_address(link.index, cidr.address, cidr.prefix).await {
                Ok(()) | Err(netlink::Error::AddressExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if old.mac != new.mac
            && let Some(mac) = self.host_mac(name, new).filter(|mac| link.mac != Some(*mac))
        {
            self.netlink.set_mac(link.index, mac).await?;
        }
        Ok(())
    }

    /// Deletes interfaces that were made for ports that are gone.
    pub(super) async fn clean_up(&mut self, old: &State) {
        let gone = old.ports.iter().filter(|(name, port)| {
            port.created.is_some() && self.state.ports.get(*name).is_none_or(|port| port.created.is_none())
        });
        let indices: Vec<u32> = gone
            .filter_map(|(name, _)| self.observed.link(name))
            .filter(|link| self.is_ours(link))
            .map(|link| link.index)
            .collect();
        self.delete_interfaces(&indices).await;
    }
}

/// The interfaces that a state has made: name, what is asked of it, and its segment.
fn wanted(state: &State) -> impl Iterator<Item = (&str, &HostInterface, &str)> {
    state
        .ports
        .iter()
        .filter_map(|(name, port)| Some((name.as_str(), port.created.as_ref()?, port.segment.as_str())))
}

fn machine_id() -> Option<String> {
    let ids = MACHINE_IDS.iter().filter_map(|path| fs::read_to_string(path).ok());
    ids.map(|id| id.trim().to_owned()).find(|id| is_machine_id(id))
}

/// "uninitialized" is what images have there, and no machine's.
fn is_machine_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// A station's MAC, locally administered, that is the same for the same four. The state's directory tells apart daemons
/// in different network namespaces of one machine.
fn derived_mac(machine: &str, state_dir: &Path, instance: &str, name: &str) -> MacAddr {
    let mut hasher = SipHasher24::new();
    for part in
        [machine.as_bytes(), state_dir.as_os_str().as_encoded_bytes(), instance.as_bytes(), name.as_bytes()]
    {
        // With their lengths, so that no byte can be taken for another part's.
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    let [mut first, rest @ ..] = hasher.finish().to_le_bytes();
    first = first & !1 | 2;
    MacAddr([first, rest[0], rest[1], rest[2], rest[3], rest[4]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_hex_digits_are_a_machines_id() {
        assert!(is_machine_id("0123456789abcdef0123456789abcdef"));
        for id in ["", "uninitialized", "0123456789abcdef", "0123456789abcdef0123456789abcdeg"] {
            assert!(!is_machine_id(id), "{id}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_tried_less_and_less_often() {
        let host = HostInterface::default();
        let mut unmade = Unmade::new("no".into(), &host, None, 100);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(unmade.pause);
            assert!(unmade.rests(&host, unmade.again - 1) && !unmade.rests(&host, unmade.again));
            unmade = Unmade::new("no".into(), &host, Some(&unmade), unmade.again);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        let other = HostInterface { mac: Some(MacAddr([2, 0, 0, 0, 0, 1])), ..host };
        assert!(!unmade.rests(&other, 0), "what is asked for anew is tried at once");
        assert_eq!(Unmade::new("no".into(), &other, Some(&unmade), 0).pause, 5);
    }

    #[test]
    fn a_derived_mac_is_a_stations_and_always_the_same() {
        let mac = |machine, dir: &str, instance, name| derived_mac(machine, Path::new(dir), instance, name);
        let first = mac("3d12", "/var/lib/mgre", "default", "ov0");
        // What was given out once stays, whatever becomes of the code.
        assert_eq!(first.to_string(), "36:b4:18:aa:52:75");
        assert!(first.is_station() && first.0[0] & 2 != 0, "{first}");
        let others = [
            mac("3d13", "/var/lib/mgre", "default", "ov0"),
            mac("3d12", "/var/lib/mgre2", "default", "ov0"),
            mac("3d12", "/var/lib/mgre", "defaulto", "v0"),
            mac("3d12", "/var/lib/mgre", "default", "ov1"),
        ];
        for (number, mac) in others.iter().enumerate() {
            assert!(*mac != first && !others[..number].contains(mac), "{mac}");
        }
    }
}
