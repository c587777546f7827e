//! A guest's machine: what it is made of, and what becomes of it.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{kernel::Kernel, qemu::Qemu};

/// How often to look whether it has ended.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long a guest may take to switch itself off.
const OFF_LIMIT: Duration = Duration::from_secs(20);
/// How much of the console an error shows.
const CONSOLE_LINES: usize = 25;
/// What the kernel needs beside its file systems.
const LEAST_MEMORY: u64 = 256;

/// For speed under emulation, and so that a kernel that is lost says so and ends.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable \
                                no_timer_check cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 audit=0 \
                                apparmor=0 selinux=0 net.ifnames=0";

/// Cards of one kind, joined in pairs: the first with the second, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cards {
    /// qemu's name of the device.
    pub(super) driver: String,
    pub(super) count: u32,
    /// qemu's properties of each, `,a=b`.
    pub(super) properties: String,
}

impl std::str::FromStr for Cards {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text} is not DRIVER=N or DRIVER=N,PROPERTY=VALUE...; for example igb=4");
        let (driver, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (count, properties) = rest.find(',').map_or((rest, ""), |at| rest.split_at(at));
        let count = count.parse().map_err(|_| wrong())?;
        if driver.is_empty() || count == 0 {
            return Err(wrong());
        }
        Ok(Self { driver: driver.to_owned(), count, properties: properties.to_owned() })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) cpus: u32,
    pub(super) memory_mib: u64,
    pub(super) cards: Vec<Cards>,
    /// Whether the guest's clock counts instructions.
    pub(super) icount: bool,
    /// More words for qemu.
    pub(super) qemu: Vec<String>,
    /// More words for the kernel.
    pub(super) append: String,
    pub(super) timeout: Duration,
}

/// How it ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    /// The command's exit code.
    pub(super) code: u8,
    /// What the guest's kernel found wrong with itself.
    pub(super) complaints: Vec<String>,
}

/// Boots the kernel in `folder`, where `initrd` is and where its console and results are put, and hands on what its
/// command prints.
pub(super) fn boot(
    qemu: &Qemu,
    kernel: &Kernel,
    machine: &Machine,
    folder: &Path,
    mut output: impl FnMut(&[u8]) + Send,
) -> Result<Ended> {
    let initrd_mib = fs::metadata(folder.join("initrd"))?.len() / (1 << 20);
    let least = LEAST_MEMORY + 2 * initrd_mib;
    ensure!(
        machine.memory_mib >= least,
        "the guest's files need {least} MiB of memory; --memory {} is too little",
        machine.memory_mib
    );
    let mut command = command(qemu, kernel, machine);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(File::create(folder.join("qemu.log"))?);
    let mut child = command.spawn().context("cannot start qemu")?;
    let mut stdout = child.stdout.take().context("qemu has no output")?;
    let end = thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                output(&buffer[..length]);
            }
        });
        let end = wait(&mut child, folder, machine.timeout);
        if end.is_err() || matches!(end, Ok(None)) {
            // It may have ended in the meantime.
            child.kill().ok();
        }
        child.wait()?;
        end
    })?;

    let console = console(folder);
    let tail = || {
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        format!("the last lines of the console of {}:\n{tail}", kernel.release)
    };
    if let Some(code) = result(folder)? {
        return Ok(Ended { code, complaints: complaints(&console) });
    }
    if let Some(at) = console.find("Kernel panic") {
        let words = console[at..].lines().next().unwrap_or_default();
        bail!("the guest's kernel panicked ({words}); {}", tail());
    }
    let Some(status) = end else {
        bail!("the guest is not done after {} s (--timeout); {}", machine.timeout.as_secs(), tail());
    };
    let words = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
    bail!(
        "the guest ended without a result (qemu: {status}{}{}); {}",
        if words.is_empty() { "" } else { ", " },
        words.trim(),
        tail()
    );
}

/// Until the machine has ended by itself; `None` where it has to be ended.
fn wait(child: &mut Child, folder: &Path, timeout: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut done = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if done.is_none() && result(folder)?.is_some() {
            done = Some(Instant::now());
        }
        // A kernel that does not get switched off has done its work.
        let late = done.map_or_else(|| start.elapsed() > timeout, |done: Instant| done.elapsed() > OFF_LIMIT);
        if late {
            return Ok(None);
        }
        thread::sleep(INTERVAL);
    }
}

