//! The project's tests on several kernels.

mod results;
mod selection;
mod tables;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::results::{Loaded, Report};
use super::{
    KERNELS, cache, files,
    guest::{Guest, quoted, strip},
    kernel::{Kernel, Kernels},
    machine::{Ended, Machine},
    qemu::Qemu,
    release::{Flavour, Wanted},
    tools::Extras,
};
use crate::{host, setup, test};

const SLICE_KERNELS: [&str; 3] = ["6.1", "6.12", "newest"];
/// How many guests run at a time.
const GUESTS: usize = 2;
/// Tests have two processors to run into each other on.
const CPUS: u32 = 2;
const MEMORY_MIB: u64 = 3072;
/// How many times as slow as this machine a guest is, generously.
const PATIENCE: u32 = 10;
/// How long one test program may take.
const PROGRAM_LIMIT: Duration = Duration::from_secs(1200);
/// How long a guest may take altogether.
const GUEST_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// The program that says what the kernel makes of mgre.
const PROGRAMS: &str = "programs";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only a few tests, which take some minutes, on three kernels
    #[arg(long)]
    slice: bool,
    /// A kernel, as for a run; may be repeated
    #[arg(long = "kernel", value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Only tests with this in PROGRAM::TEST; may be repeated
    #[arg(long = "test", value_name = "TEXT")]
    tests: Vec<String>,
    /// A file that gets the table, between <!-- matrix --> and <!-- /matrix -->
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A test program, and which of its tests are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selected {
    program: String,
    tests: Vec<String>,
}

/// Programs for guests, by name.
type Programs = Vec<(String, PathBuf)>;

/// What became of a kernel.
#[derive(Clone, Debug)]
struct Examined {
    kernel: String,
    report: Report,
    /// Why the guest did not come to its end.
    trouble: Option<String>,
    /// What its kernel found wrong with itself.
    complaints: Vec<String>,
}

impl Examined {
    /// Whether everything is as it should be. A kernel that mgre says is too old is no failure.
    fn is_good(&self) -> bool {
        let expected = match &self.report.loaded {
            Some(Loaded::Yes { .. }) => self.report.failed() == 0,
            Some(Loaded::No(why)) => why.contains("too old"),
            None => false,
        };
        expected && self.trouble.is_none() && self.complaints.is_empty()
    }
}

pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    setup::run(root, setup::Purpose::Run)?;
    setup::run(root, setup::Purpose::Machines)?;
    let cache = cache(root)?;
    let stripped = cache.join("tests");
    fs::create_dir_all(&stripped)?;
    let (selected, mut programs) = select(root, arguments, &stripped)?;
    ensure!(!selected.is_empty(), "no test has a name like that");
    let mgre = host::build_mgre(root)?;
    // With the tests of a package, cargo builds its programs, too.
    let report = xtask::target_dir(root).join("debug").join(PROGRAMS);
    programs.push((PROGRAMS.to_owned(), strip(&report, &stripped.join(PROGRAMS))?));

    let Some((qemu, kernels)) = fetch(&cache, arguments)? else { return Ok(()) };

    let script = stripped.join("run.sh");
    files::write(&script, script_of(&selected).as_bytes())?;
    let corpus = root.join("tests/fuzz/corpus");
    let guest = Guest {
        machine: Machine {
            cpus: CPUS,
            memory_mib: MEMORY_MIB,
            cards: Vec::new(),
            icount: false,
            qemu: Vec::new(),
            append: String::new(),
            timeout: GUEST_LIMIT,
        },
        extras: Extras::default(),
        mgre: Some(strip(&mgre, &stripped.join("mgre"))?),
        programs,
        files: vec![("run.sh".to_owned(), script), ("fuzz/corpus".to_owned(), corpus)],
        sysctls: Vec::new(),
        out: None,
        command: vec!["sh".to_owned(), "run.sh".to_owned()],
    };
    let examined = examine_all(&cache, &qemu, &kernels, &guest, &selected)?;
    println!("\n{}", tables::text(&examined));
    if let Some(out) = &arguments.out {
        tables::write(out, &examined)?;
        println!("vm: the table is in {}", out.display());
    }
    let bad: Vec<&str> =
        examined.iter().filter(|one| !one.is_good()).map(|one| one.kernel.as_str()).collect();
    ensure!(bad.is_empty(), "not everything is as it should be on: {}", bad.join(", "));
    Ok(())
}

/// The emulator and the kernels. What nobody asked for by name and cannot be fetched is left out, and said so.
fn fetch(cache: &Path, arguments: &Arguments) -> Result<Option<(Qemu, Vec<Kernel>)>> {
    let get = |kernel: &str| Kernels { cache }.get(&Wanted::parse(kernel, Flavour::Cloud), false);
    if !arguments.kernels.is_empty() {
        let kernels = arguments.kernels.iter().map(|kernel| get(kernel)).collect::<Result<_>>()?;
        return Ok(Some((Qemu::get(cache)?, kernels)));
    }
    let qemu = match Qemu::get(cache) {
        Ok(qemu) => qemu,
        Err(error) => {
            println!("SKIP other kernels: there is no emulator: {error:#}");
            return Ok(None);
        }
    };
    let mut kernels = Vec::new();
    for kernel in if arguments.slice { &SLICE_KERNELS[..] } else { &KERNELS[..] } {
        match get(kernel) {
            Ok(kernel) => kernels.push(kernel),
            Err(error) => println!("SKIP {kernel}: the kernel cannot be fetched: {error:#}"),
        }
    }
    Ok((!kernels.is_empty()).then_some((qemu, kernels)))
}

