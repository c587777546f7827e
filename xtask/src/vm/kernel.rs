//! Kernels: fetched as packages, unpacked, and made ready to boot.
//!
//! The folder of a release has `vmlinux`, which needs no decompression by an emulated processor, `modules.cpio`, and
//! the unpacked packages in `tree`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    apt::{Apt, Package},
    cpio::Tree,
    files,
    release::{Release, Wanted, series},
};
use crate::host;

/// The modules that guests get, by path below the release's folder `kernel`: whole folders, or files. What they depend
/// on comes with them.
const MODULES: [&str; 46] = [
    "crypto/",
    "arch/x86/crypto/",
    "lib/",
    "net/8021q/",
    "net/bridge/",
    "net/core/",
    "net/dns_resolver/",
    "net/ethernet/",
    "net/hsr/",
    "net/ife/",
    "net/ipv4/",
    "net/ipv6/",
    "net/key/",
    "net/l2tp/",
    "net/llc/",
    "net/mpls/",
    "net/netfilter/",
    "net/netlink/",
    "net/nsh/",
    "net/openvswitch/",
    "net/packet/",
    "net/psample/",
    "net/sched/",
    "net/sctp/",
    "net/unix/",
    "net/vmw_vsock/",
    "net/xdp/",
    "net/xfrm/",
    "drivers/block/loop",
    "drivers/block/virtio_blk",
    "drivers/char/virtio_console",
    "drivers/net/bonding/",
    "drivers/net/ethernet/intel/e1000",
    "drivers/net/ethernet/intel/igb/",
    "drivers/net/ethernet/realtek/8139",
    "drivers/net/ipvlan/",
    "drivers/net/macvlan",
    "drivers/net/macsec",
    "drivers/net/team/",
    "drivers/net/vmxnet3/",
    "drivers/net/wireguard/",
    "drivers/virtio/",
    "fs/ext4/",
    "fs/fuse/",
    "fs/overlayfs/",
    "fs/squashfs/",
];
/// Drivers of interfaces that have no hardware.
const VIRTUAL_DRIVERS: [&str; 15] = [
    "amt",
    "bareudp",
    "dummy",
    "geneve",
    "gtp",
    "ifb",
    "netconsole",
    "netkit",
    "nlmon",
    "tap",
    "tun",
    "veth",
    "virtio_net",
    "vrf",
    "vxlan",
];
/// Changes when what is made of a tree does; then it is made again.
const RECIPE: &str = "1";

/// A kernel that can boot.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) release: Release,
    folder: PathBuf,
}

impl Kernel {
    pub(super) fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("modules.cpio")
    }
}

/// The kernels of the cache in a folder.
pub(super) struct Kernels<'a> {
    pub(super) cache: &'a Path,
}

impl Kernels<'_> {
    fn folder(&self) -> PathBuf {
        self.cache.join("kernels")
    }

    fn here(&self) -> Vec<Release> {
        let Ok(folder) = fs::read_dir(self.folder()) else { return Vec::new() };
        let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| Release::parse(&name)).collect()
    }

    /// A kernel that fits: one that is here, else one that is fetched. `refresh` looks for a newer one first.
    pub(super) fn get(&self, wanted: &Wanted, refresh: bool) -> Result<Kernel> {
        let _lock = files::lock(&self.cache.join("lock"))?;
        let release = match wanted.choose(&self.here()) {
            // Which one is the newest, the lists say.
            Some(release) if !refresh && !matches!(wanted, Wanted::Newest(_)) => release,
            _ => self.choose(wanted, refresh)?,
        };
        let folder = self.folder().join(release.name());
        if !folder.join("tree").is_dir() {
            self.fetch(&release)?;
        }
        if !fs::read_to_string(folder.join("recipe")).is_ok_and(|recipe| recipe == RECIPE) {
            println!("vm: making {release} ready to boot");
            prepare(&release, &folder).with_context(|| format!("cannot make {release} ready"))?;
        }
        Ok(Kernel { release, folder })
    }

    /// Looks into the lists, and into new ones where the old ones have nothing.
    fn choose(&self, wanted: &Wanted, refresh: bool) -> Result<Release> {
        let apt = Apt::open(self.cache.join("apt"))?;
        if refresh || !apt.has_lists() {
            apt.update()?;
        }
        if let Some(release) = wanted.choose(&apt.kernels()?) {
            return Ok(release);
        }
        apt.update()?;
        let known = apt.kernels()?;
        wanted.choose(&known).with_context(|| {
            format!("there is no kernel {wanted} in Debian's suites; there are {}, or newest", series(&known))
        })
    }

    fn fetch(&self, release: &Release) -> Result<()> {
        let apt = Apt::open(self.cache.join("apt"))?;
        let unpack = || {
            let packages = packages(&apt, release)?;
            files::make(&self.folder().join(release.name()), |partial| {
                fs::create_dir_all(partial.join("tree"))?;
                apt.unpack(&packages, &partial.join("tree"))
            })
        };
        unpack().or_else(|_| {
            // Lists that name a version which the mirror has no longer.
            apt.forget_update()?;
            apt.update()?;
            unpack()
        })
    }
}

