//! Open vSwitch: the system's, or Debian's packages, unpacked and not installed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{cpio::Tree, files, libraries, unpacked};

const PROGRAMS: [&str; 7] =
    ["ovs-vsctl", "ovs-ofctl", "ovs-dpctl", "ovs-appctl", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool"];
const PACKAGES: [&str; 2] = ["openvswitch-switch", "openvswitch-common"];
/// What the programs run without: services, tools around them, and Python.
const NOT_LIBRARIES: [&str; 8] =
    ["openvswitch", "python3", "kmod", "netbase", "procps", "uuid-runtime", "lsb-base", "adduser"];
/// Where the programs are in a root. Debian's own links to the daemon are made when its package is configured.
const FOLDERS: [&str; 3] = ["usr/bin", "usr/sbin", "usr/lib/openvswitch-switch"];
/// Where the schema of the database is in a root, and in a guest.
const SCHEMA: &str = "usr/share/openvswitch/vswitch.ovsschema";

/// Puts the programs and the schema into a guest's tree.
pub(super) fn add(cache: &Path, tree: &mut Tree) -> Result<()> {
    let root = root(cache)?;
    for name in PROGRAMS {
        let program = find(&root, name).with_context(|| format!("Open vSwitch's packages have no {name}"))?;
        libraries::add(tree, None, &format!("usr/bin/{name}"), &program)?;
    }
    tree.copy(SCHEMA, &root.join(SCHEMA))
}

/// Where it is: the system's root, or a folder of the cache, fetched if it is not there.
fn root(cache: &Path) -> Result<PathBuf> {
    let has_all =
        |root: &Path| PROGRAMS.iter().all(|name| find(root, name).is_some()) && root.join(SCHEMA).is_file();
    let system = PathBuf::from("/");
    if has_all(&system) {
        return Ok(system);
    }
    let folder = cache.join("ovs");
    let _lock = files::lock(&cache.join("lock"))?;
    if !has_all(&folder) {
        unpacked::fetch(
            cache,
            &folder,
            &PACKAGES,
            &NOT_LIBRARIES,
            "Open vSwitch, a peer in virtual machines",
        )?;
    }
    Ok(folder)
}

fn find(root: &Path, name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| root.join(folder).join(name)).find(|path| path.is_file())
}
