//! `mgre monitor`, which runs beside the test.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{daemon::Daemon, wait};

/// What `mgre --json monitor` has written so far. Ended when dropped.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Monitor {
    /// Starts it, and waits until it hears of something.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(daemon: &Daemon) -> Result<Self> {
        let mut command = daemon.command(&["--json", "monitor"])?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        thread::spawn({
            let events = Arc::clone(&events);
            move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                for event in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                    events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        let monitor = Self { child, events };
        // A segment comes and goes until that is seen: then all that follows will be.
        let mut names = (0..).map(|number| format!("monitor-{number}"));
        wait::until("the monitor hears", wait::SOON, || {
            let name = names.next().context("no name")?;
            daemon.mgre(&["segment", "add", &name, "--key", "4294967295"])?;
            daemon.mgre(&["segment", "del", &name])?;
            Ok(!monitor.events().is_empty())
        })?;
        Ok(monitor)
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// There is none soon.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::value(what, wait::SOON, || Ok(self.events().into_iter().find(&wanted)))
            .with_context(|| format!("{:?}", self.events()))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).map_or_else(|error| eprintln!("{error}"), |_| ());
    }
}
