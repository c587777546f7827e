//! What is said when the kernel does not take a map or a program.
//!
//! Programs are loaded without a log: to write one takes the verifier minutes for a large program. One that is refused
//! is loaded again, for the verifier's last words, and once more for all that led there; a log that takes too long is
//! left.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Error;
use aya::VerifierLogLevel;

use super::cause::{Surroundings, cause};
use super::link::kernel_error;
use super::load::{Capacity, verifier_log};

/// How long to wait for a log at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many bytes of it are kept: its end says why.
const KEPT: usize = 64 * 1024;
/// Kernels that mgre is tested on.
const KNOWN: &str = "Linux 6.1 to 7.3";

/// What the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The object's maps.
    Maps,
    /// A program, by name.
    Program(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maps => f.write_str("mgre's maps"),
            Self::Program(name) => write!(f, "the program {name}"),
        }
    }
}

/// The kernel refused a map or a program. Its cause is the error of the library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refuses {0}")]
pub struct Refused(pub What);

/// Where a verifier stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// The instruction, if the log has it.
    instruction: Option<String>,
    /// Its last words; empty if it said nothing.
    words: String,
}

impl Verdict {
    /// Out of a log. What follows the last words are statistics.
    fn read(log: &str) -> Self {
        let statistic = |line: &&str| {
            ["processed ", "verification time", "stack depth", "max_states", "peak_states", "mark_read"]
                .iter()
                .any(|start| line.starts_with(start))
        };
        let mut lines =
            log.lines().rev().map(str::trim).filter(|line| !line.is_empty()).skip_while(statistic);
        let words = lines.next().unwrap_or_default();
        if is_instruction(words) {
            return Self { instruction: Some(words.to_owned()), words: String::new() };
        }
        Self {
            instruction: lines.find(|line| is_instruction(line)).map(str::to_owned),
            words: words.to_owned(),
        }
    }
}

/// Whether a line of a log is an instruction: `123: (79) r1 = *(u64 *)(r2 +0)`.
fn is_instruction(line: &str) -> bool {
    line.split_once(": (").is_some_and(|(number, rest)| {
        number.bytes().all(|byte| byte.is_ascii_digit()) && rest.as_bytes().get(2) == Some(&b')')
    })
}

/// Makes an error of [`load`](super::load::load) one that says what to do: one line for what surrounds the process,
/// three for what the verifier does not take.
pub fn explain(
    error: Error,
    object: &'static [u8],
    capacity: Capacity,
    release: &str,
    missing_capabilities: Vec<&'static str>,
    log: &Path,
) -> Error {
    let Some(Refused(what)) = error.downcast_ref::<Refused>().cloned() else { return error };
    let errno = error.chain().find_map(kernel_error);
    let around = Surroundings::read(missing_capabilities);
    let reason = errno.map_or_else(|| error.root_cause().to_string(), |errno| errno.desc().to_owned());
    let first = format!("the kernel ({release}) refuses {what}: {reason}");
    let words = match &what {
        What::Program(name) => words(object, capacity, name),
        What::Maps => Verdict::default(),
    };
    if let Some(cause) = errno.and_then(|errno| cause(errno, &words.words, &around)) {
        return Error::msg(format!("{first}: {cause}"));
    }
    let What::Program(name) = what else {
        return Error::msg(format!("{first}; mgre is known to work on {KNOWN}"));
    };
    let whole = log_within(object, capacity, &name, VerifierLogLevel::DEBUG);
    let written = whole.as_deref().map(|text| (log, fs::write(log, end_of(text))));
    Error::msg(report(&first, whole.as_deref().map(Verdict::read), words, written))
}

