//! What every guest has: the programs of this machine that tests call, and a few files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{cpio::Tree, files, libraries, ovs};
use crate::host;

const INIT: &str = include_str!("init.sh");

/// Left out where this machine has none of the name. busybox has the rest.
const PROGRAMS: [&str; 22] = [
    "bash", "bpftool", "bridge", "ethtool", "ip", "iperf3", "ldd", "mount", "nsenter", "ping", "prlimit",
    "setpriv", "sleep", "ss", "stdbuf", "taskset", "tc", "tcpdump", "timeout", "umount", "unshare", "nft",
];
/// kmod by its other names; the kernel itself calls /sbin/modprobe.
const KMOD: [&str; 5] = ["modprobe", "insmod", "rmmod", "lsmod", "modinfo"];
/// What a guest does not need of Python's library.
const NOT_OF_PYTHON: [&str; 8] =
    ["test", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "distutils", "tkinter", "__pycache__"];

const FILES: [(&str, &str); 7] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ntcpdump:x:101:101::/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ntcpdump:x:101:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "etc/protocols",
        "ip 0 IP\nicmp 1 ICMP\nigmp 2 IGMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\ngre 47 GRE\nesp 50 IPSEC-ESP\n\
         ipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n",
    ),
    // As systemd sets them: no interfaces that nobody asked for.
    (
        "etc/modprobe.d/guest.conf",
        "options dummy numdummies=0\noptions ifb numifbs=0\noptions bonding max_bonds=0\n",
    ),
    ("etc/services", "domain 53/udp\nhttp 80/tcp\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n"),
];

/// What a guest may have beside the usual.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extras {
    pub(super) python: bool,
    pub(super) ovs: bool,
}

/// The tools as a tree, and as an archive in the cache that is made anew when any of them changes.
pub(super) fn archive(cache: &Path, extras: Extras) -> Result<(Tree, PathBuf)> {
    let tree = tree(cache, extras)?;
    let _lock = files::lock(&cache.join("lock"))?;
    let kind = format!(
        "tools{}{}",
        if extras.python { "-python" } else { "" },
        if extras.ovs { "-ovs" } else { "" }
    );
    let archive = cache.join(format!("{kind}.cpio"));
    let mark = cache.join(format!("{kind}.fingerprint"));
    let fingerprint = format!("{:016x}", tree.fingerprint()?);
    if !archive.is_file() || !fs::read_to_string(&mark).is_ok_and(|old| old == fingerprint) {
        files::remove(&mark)?;
        files::make(&archive, |partial| tree.write(File::create(partial)?))?;
        files::write(&mark, fingerprint.as_bytes())?;
    }
    Ok((tree, archive))
}

fn tree(cache: &Path, extras: Extras) -> Result<Tree> {
    let mut tree = Tree::default();
    for folder in ["bin", "sbin", "lib", "lib64"] {
        tree.folder(&format!("usr/{folder}"));
        tree.link(folder, &format!("usr/{folder}"));
    }
    for folder in ["dev", "etc", "job", "mnt", "out", "proc", "root", "run", "sys", "tmp", "var"] {
        tree.folder(folder);
    }
    tree.link("var/run", "../run");
    tree.link("var/tmp", "../tmp");
    for (path, text) in FILES {
        tree.bytes(path, 0o644, text);
    }
    tree.bytes("init", 0o755, INIT);

    let busybox =
        host::find_program("busybox").context("busybox is missing; cargo xtask setup installs it")?;
    libraries::add(&mut tree, None, "usr/bin/busybox", &busybox)?;
    for applet in applets(&busybox)? {
        tree.link(&format!("usr/bin/{applet}"), "busybox");
    }
    let kmod = host::find_program("kmod").context("kmod is missing; cargo xtask setup installs it")?;
    libraries::add(&mut tree, None, "usr/bin/kmod", &kmod)?;
    for name in KMOD {
        tree.link(&format!("usr/sbin/{name}"), "../bin/kmod");
        // Not busybox's one of the same name, which may be found first.
        tree.link(&format!("usr/bin/{name}"), "kmod");
    }
    // busybox's own shell prefers applets to programs of the same name.
    let shell = host::find_program("sh").context("there is no sh here")?;
    add_program(&mut tree, "sh", &shell)?;
    for name in PROGRAMS {
        if let Some(program) = host::find_program(name) {
            add_program(&mut tree, name, &program)?;
        }
    }
    if extras.python {
        add_python(&mut tree)?;
    }
    if extras.ovs {
        ovs::add(cache, &mut tree)?;
    }
    Ok(tree)
}

fn add_program(tree: &mut Tree, name: &str, program: &Path) -> Result<()> {
    libraries::add(tree, None, &format!("usr/bin/{name}"), program)
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox).arg("--list").output().context("cannot start busybox")?;
    let text = String::from_utf8(output.stdout)?;
    let applets: Vec<String> = text.lines().map(str::to_owned).filter(|name| name != "busybox").collect();
    if !applets.iter().any(|name| name == "sh") {
        bail!("{} has no sh", busybox.display());
    }
    Ok(applets)
}

/// The system's Python with its library: not one of a user's own, whose library can be anywhere.
fn add_python(tree: &mut Tree) -> Result<()> {
    let python =
        fs::canonicalize("/usr/bin/python3").context("there is no /usr/bin/python3 here for --python")?;
    let version =
        python.file_name().and_then(|name| name.to_str()).context("python3 has no name")?.to_owned();
    libraries::add(tree, None, "usr/bin/python3", &python)?;
    add_python_folder(tree, &format!("usr/lib/{version}"), &Path::new("/usr/lib").join(version))
}

fn add_python_folder(tree: &mut Tree, path: &str, source: &Path) -> Result<()> {
    for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if NOT_OF_PYTHON.contains(&name.as_str()) || name.starts_with("config-") {
            continue;
        }
        let inner = format!("{path}/{name}");
        // Follows links: Debian's library has some, to files elsewhere.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            add_python_folder(tree, &inner, &entry.path())?;
        } else if name.ends_with(".so") {
            libraries::add(tree, None, &inner, &entry.path())?;
        } else {
            tree.copy(&inner, &entry.path())?;
        }
    }
    Ok(())
}