fn command(qemu: &Qemu, kernel: &Kernel, machine: &Machine) -> Command {
    let mut command = qemu.command();
    command.args(["-accel", "tcg", "-M", "q35", "-cpu", "max,la57=off", "-nodefaults", "-no-user-config"]);
    command.args(["-nographic", "-no-reboot", "-serial", "file:console"]);
    command.args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()]);
    command.arg("-kernel").arg(kernel.vmlinux()).args(["-initrd", "initrd"]);
    // The guest writes these and nobody reads: no end of a connection that a writer could wait for.
    command.args(["-device", "virtio-serial-pci"]);
    for (port, path) in [("output", "/dev/stdout"), ("result", "result"), ("files", "files.tar")] {
        command.arg("-chardev").arg(format!("file,id={port},path={path}"));
        command.arg("-device").arg(format!("virtserialport,chardev={port},name={port}"));
    }
    if machine.icount {
        command.args(["-icount", "shift=0,sleep=off", "-rtc", "base=2025-01-01,clock=vm"]);
    }
    let all = machine.cards.iter().flat_map(|cards| std::iter::repeat_n(cards, cards.count as usize));
    for (index, cards) in all.enumerate() {
        let number = index + 1;
        // A slot each, as PCI Express cards have in a server, and a hub for each two.
        command.arg("-device").arg(format!("pcie-root-port,id=slot{number},chassis={number}"));
        command.arg("-netdev").arg(format!("hubport,id=card{number},hubid={}", index / 2));
        command.arg("-device").arg(format!(
            "{},bus=slot{number},netdev=card{number},mac=52:54:00:00:01:{number:02x},romfile={}",
            cards.driver, cards.properties
        ));
    }
    command.args(&machine.qemu);
    command.arg("-append").arg(format!("{KERNEL_ARGUMENTS} {}", machine.append));
    command
}

/// The exit code that the guest gave, when it gave one.
fn result(folder: &Path) -> Result<Option<u8>> {
    let Ok(text) = fs::read_to_string(folder.join("result")) else { return Ok(None) };
    let Some(line) = text.strip_suffix('\n') else { return Ok(None) };
    let code = line.strip_prefix("exit ").and_then(|code| code.parse().ok());
    code.map(Some).with_context(|| format!("the guest gave {line:?} for a result"))
}

fn console(folder: &Path) -> String {
    let bytes = fs::read(folder.join("console")).unwrap_or_default();
    // The firmware moves the cursor.
    String::from_utf8_lossy(&bytes).replace(['\r', '\x1b'], "")
}

/// Lines by which a kernel says that something is wrong with itself.
fn complaints(console: &str) -> Vec<String> {
    const SIGNS: [&str; 8] = [
        "BUG:",
        "WARNING:",
        "Oops",
        "general protection fault",
        "INFO: rcu",
        "self-detected stall",
        "blocked for more than",
        "Out of memory",
    ];
    let lines = console.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign)));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// Puts the files that the guest left into a folder.
pub(super) fn unpack_files(folder: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let archive: PathBuf = folder.join("files.tar");
    if fs::metadata(&archive).is_ok_and(|metadata| metadata.len() > 0) {
        crate::host::run(
            Command::new("tar").arg("-C").arg(to).arg("--no-same-owner").arg("-xf").arg(archive),
        )?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    #[test]
    fn cards_are_read() {
        let cards: Cards = "igb=4".parse().unwrap();
        assert_eq!(cards, Cards { driver: "igb".into(), count: 4, properties: String::new() });
        let cards: Cards = "virtio-net-pci=2,mq=on,vectors=10".parse().unwrap();
        assert_eq!((cards.count, cards.properties.as_str()), (2, ",mq=on,vectors=10"));
        for wrong in ["igb", "igb=", "igb=x", "=2", "igb=0"] {
            assert!(wrong.parse::<Cards>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn results_are_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        assert_eq!(result(folder.path()).unwrap(), None);
        for (text, code) in [("", None), ("exit 1", None), ("exit 14\n", Some(14))] {
            fs::write(&path, text).unwrap();
            assert_eq!(result(folder.path()).unwrap(), code, "{text:?}");
        }
        fs::write(&path, "exit x\n").unwrap();
        assert!(result(folder.path()).is_err());
    }

    #[test]
    fn kernels_complain_in_their_words() {
        let console = "[ 1.0] systemd: fine\n[ 2.0] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 x+0x1\n";
        assert_eq!(complaints(console), ["[ 2.0] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 x+0x1"]);
    }
}
