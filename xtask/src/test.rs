//! Every test of the workspace.
//!
//! The test programs are built by cargo as the user and then run one by one, those that make network namespaces as
//! root; `cargo test` under sudo would leave root's files in the user's target folder.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{host, setup};

/// The packages whose tests need root.
const PRIVILEGED_PACKAGES: [&str; 2] = ["mgre-tests", "mgre-user"];

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestProgram {
    pub(crate) executable: PathBuf,
    /// The folder of its package, where cargo runs tests.
    pub(crate) folder: PathBuf,
    pub(crate) target: String,
    privileged: bool,
}

pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    setup::run(root, setup::Purpose::Run)?;
    let mgre = host::build_mgre(root)?;
    let programs = build(root, &["--workspace"])?;

    let mut failed = Vec::new();
    for program in &programs {
        println!("\ntest: {} of {}", program.target, program.folder.display());
        let mut command = if program.privileged {
            host::privileged(&program.executable, &[("MGRE_BIN", mgre.as_os_str())])?
        } else {
            Command::new(&program.executable)
        };
        // As cargo does, for what looks for files of its package.
        command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder).args(args);
        if let Err(error) = host::run(&mut command) {
            eprintln!("error: {error:#}");
            failed.push(program.target.as_str());
        }
    }
    // A filter for test programs means nothing to the examples in the documentation.
    if args.is_empty() {
        println!("\ntest: examples in the documentation");
        if let Err(error) = host::run(host::cargo(root).args(["test", "--workspace", "--doc"])) {
            eprintln!("error: {error:#}");
            failed.push("documentation");
        }
    }
    // Nor does it to the models.
    if args.is_empty() {
        println!("\ntest: models of the memory protocols");
        if let Err(error) = host::run(&mut models(root)) {
            eprintln!("error: {error:#}");
            failed.push("models");
        }
    }
    if !failed.is_empty() {
        bail!("tests failed in: {}", failed.join(", "));
    }
    println!("\ntest: {} test programs passed", programs.len());
    Ok(())
}

/// The models that loom runs through every interleaving. They are a build of their own: in it, the words of shared
/// memory are loom's.
fn models(root: &Path) -> Command {
    let mut cargo = host::cargo(root);
    let target = xtask::target_dir(root).join("loom");
    cargo.args(["test", "--release", "--package", "mgre-common", "--lib"]).arg("--target-dir").arg(target);
    cargo.env("RUSTFLAGS", "--cfg loom");
    cargo
}

/// Builds test programs; cargo is told which, and how.
pub(crate) fn build(root: &Path, which: &[&str]) -> Result<Vec<TestProgram>> {
    let mut cargo = host::cargo(root);
    cargo.arg("test").args(which).args(["--no-run", "--message-format=json-render-diagnostics"]);
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", host::shown(&cargo)))?;
    if !output.status.success() {
        bail!("the tests do not compile ({})", output.status);
    }
    let mut programs = parse(&String::from_utf8(output.stdout)?)?;
    // The quick ones first.
    programs.sort_by_key(|program| program.privileged);
    Ok(programs)
}

/// The test programs among cargo's messages, one JSON object a line.
fn parse(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line)
            .with_context(|| format!("cargo wrote a message that is not JSON: {line}"))?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            continue;
        }
        let (Some(executable), Some(manifest), Some(target)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
            message["target"]["name"].as_str(),
        ) else {
            continue;
        };
        let folder = Path::new(manifest).parent().with_context(|| format!("{manifest} has no folder"))?;
        // The folder's name can be anything; the package's name is in its identifier, which ends in `#NAME@VERSION`
        // or, where the folder has the same name, in `/NAME#VERSION`.
        let package = message["package_id"].as_str().unwrap_or_default();
        programs.push(TestProgram {
            executable: executable.into(),
            folder: folder.to_owned(),
            target: target.to_owned(),
            privileged: PRIVILEGED_PACKAGES
                .iter()
                .any(|name| package.contains(&format!("#{name}@")) || package.contains(&format!("/{name}#"))),
        });
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_other_artifacts() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","package_id":"registry+https://example.invalid/index#anyhow@1.0.0","manifest_path":"/r/anyhow/Cargo.toml","target":{"name":"anyhow"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/mgre-user#0.1.0","manifest_path":"/w/mgre-user/Cargo.toml","target":{"name":"mgre"},"profile":{"test":false},"executable":"/w/target/debug/mgre"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/mgre-user#0.1.0","manifest_path":"/w/mgre-user/Cargo.toml","target":{"name":"mgre_user"},"profile":{"test":true},"executable":"/w/target/debug/deps/mgre_user-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/xtask#0.1.0","manifest_path":"/w/xtask/Cargo.toml","target":{"name":"xtask"},"profile":{"test":true},"executable":"/w/target/debug/deps/xtask-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/tests#mgre-tests@0.1.0","manifest_path":"/w/tests/Cargo.toml","target":{"name":"overlay"},"profile":{"test":true},"executable":"/w/target/debug/deps/overlay-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let programs = parse(messages).expect("JSON");
        let summary: Vec<_> =
            programs.iter().map(|p| (p.target.as_str(), p.folder.as_path(), p.privileged)).collect();
        assert_eq!(
            summary,
            [
                ("mgre_user", Path::new("/w/mgre-user"), true),
                ("xtask", Path::new("/w/xtask"), false),
                ("overlay", Path::new("/w/tests"), true),
            ]
        );
    }

    #[test]
    fn other_output_is_an_error() {
        assert!(parse("warning: something").is_err());
    }
}
