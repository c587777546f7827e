//! Builds the eBPF object and puts it at `OUT_DIR/mgre.o`, where `src/object.rs` embeds it.
//!
//! Without the eBPF toolchain the file is empty and a warning says so: the host crates can be built, checked and
//! tested without it, and the daemon says what is missing when it starts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use xtask::{ebpf, toolchain};

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), Box<dyn std::error::Error>> {
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let root = manifest_dir.parent().ok_or("mgre-user has no parent folder")?;
    let embedded = out_dir.join("mgre.o");

    for input in ["mgre-ebpf", "mgre-common", "Cargo.toml", "Cargo.lock"] {
        rerun_if_changed(&root.join(input));
    }
    match toolchain::find(root) {
        Ok(toolchain) => {
            toolchain.inputs().into_iter().for_each(rerun_if_changed);
            let object =
                ebpf::build(&toolchain, root, &xtask::target_dir(root).join("ebpf"), ebpf::Object::Mgre)?;
            fs::copy(object, embedded)?;
        }
        Err(missing) => {
            // cargo takes a file that never exists for changed, so this looks again at each build. The files that are
            // missing would not do: packages bring theirs with times of long ago.
            rerun_if_changed(&out_dir.join("never"));
            println!(
                "cargo:warning=mgre is built without its eBPF object and cannot forward; run cargo xtask setup"
            );
            println!("cargo:warning={missing}");
            fs::write(embedded, [])?;
        }
    }
    Ok(())
}

fn rerun_if_changed(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}