/// Builds the test programs; which of their tests to run, and the programs for guests.
fn select(root: &Path, arguments: &Arguments, stripped: &Path) -> Result<(Vec<Selected>, Programs)> {
    println!("vm: building the tests");
    let packages = ["--package", "mgre-tests", "--package", "mgre-user"];
    let mut selected = Vec::new();
    let mut programs = Vec::new();
    for program in test::build(root, &packages)? {
        let folder = program.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let source = program.folder.join("tests").join(&program.target);
        // Not the unit tests.
        let is_own = source.with_extension("rs").is_file() || source.join("main.rs").is_file();
        if !is_own || !selection::is_about_kernels(folder, &program.target) {
            continue;
        }
        let is_wanted = |test: &str| {
            let name = format!("{}::{test}", program.target);
            selection::left_out(&program.target, test).is_none()
                && (!arguments.slice || selection::in_slice(&program.target, test))
                && (arguments.tests.is_empty()
                    || arguments.tests.iter().any(|text| name.contains(text.as_str())))
        };
        let mut tests = list(&program.executable)?;
        tests.retain(|test| is_wanted(test));
        if !tests.is_empty() {
            let copy = strip(&program.executable, &stripped.join(&program.target))?;
            programs.push((program.target.clone(), copy));
            selected.push(Selected { program: program.target, tests });
        }
    }
    Ok((selected, programs))
}

/// The names of a program's tests.
fn list(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{} does not list its tests", program.display());
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// What a guest runs: says it in the lines that [`results`] reads.
fn script_of(selected: &[Selected]) -> String {
    let mut script = format!(
        "export MGRE_TEST_PATIENCE={PATIENCE} CARGO_MANIFEST_DIR=/job\n\
         said=$({PROGRAMS} 2>/run/said)\n\
         cat /run/said\n\
         echo \"@programs $said\"\n\
         case $said in *'\"loaded\"'*) ;; *) exit 0 ;; esac\n\
         run() {{\n\
         \x20   program=$1\n\
         \x20   shift\n\
         \x20   echo \"@begin $program\"\n\
         \x20   begin=$(date +%s)\n\
         \x20   timeout -s KILL {} \"$program\" --test-threads={CPUS} --exact \"$@\" 2>/run/said\n\
         \x20   code=$?\n\
         \x20   echo\n\
         \x20   sed -n 's/^SKIP /@skip SKIP /p' /run/said\n\
         \x20   echo \"@end $program $code $(($(date +%s) - begin))\"\n\
         }}\n",
        PROGRAM_LIMIT.as_secs()
    );
    for one in selected {
        let words: Vec<String> =
            std::iter::once(&one.program).chain(&one.tests).map(|word| quoted(word)).collect();
        script += &format!("run {}\n", words.join(" "));
    }
    script
}

/// Some kernels at a time.
fn examine_all(
    cache: &Path,
    qemu: &Qemu,
    kernels: &[Kernel],
    guest: &Guest,
    selected: &[Selected],
) -> Result<Vec<Examined>> {
    let queue: Mutex<VecDeque<(usize, &Kernel)>> = Mutex::new(kernels.iter().enumerate().collect());
    let done = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..GUESTS.min(kernels.len()) {
            scope.spawn(|| {
                while let Some((index, kernel)) = next() {
                    let examined = examine(cache, qemu, kernel, guest, selected);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, examined));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    if done.len() != kernels.len() {
        bail!("a thread that runs guests has panicked");
    }
    done.into_iter().map(|(_, examined)| examined).collect()
}

fn examine(
    cache: &Path,
    qemu: &Qemu,
    kernel: &Kernel,
    guest: &Guest,
    selected: &[Selected],
) -> Result<Examined> {
    let release = kernel.release.to_string();
    let log = cache.join(format!("matrix-{release}.log"));
    let mut file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    println!("vm: {release}: begins; its output is in {}", log.display());
    let start = Instant::now();
    let mut bytes = Vec::new();
    let mut shown = 0;
    let ended = guest.run(cache, qemu, kernel, |part| {
        bytes.extend_from_slice(part);
        // A log that cannot be written shows in what is read from it.
        file.write_all(part).ok();
        while let Some(length) = bytes[shown..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&bytes[shown..shown + length]);
            if line.starts_with("@end ") || line.ends_with(" ... FAILED") {
                println!("vm: {release}: {} s: {}", start.elapsed().as_secs(), line.trim_start_matches('@'));
            }
            shown += length + 1;
        }
    });
    let (complaints, trouble) = match ended {
        Ok(Ended { complaints, .. }) => (complaints, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let report = results::parse(&String::from_utf8_lossy(&bytes), selected)?;
    println!(
        "vm: {release}: done after {} s: {} passed, {} failed, {} skipped",
        start.elapsed().as_secs(),
        report.passed(),
        report.failed(),
        report.skipped().values().sum::<usize>()
    );
    Ok(Examined { kernel: release, report, trouble, complaints })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    #[test]
    fn the_guests_script_is_one_and_names_tests_exactly() {
        let selected = [Selected { program: "vlan".into(), tests: vec!["a::b".into(), "c".into()] }];
        let script = script_of(&selected);
        assert!(script.ends_with("run 'vlan' 'a::b' 'c'\n"), "{script}");
        let checked = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success());
    }
}
