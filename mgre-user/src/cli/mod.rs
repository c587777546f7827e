//! The command line: a client of the API and nothing else, except for `daemon`.
//!
//! - [`args`]: the grammar;
//! - `values`: its values;
//! - [`settings`]: what was typed, turned into what is to be done;
//! - [`run`]: doing it;
//! - [`show`]: answers as text;
//! - [`table`]: aligned columns.

use std::io;
use std::process::ExitCode;

pub mod args;
pub mod run;
pub mod settings;
pub mod show;
pub mod table;
mod values;

#[cfg(test)]
mod tests;

/// Runs the command line of this process. Exit code 0 is done, 1 failed, 2 bad usage.
pub fn main() -> ExitCode {
    let args = args::Args::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let settings = settings::Settings::from(args);
    match run::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mgre: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
