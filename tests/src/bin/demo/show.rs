//! Steps as they run, with what came of them.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};

/// Shows steps, and counts those that fail.
pub(crate) struct Show {
    steps: u32,
    failed: u32,
    color: bool,
    interrupted: Arc<AtomicBool>,
    throughput: Option<f64>,
}

impl Show {
    /// From here on Ctrl-C ends the demo in order.
    pub(crate) fn new() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Release)).context("cannot catch Ctrl-C")?;
        let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Ok(Self { steps: 0, failed: 0, color, interrupted, throughput: None })
    }

    /// Runs a step: its name, what it does, and the doing, which says what came of it.
    pub(crate) fn step(&mut self, name: &str, what: &str, act: impl FnOnce() -> Result<String>) {
        if self.interrupted() {
            return;
        }
        self.steps += 1;
        // Only a terminal's line can be written over when the step is done.
        let terminal = std::io::stdout().is_terminal();
        if terminal {
            print!("  … {name:<10} {what}");
            std::io::stdout().flush().ok();
        }
        let start = Instant::now();
        let result = act();
        let took = start.elapsed().as_secs_f64();
        let again = if terminal { "\r\x1b[K" } else { "" };
        match result {
            Ok(outcome) => {
                println!("{again}  {} {name:<10} {what}", self.paint("32", "✓"));
                println!("               {outcome}  {}", self.paint("2", &format!("({took:.1} s)")));
            }
            Err(error) => {
                self.failed += 1;
                println!("{again}  {} {name:<10} {what}", self.paint("31", "✗"));
                println!("               {}  ({took:.1} s)", self.paint("31", &format!("{error:#}")));
            }
        }
    }

    /// A heading.
    pub(crate) fn heading(&self, title: &str, explanation: &str) {
        println!("\n{}  {explanation}", self.paint("1", title));
    }

    /// Notes the throughput for the report.
    pub(crate) fn note_throughput(&mut self, bits_per_second: f64) {
        self.throughput = Some(bits_per_second);
    }

    /// The throughput in Gbit/s, if it was measured.
    pub(crate) fn gigabits(&self) -> Option<f64> {
        self.throughput.map(|bits| bits / 1e9)
    }

    /// How many steps there were.
    pub(crate) fn steps(&self) -> u32 {
        self.steps
    }

    /// How many of them failed.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
