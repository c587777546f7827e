//! A view of Debian's archive that is the project's own: lists and downloads in its folder, from the mirror that this
//! system uses. The system's sources and packages stay as they are; what is downloaded is checked against Debian's
//! signatures, by apt.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    files,
    release::{self, Release},
    sources,
};
use crate::host;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where kernels are looked for; `-security` ones are in an archive of their own.
const SUITES: [&str; 6] = [
    "bookworm",
    "bookworm-security",
    "bookworm-backports",
    "trixie-security",
    "trixie-backports",
    "bullseye-security",
];
/// After so long a newer kernel may have come.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// A package in the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Apt {
    folder: PathBuf,
    /// This system's own release, if it is Debian: what runs here has to be of it.
    codename: Option<String>,
    suites: Vec<String>,
}

impl Apt {
    /// The view in `folder`, made if there is none.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            if host::find_program(tool).is_none() {
                bail!(
                    "there is no {tool} here: kernels and qemu for virtual machines come as Debian's packages"
                );
            }
        }
        if !Path::new(KEYRING).is_file() {
            bail!("{KEYRING} is missing, by which packages are checked; install debian-archive-keyring");
        }
        let mirror = sources::mirror()?;
        let codename = codename();
        let mut suites: Vec<String> = SUITES.map(str::to_owned).to_vec();
        for own in codename.iter().flat_map(|name| [name.clone(), format!("{name}-backports")]) {
            if !suites.contains(&own) {
                suites.push(own);
            }
        }
        let text: String = suites
            .iter()
            .map(|suite| {
                let uri = if suite.ends_with("-security") { &mirror.security } else { &mirror.archive };
                format!("deb [signed-by={KEYRING} arch=amd64] {uri} {suite} main\n")
            })
            .collect();
        for inner in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(folder.join(inner)).with_context(|| folder.display().to_string())?;
        }
        // No packages of this system's: what is installed here by hand is in no suite.
        fs::write(folder.join("status"), "")?;
        let list = folder.join("sources.list");
        if fs::read_to_string(&list).is_ok_and(|old| old != text) {
            remove_lists(&folder)?;
        }
        files::write(&list, text.as_bytes())?;
        Ok(Self { folder, codename, suites })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let option = |name: &str, file: &str| format!("{name}={}", self.folder.join(file).display());
        let mut options = vec![
            option("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            option("Dir::State::lists", "lists"),
            option("Dir::State::status", "status"),
            option("Dir::Cache", "cache"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=2".to_owned(),
        ];
        if host::is_root() {
            // apt's own user may not be able to reach the folder.
            options.push("APT::Sandbox::User=root".to_owned());
        }
        for option in options {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn output(&self, tool: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(tool);
        let output = command.args(arguments).output().with_context(|| format!("cannot start {tool}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether package lists are here, however old.
    pub(super) fn has_lists(&self) -> bool {
        !self.answered().is_empty()
    }

    /// The suites of which there are lists.
    fn answered(&self) -> Vec<&str> {
        let names: Vec<String> = fs::read_dir(self.folder.join("lists"))
            .map(|folder| {
                folder.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect()
            })
            .unwrap_or_default();
        let has = |suite: &str| {
            names.iter().any(|name| name.contains(&format!("_dists_{suite}_main_binary-amd64_Packages")))
        };
        self.suites.iter().map(String::as_str).filter(|suite| has(suite)).collect()
    }

    /// Fetches package lists, unless those that are here are fresh.
    pub(super) fn update(&self) -> Result<()> {
        let stamp = self.folder.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| files::age(time).is_some_and(|age| age < LISTS_AGE));
        if fresh && self.has_lists() {
            return Ok(());
        }
        println!(
            "vm: fetching package lists of {} to {} (up to some 10 MB each)",
            self.suites.join(", "),
            self.folder.display()
        );
        // apt fails where any suite does not answer, and has the others' lists all the same.
        let mut command = self.command("apt-get");
        let output = command.args(["update", "-q"]).output().context("cannot start apt-get")?;
        let answered = self.answered();
        if answered.is_empty() {
            bail!("apt-get update got no package lists:\n{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let absent: Vec<&str> =
            self.suites.iter().map(String::as_str).filter(|suite| !answered.contains(suite)).collect();
        if !absent.is_empty() {
            println!("vm: the mirror does not have: {}", absent.join(", "));
        }
        files::write(&stamp, b"")
    }

    /// Makes the next [`Apt::update`] fetch.
    pub(super) fn forget_update(&self) -> Result<()> {
        files::remove(&self.folder.join("updated"))
    }

    /// The kernels in the lists.
    pub(super) fn kernels(&self) -> Result<Vec<Release>> {
        Ok(whole_kernels(&self.output("apt-cache", &["pkgnames", "linux-"])?))
    }

    /// What the lists say of packages; those that they do not have are left out.
    pub(super) fn show(&self, names: &[&str]) -> Result<Vec<Package>> {
        let mut arguments = vec!["show", "--no-all-versions"];
        arguments.extend(names);
        Ok(parse_records(&self.output("apt-cache", &arguments)?))
    }

    /// The newest version of a package that is made for this system.
    pub(super) fn newest_for_host(&self, name: &str) -> Result<Package> {
        let codename = self.codename.as_deref().context("this system is not Debian")?;
        let table = self.output("apt-cache", &["madison", name])?;
        let version = newest_of_suites(&table, &[codename, &format!("{codename}-backports")])
            .with_context(|| format!("Debian's {codename} has no {name}"))?;
        let found = self.show(&[&format!("{name}={version}")])?;
        found.into_iter().next().with_context(|| format!("apt does not show {name} {version}"))
    }

    /// Downloads packages and unpacks them into a new folder; nothing is installed.
    pub(super) fn unpack(&self, packages: &[Package], into: &Path) -> Result<()> {
        let total: u64 = packages.iter().map(|package| package.bytes).sum();
        let listed: Vec<String> = packages
            .iter()
            .map(|package| {
                format!("{} {} ({})", package.name, package.version, files::megabytes(package.bytes))
            })
            .collect();
        println!("vm: downloading {}: {}", files::megabytes(total), listed.join(", "));
        // A folder that is new each time: what an interrupted download left is not looked at.
        let folder = self.folder.join("packages");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let mut command = self.command("apt-get");
        command.current_dir(&folder).args(["download", "-q"]);
        command.args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
        let output = command.output().context("cannot start apt-get")?;
        if !output.status.success() {
            bail!("apt-get download failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        for package in fs::read_dir(&folder)? {
            host::run(Command::new("dpkg-deb").arg("-x").arg(package?.path()).arg(into))?;
        }
        fs::remove_dir_all(&folder)?;
        Ok(())
    }

    /// What a package that is not installed depends on: the first choice of each.
    pub(super) fn dependencies(&self, package: &Package) -> Result<Vec<Vec<String>>> {
        let name = format!("{}={}", package.name, package.version);
        let text = self.output("apt-cache", &["show", "--no-all-versions", &name])?;
        Ok(text.lines().find_map(|line| line.strip_prefix("Depends:")).map(parse_depends).unwrap_or_default())
    }
}

fn remove_lists(folder: &Path) -> Result<()> {
    files::remove(&folder.join("updated"))?;
    fs::remove_dir_all(folder.join("lists"))?;
    Ok(fs::create_dir_all(folder.join("lists/partial"))?)
}

fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

/// The kernels among names of packages. Where kernel and modules are apart, lists may have the one and not the other.
fn whole_kernels(names: &str) -> Vec<Release> {
    let names: BTreeSet<&str> = names.lines().collect();
    let has = |part: &str, release: &str| names.contains(format!("linux-{part}-{release}").as_str());
    names
        .iter()
        .filter_map(|name| Release::parse(name.strip_prefix("linux-image-")?))
        .filter(|release| !has("binary", release.name()) || has("modules", release.name()))
        .collect()
}

fn parse_records(text: &str) -> Vec<Package> {
    text.split("\n\n")
        .filter_map(|record| {
            let field = |name: &str| {
                record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
            };
            Some(Package {
                name: field("Package")?.to_owned(),
                version: field("Version")?.to_owned(),
                bytes: field("Size")?.parse().ok()?,
            })
        })
        .collect()
}

/// From `apt-cache madison`: `package | version | URI suite/component arch Packages`.
fn newest_of_suites(table: &str, suites: &[&str]) -> Option<String> {
    table
        .lines()
        .filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            let (_, version, place) = (columns.next()?, columns.next()?, columns.next()?);
            let suite = place.split_whitespace().nth(1)?.split('/').next()?;
            suites.contains(&suite).then_some(version)
        })
        .max_by(|left, right| release::compare(left, right))
        .map(str::to_owned)
}

/// `a (>= 1), b | c` as names, without versions.
fn parse_depends(text: &str) -> Vec<Vec<String>> {
    text.split(',')
        .map(|choices| {
            let names = choices.split('|').filter_map(|choice| choice.split_whitespace().next());
            names.map(|name| name.split(':').next().unwrap_or(name).to_owned()).collect()
        })
        .filter(|choices: &Vec<String>| !choices.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let text = "Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nInstalled-Size: 5\n\
                    Size: 26000000\n\nPackage: broken\n\n";
        let package = Package {
            name: "linux-image-6.1.0-56-cloud-amd64".into(),
            version: "6.1.192-2".into(),
            bytes: 26_000_000,
        };
        assert_eq!(parse_records(text), [package]);
    }

    #[test]
    fn half_a_kernel_is_none() {
        let names = "linux-image-6.1.0-56-amd64\nlinux-image-7.3.4-amd64\nlinux-binary-7.3.4-amd64\n\
                     linux-modules-7.3.4-amd64\nlinux-image-7.0.4-amd64\nlinux-binary-7.0.4-amd64\nlinux-libc-dev\n";
        let found: Vec<String> = whole_kernels(names).iter().map(Release::to_string).collect();
        assert_eq!(found, ["6.1.0-56-amd64", "7.3.4-amd64"]);
    }

    #[test]
    fn versions_by_suite() {
        let table = "\
 qemu-system-x86 | 1:10.0.9+ds-1 | http://m.example/debian trixie/main amd64 Packages
 qemu-system-x86 | 1:10.0.2+ds-2~bpo12+1 | http://m.example/debian bookworm-backports/main amd64 Packages
 qemu-system-x86 | 1:7.2+dfsg-7 | http://m.example/debian bookworm/main amd64 Packages
";
        let own = newest_of_suites(table, &["bookworm", "bookworm-backports"]);
        assert_eq!(own.as_deref(), Some("1:10.0.2+ds-2~bpo12+1"));
        assert_eq!(newest_of_suites(table, &["forky"]), None);
    }

    #[test]
    fn dependencies_are_names() {
        assert_eq!(
            parse_depends(" libaio1 (>= 0.3.93), liba:any | libb (= 1),"),
            [vec!["libaio1".to_owned()], vec!["liba".to_owned(), "libb".to_owned()]]
        );
    }
}
