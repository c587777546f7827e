//! Doing what was asked.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::Context;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

use super::settings::{Command, Settings};
use super::show;
use crate::api::client::{Client, ClientError, encode};
use crate::api::messages::{Applied, Event, FdbFilter, Flushed, StatsView};
use crate::daemon::{self, Clear};
use crate::model::Document;

/// Does what was asked.
///
/// # Errors
/// Why not, in one line.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    match settings {
        Settings::Daemon(options) => {
            log();
            Builder::new_multi_thread().enable_all().build()?.block_on(daemon::run(*options))
        }
        Settings::Client { instance, run_dir, json, command } => {
            let client = Client::new(&run_dir, &instance);
            let left = left_behind(&command, &instance, &run_dir);
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let answer = runtime.block_on(ask(&client, json, command));
            match (answer, left) {
                (Err(error), Some(left)) if is_not_running(&error) => {
                    log_warnings();
                    if daemon::clear(&left)? { Ok(()) } else { Err(error) }
                }
                (answer, _) => answer,
            }
        }
    }
}

/// What `detach` is to remove if there is no daemon.
fn left_behind(command: &Command, instance: &str, run_dir: &Path) -> Option<Clear> {
    let Command::Detach { state_dir, bpffs } = command else { return None };
    let (instance, run_dir) = (instance.to_owned(), run_dir.to_owned());
    Some(Clear { instance, run_dir, state_dir: state_dir.clone(), bpffs: bpffs.clone() })
}

fn is_not_running(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::NotRunning { .. }))
}

/// The daemon logs to stderr; MGRE_LOG says how much.
fn log() {
    let filter = EnvFilter::try_from_env("MGRE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let stderr = io::stderr;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
}

/// What a command does without a daemon warns on stderr, for a person to read.
fn log_warnings() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
}

async fn ask(client: &Client, json: bool, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Change { method, path, body } => {
            warn(&client.send::<Applied>(method, &path, Some(&body)).await?);
            Ok(())
        }
        Command::Flush(filter) => {
            let flushed: Flushed = client.send(Method::POST, "/v1/fdb/flush", Some(&filter)).await?;
            if json { print_json(&flushed) } else { Ok(()) }
        }
        Command::Underlays => list(client, json, "/v1/underlays", show::underlays).await,
        Command::Segments => list(client, json, "/v1/segments", show::segments).await,
        Command::Ports => list(client, json, "/v1/ports", show::ports).await,
        Command::Peers => list(client, json, "/v1/peers", show::peers).await,
        Command::Fdb(filter) => list(client, json, &fdb_path(&filter), show::fdb).await,
        Command::Neighbors(filter) => {
            let path = listing("/v1/neighbors", &[("segment", &filter.segment)]);
            list(client, json, &path, show::neighbors).await
        }
        Command::Stats { drops } => stats(client, json, drops).await,
        Command::Status if json => print_json(&client.get::<Value>("/v1/status").await?),
        Command::Status => print(&show::status(&client.get("/v1/status").await?)),
        Command::Monitor => monitor(client, json).await,
        Command::Apply { file, dry_run, allow_empty } => {
            apply(client, json, &file, [dry_run, allow_empty]).await
        }
        Command::Export => {
            let document: Document = client.get("/v1/config").await?;
            if json { print_json(&document) } else { print(&document.to_toml()?) }
        }
        Command::Detach { .. } => Ok(client.send(Method::POST, "/v1/detach", None::<&()>).await?),
    }
}

/// A list as it came, or as a table.
async fn list<T: DeserializeOwned>(
    client: &Client,
    json: bool,
    path: &str,
    show: impl Fn(&[T]) -> String,
) -> anyhow::Result<()> {
    if json {
        return print_json(&client.get::<Value>(path).await?);
    }
    print(&show(&client.get::<Vec<T>>(path).await?))
}

fn fdb_path(FdbFilter { segment, peer }: &FdbFilter) -> String {
    listing("/v1/fdb", &[("segment", segment), ("peer", peer)])
}

/// A path with the options that are given.
fn listing(path: &str, options: &[(&str, &Option<String>)]) -> String {
    let options: Vec<_> = options
        .iter()
        .filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={}", encode(value))))
        .collect();
    if options.is_empty() { path.to_owned() } else { format!("{path}?{}", options.join("&")) }
}

async fn stats(client: &Client, json: bool, drops: bool) -> anyhow::Result<()> {
    if json {
        let mut stats: Value = client.get("/v1/stats").await?;
        return print_json(&stats[if drops { "drops" } else { "traffic" }].take());
    }
    let stats: StatsView = client.get("/v1/stats").await?;
    print(&if drops { show::drops(&stats.drops) } else { show::traffic(&stats.traffic) })
}

async fn monitor(client: &Client, json: bool) -> anyhow::Result<()> {
    let print_line = |line: &str| {
        let mut out = io::stdout().lock();
        match serde_json::from_str::<Event>(line) {
            Ok(event) if !json => writeln!(out, "{}", show::event(&event))?,
            // An event of a newer daemon is shown as it is.
            _ => writeln!(out, "{line}")?,
        }
        out.flush()
    };
    Ok(client.lines("/v1/events", print_line).await?)
}

async fn apply(
    client: &Client,
    json: bool,
    file: &Path,
    [dry_run, allow_empty]: [bool; 2],
) -> anyhow::Result<()> {
    let name = file.display();
    let text = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.with_context(|| format!("cannot read {name}"))?;
    let document = Document::from_toml(&text).with_context(|| format!("{name}"))?;
    // A daemon that does not know an option refuses it: only what is asked for.
    let allow_empty = if allow_empty { "&allow_empty=true" } else { "" };
    let path = format!("/v1/apply?dry_run={dry_run}{allow_empty}");
    let applied: Applied = client.send(Method::POST, &path, Some(&document)).await?;
    warn(&applied);
    if json {
        return print_json(&applied);
    }
    print(&applied.changed.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn warn(applied: &Applied) {
    for warning in &applied.warnings {
        eprintln!("mgre: warning: {warning}");
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
