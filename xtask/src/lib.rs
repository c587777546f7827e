//! Finding the eBPF toolchain and building the eBPF object.
//!
//! `mgre-user`'s build script and the `xtask` command share this, so that both build the same object the
//! same way. Nothing here installs anything: `cargo xtask setup` does.

pub mod ebpf;
pub mod toolchain;

use std::path::{Path, PathBuf};

/// Where cargo puts what it builds: `CARGO_TARGET_DIR`, or `target` in the workspace.
#[must_use]
pub fn target_dir(workspace_root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // A relative one is relative to cargo's own directory; the workspace's root is the one a person means.
        Some(dir) if !dir.is_empty() => workspace_root.join(dir),
        _ => workspace_root.join("target"),
    }
}

/// Where the project keeps tools that it built for itself; laid out as `cargo install --root` does.
#[must_use]
pub fn tools_dir(workspace_root: &Path) -> PathBuf {
    workspace_root.join("target").join("tools")
}

/// The first executable of this name in the folders, in their order.
pub fn find_program<P: AsRef<Path>>(name: &str, folders: impl IntoIterator<Item = P>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;

    folders.into_iter().map(|folder| folder.as_ref().join(name)).find(|path| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// The folders of `PATH`.
#[must_use]
pub fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}