/// The packages of a release: one, or, from 7.x on, kernel and modules apart.
fn packages(apt: &Apt, release: &Release) -> Result<Vec<Package>> {
    let names = ["image", "binary", "modules", "base"].map(|part| format!("linux-{part}-{release}"));
    let found = apt.show(&names.each_ref().map(String::as_str))?;
    let is = |package: &Package, part: &str| package.name.starts_with(&format!("linux-{part}-"));
    ensure!(found.iter().any(|package| is(package, "image")), "no package has the kernel {release}");
    let split = found.iter().any(|package| is(package, "binary"));
    Ok(found.into_iter().filter(|package| is(package, "image") != split).collect())
}

fn prepare(release: &Release, folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    // Older packages have modules in /lib, newer ones in /usr/lib; depmod looks below `lib`.
    let base = [tree.clone(), tree.join("usr")]
        .into_iter()
        .find(|base| base.join("lib/modules").join(release.name()).is_dir())
        .context("the package has no modules")?;
    let modules = base.join("lib/modules").join(release.name());
    let image = [tree.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .context("the package has no kernel")?;
    files::make(&folder.join("vmlinux"), |partial| vmlinux(&image, partial))?;

    depmod(&base, release)?;
    let chosen = with_dependencies(&fs::read_to_string(modules.join("modules.dep"))?, is_wanted);
    ensure!(!chosen.is_empty(), "none of the modules is wanted");
    let stage = tempfile::tempdir_in(folder)?;
    let target = stage.path().join("lib/modules").join(release.name());
    for path in &chosen {
        let copy = target.join(path);
        fs::create_dir_all(copy.parent().unwrap_or(&target))?;
        fs::copy(modules.join(path), copy).with_context(|| format!("cannot copy {path}"))?;
    }
    for (extension, program) in [("xz", "xz"), ("zst", "zstd"), ("gz", "gzip")] {
        let compressed: Vec<&String> =
            chosen.iter().filter(|path| path.ends_with(&format!(".ko.{extension}"))).collect();
        if !compressed.is_empty() {
            let mut command = Command::new(program);
            // zstd keeps what it decompressed, and depmod must not find it.
            command.args(["-d", "-q"]).args((program == "zstd").then_some("--rm"));
            host::run(command.current_dir(&target).arg("--").args(compressed))
                .with_context(|| format!("{program} unpacks modules; cargo xtask setup installs it"))?;
        }
    }
    for file in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if modules.join(file).is_file() {
            fs::copy(modules.join(file), target.join(file))?;
        }
    }
    depmod(stage.path(), release)?;
    let mut archive = Tree::default();
    // As the guest's /lib is a link.
    archive.copy_folder("usr/lib/modules", &stage.path().join("lib/modules"))?;
    files::make(&folder.join("modules.cpio"), |partial| archive.write(File::create(partial)?))?;
    files::write(&folder.join("recipe"), RECIPE.as_bytes())
}

fn depmod(base: &Path, release: &Release) -> Result<()> {
    let depmod =
        host::find_program("depmod").context("depmod is missing; cargo xtask setup installs kmod")?;
    host::run(Command::new(depmod).arg("-b").arg(base).arg(release.name()))
}

