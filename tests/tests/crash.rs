//! A daemon that is killed in the middle of a storm of requests.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use mgre_tests::{daemon::Options, http::request, lone::Lone, skip::skipped, wait};

/// Clients at the same time.
const CLIENTS: u32 = 8;
/// Names that each of them has.
const NAMES: u32 = 40;

/// What is known of a peer: there or not, or not known, since the last question was not answered.
type Known = BTreeMap<String, Option<bool>>;

/// Adds and removes peers until the daemon is gone.
fn storm(socket: &Path, client: u32, mut known: Known, answers: &AtomicU32, stop: &AtomicBool) -> Known {
    for number in (0..NAMES).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("p{client}-{number}");
        let there = known.get(&name).copied().flatten() == Some(true);
        let body = format!(r#"{{"remote": "10.{}.0.{}", "segments": ["lan"]}}"#, 100 + client, number + 1);
        let path = format!("/v1/peers/{name}");
        known.insert(name.clone(), None);
        let answer =
            if there { request(socket, "DELETE", &path, "") } else { request(socket, "PUT", &path, &body) };
        match answer.map(|answer| answer.status) {
            Ok(200 | 201) => {
                answers.fetch_add(1, Ordering::Relaxed);
                known.insert(name, Some(!there));
            }
            // It was asked of a daemon that had done it and was killed before it said so.
            Ok(404 | 409) => {
                known.insert(name, Some(!there));
            }
            _ => break,
        }
    }
    known
}

#[test]
fn nothing_that_was_answered_for_is_lost() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut lone = Lone::new(Options::default())?;
    let mut known = vec![Known::new(); CLIENTS as usize];
    for round in 0..3 {
        let (socket, answers, stop) = (lone.daemon.socket(), AtomicU32::new(0), AtomicBool::new(false));
        known = thread::scope(|scope| {
            let clients: Vec<_> = (0..)
                .zip(known)
                .map(|(client, known)| {
                    let (socket, answers, stop) = (&socket, &answers, &stop);
                    scope.spawn(move || storm(socket, client, known, answers, stop))
                })
                .collect();
            let busy = wait::until("the storm is on", wait::SOON, || {
                Ok(answers.load(Ordering::Relaxed) > 150 + 50 * round)
            });
            thread::sleep(Duration::from_millis(u64::from(round) * 7));
            let killed = lone.daemon.kill();
            stop.store(true, Ordering::Relaxed);
            let known: Result<Vec<Known>> = clients
                .into_iter()
                .map(|client| client.join().map_err(|_| anyhow!("a client panicked")))
                .collect();
            busy?;
            killed?;
            known
        })?;
        lone.daemon.start_again()?;
        let export = lone.daemon.mgre(&["export"])?;
        let (mut there, mut asked) = (0, 0);
        for (name, state) in known.iter().flatten() {
            let found = export.contains(&format!("name = \"{name}\"\n"));
            asked += 1;
            there += usize::from(found);
            assert!(
                state.is_none_or(|state| state == found),
                "{name}: {state:?} was answered, {found} is so"
            );
        }
        eprintln!("round {round}: {} answers, {there} of {asked} peers are there", answers.into_inner());
        // From here on it is known.
        for (name, state) in known.iter_mut().flatten() {
            *state = Some(export.contains(&format!("name = \"{name}\"\n")));
        }
        wait::until("the peer is up", wait::SOON, || Ok(lone.peer("b")?["state"] == "up"))?;
    }
    Ok(())
}