/// The three lines.
fn report(
    first: &str,
    whole: Option<Verdict>,
    words: Verdict,
    written: Option<(&Path, std::io::Result<()>)>,
) -> String {
    let instruction = whole.as_ref().and_then(|verdict| verdict.instruction.clone());
    let said = match whole {
        Some(verdict) if words.words.is_empty() => verdict.words,
        _ => words.words,
    };
    let said = if said.is_empty() { "the verifier does not say why".to_owned() } else { said };
    let second = match instruction {
        Some(instruction) => format!("at instruction {instruction}: {said}"),
        None => said,
    };
    let third = match written {
        Some((path, Ok(()))) => format!("please report this with {}", path.display()),
        Some((path, Err(error))) => {
            format!("please report this (the log cannot be written to {}: {error})", path.display())
        }
        None => format!("please report this (there was no log within {} seconds)", PATIENCE.as_secs()),
    };
    format!("{first}\n{second}\nmgre is known to work on {KNOWN}; {third}")
}

/// The last words alone, which take no longer than to be refused.
fn words(object: &'static [u8], capacity: Capacity, program: &str) -> Verdict {
    let log = log_within(object, capacity, program, VerifierLogLevel::STATS);
    log.as_deref().map(Verdict::read).unwrap_or_default()
}

/// The log of a program that is refused, if it is there soon enough. (The thread that waits for the kernel ends with
/// the process.)
fn log_within(
    object: &'static [u8],
    capacity: Capacity,
    program: &str,
    level: VerifierLogLevel,
) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    let program = program.to_owned();
    thread::spawn(move || {
        let log = verifier_log(object, capacity, &program, level);
        sender.send(log).ok();
    });
    receiver.recv_timeout(PATIENCE).ok()?.ok()?
}

/// The last part of a log, from a line's beginning.
fn end_of(log: &str) -> &str {
    let Some(cut) = log.len().checked_sub(KEPT) else { return log };
    let line =
        log.as_bytes()[cut..].iter().position(|byte| *byte == b'\n').map_or(log.len(), |at| cut + at + 1);
    log.get(line..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
func#0 @0
0: R1=ctx(off=0,imm=0) R10=fp0
; let mut frame = Skb::new(&context, true);
0: (bf) r6 = r1                       ; R1=ctx(off=0,imm=0) R6_w=ctx(off=0,imm=0)
1: (79) r0 = *(u64 *)(r2 +0)
R2 !read_ok
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
";

    #[test]
    fn the_verdict_is_at_the_end_of_a_log() {
        let verdict = Verdict::read(LOG);
        assert_eq!(verdict.instruction.as_deref(), Some("1: (79) r0 = *(u64 *)(r2 +0)"));
        assert_eq!(verdict.words, "R2 !read_ok");
        let stats =
            "R2 !read_ok\nverification time 8 usec\nstack depth 0\nprocessed 2 insns (limit 1000000)\n";
        assert_eq!(Verdict::read(stats), Verdict { instruction: None, words: "R2 !read_ok".into() });
        let large =
            "BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit 1000000)\n";
        assert!(Verdict::read(large).words.contains("too large"));
        assert_eq!(Verdict::read(""), Verdict::default());
    }

    #[test]
    fn a_refusal_is_three_lines() {
        let path = Path::new("/run/mgre/default.verifier.log");
        let words = Verdict { instruction: None, words: "R2 !read_ok".into() };
        let whole = Some(Verdict::read(LOG));
        let first = "the kernel (6.1.0) refuses the program mgre_port: Permission denied";
        let text = report(first, whole, words.clone(), Some((path, Ok(()))));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], first);
        assert_eq!(lines[1], "at instruction 1: (79) r0 = *(u64 *)(r2 +0): R2 !read_ok");
        assert!(lines[2].contains("6.1 to 7.3") && lines[2].contains("default.verifier.log"), "{text}");
        let late = report(first, None, words, None);
        assert_eq!(late.lines().count(), 3);
        assert!(late.contains("within 60 seconds"), "{late}");
        assert!(report(first, None, Verdict::default(), None).contains("does not say why"));
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let log = "line\n".repeat(100_000) + "last words\n";
        let kept = end_of(&log);
        assert!(kept.len() <= KEPT && kept.starts_with("line\n") && kept.ends_with("last words\n"));
        assert_eq!(end_of("short\n"), "short\n");
    }
}
