//! Endpoints given as DNS names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::model::check;
use crate::plan::Endpoints;

/// How long an answer is taken for true.
const FRESH: Duration = Duration::from_secs(60);
/// How soon a name that did not resolve is asked for again.
const RETRY: Duration = Duration::from_secs(5);

/// Resolves names in the background.
#[derive(Debug)]
pub(super) struct Names {
    asked: HashMap<String, Instant>,
    sender: mpsc::UnboundedSender<(String, Endpoints)>,
    answers: mpsc::UnboundedReceiver<(String, Endpoints)>,
}

impl Names {
    pub(super) fn new() -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self { asked: HashMap::new(), sender, answers }
    }

    /// The next answer: a name and the addresses that it has.
    pub(super) async fn next(&mut self) -> (String, Endpoints) {
        match self.answers.recv().await {
            Some((name, endpoints)) => {
                if endpoints == Endpoints::default() {
                    tracing::warn!("{name} does not resolve to an address that an endpoint can have");
                    let retry = Instant::now() + RETRY;
                    self.asked.insert(name.clone(), retry);
                }
                (name, endpoints)
            }
            // Not while `self` holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Asks for those names that were not asked for lately.
    pub(super) fn ask_again<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let now = Instant::now();
        for name in names {
            if self.asked.get(name).is_some_and(|due| now < *due) {
                continue;
            }
            self.asked.insert(name.to_owned(), now + FRESH);
            let (name, sender) = (name.to_owned(), self.sender.clone());
            tokio::spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                let endpoints = endpoints(found.into_iter().flatten().map(|found| found.ip()));
                // The engine has stopped if nobody takes it.
                sender.send((name, endpoints)).ok();
            });
        }
    }
}

/// The first address of each IP version that an endpoint can have.
fn endpoints(found: impl Iterator<Item = IpAddr>) -> Endpoints {
    let mut endpoints = Endpoints::default();
    for address in found.filter(|address| check::endpoint("an endpoint", *address).is_ok()) {
        match address {
            IpAddr::V4(address) => drop(endpoints.v4.get_or_insert(address)),
            IpAddr::V6(address) => drop(endpoints.v6.get_or_insert(address)),
        }
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_address_of_each_version() {
        let found = |texts: &[&str]| endpoints(texts.iter().map(|text| text.parse().expect("an address")));
        let Endpoints { v4, v6 } =
            found(&["fe80::1", "2001:db8::1", "127.0.0.1", "192.0.2.1", "2001:db8::2"]);
        assert_eq!(v4, "127.0.0.1".parse().ok());
        assert_eq!(v6, "2001:db8::1".parse().ok());
        assert_eq!(found(&["fe80::1", "::1"]), Endpoints::default());
    }
}
