//! Endpoints given as DNS names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// How long an answer is taken for true.
const FRESH: Duration = Duration::from_secs(60);
/// How soon a name that did not resolve is asked for again.
const RETRY: Duration = Duration::from_secs(5);

/// Resolves names in the background.
#[derive(Debug)]
pub(super) struct Names {
    asked: HashMap<String, Instant>,
    sender: mpsc::UnboundedSender<(String, Option<IpAddr>)>,
    answers: mpsc::UnboundedReceiver<(String, Option<IpAddr>)>,
}

impl Names {
    pub(super) fn new() -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self { asked: HashMap::new(), sender, answers }
    }

    /// The next answer: a name and its IPv4 address, if it has one.
    pub(super) async fn next(&mut self) -> (String, Option<IpAddr>) {
        match self.answers.recv().await {
            Some((name, address)) => {
                if address.is_none() {
                    tracing::warn!("{name} does not resolve to an IPv4 address");
                    let retry = Instant::now() + RETRY;
                    self.asked.insert(name.clone(), retry);
                }
                (name, address)
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
                let address = found.ok().and_then(|mut found| {
                    found.find(std::net::SocketAddr::is_ipv4).map(|address| address.ip())
                });
                // The engine has stopped if nobody takes it.
                sender.send((name, address)).ok();
            });
        }
    }
}