/// The kernel's ELF file, from what Debian packs it into (Documentation/arch/x86/boot.rst in the kernel's source).
fn vmlinux(image: &Path, to: &Path) -> Result<()> {
    let image = fs::read(image)?;
    let payload = payload(&image).context("the kernel's image has no payload")?;
    let (program, options) =
        decompressor(payload).context("the kernel is compressed in a way that is not known")?;
    // All but gzip have four bytes of length appended by the kernel's build, which are not of the format.
    let (payload, length) = match payload.split_last_chunk::<4>() {
        Some((rest, length)) if program != "gzip" => (rest, u64::from(u32::from_le_bytes(*length))),
        Some((_, length)) => (payload, u64::from(u32::from_le_bytes(*length))),
        None => bail!("the payload is empty"),
    };
    let mut packed = tempfile::tempfile()?;
    std::io::Write::write_all(&mut packed, payload)?;
    std::io::Seek::rewind(&mut packed)?;
    let out = File::create(to)?;
    let mut command = Command::new(program);
    command.args(options).stdin(packed).stdout(Stdio::from(out));
    host::run(&mut command)
        .with_context(|| format!("{program} unpacks the kernel; cargo xtask setup installs it"))?;
    let unpacked = fs::metadata(to)?.len();
    ensure!(unpacked == length, "the kernel has {unpacked} bytes in place of {length}");
    Ok(())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    if image.get(0x202..0x206).is_none() || image.get(0x1fe..0x200)? != [0x55, 0xaa] {
        return None;
    }
    let sectors = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

fn decompressor(payload: &[u8]) -> Option<(&'static str, &'static [&'static str])> {
    const KNOWN: [(&[u8], &str, &[&str]); 6] = [
        (&[0x1f, 0x8b], "gzip", &["-dc"]),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz", &["-dc"]),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", &["-dcq"]),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4", &["-dc"]),
        (&[0x5d, 0, 0], "xz", &["--format=lzma", "-dc"]),
        (b"BZh", "bzip2", &["-dc"]),
    ];
    let found = KNOWN.iter().find(|(magic, ..)| payload.starts_with(magic));
    found.map(|(_, program, options)| (*program, *options))
}

/// Whether guests get a module, by its path in `modules.dep`.
fn is_wanted(path: &str) -> bool {
    let Some(path) = path.strip_prefix("kernel/") else { return false };
    let driver = path.strip_prefix("drivers/net/").and_then(|file| file.split_once(".ko"));
    MODULES.iter().any(|prefix| path.starts_with(prefix))
        || driver.is_some_and(|(name, _)| VIRTUAL_DRIVERS.iter().any(|known| name.ends_with(known)))
}

/// Modules, and those that they depend on, from `modules.dep`: `path: path...`.
fn with_dependencies(dep: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let lines = dep.lines().filter_map(|line| line.split_once(':'));
    let depends: BTreeMap<&str, &str> = lines.collect();
    let mut chosen = BTreeSet::new();
    for (path, others) in depends.iter().filter(|(path, _)| wanted(path)) {
        // The list has dependencies of dependencies in it.
        chosen.insert((*path).to_owned());
        chosen.extend(others.split_whitespace().map(str::to_owned));
    }
    chosen
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let dep = "kernel/net/ipv4/ip_gre.ko.xz: kernel/net/ipv4/gre.ko.xz kernel/other/tunnel.ko.xz\n\
                   kernel/other/tunnel.ko.xz:\nkernel/other/sound.ko.xz:\nkernel/drivers/net/veth.ko.xz:\n\
                   kernel/drivers/net/vxlan/vxlan.ko.xz:\nkernel/drivers/net/geneve.ko:\n\
                   kernel/drivers/net/ethernet/x/dummyx.ko.xz:\n";
        let chosen = with_dependencies(dep, is_wanted);
        let names: Vec<&str> = chosen.iter().filter_map(|path| path.rsplit('/').next()).collect();
        assert_eq!(
            names,
            ["geneve.ko", "veth.ko.xz", "vxlan.ko.xz", "gre.ko.xz", "ip_gre.ko.xz", "tunnel.ko.xz"]
        );
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0_u8; 4096];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x248] = 16;
        image[0x24c] = 4;
        image[1024 + 16..1024 + 20].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        let found = payload(&image).unwrap();
        assert_eq!(decompressor(found).map(|(program, _)| program), Some("zstd"));
        assert_eq!(payload(&image[..1030]), None);
        assert_eq!(payload(&[0; 4096]), None);
        assert_eq!(decompressor(b"\x7fELF"), None);
    }
}
