//! Releases of Debian's kernels, as `uname -r` says them: `6.12.117+deb12-cloud-amd64`.

use std::{cmp::Ordering, fmt};

/// Which of Debian's builds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Flavour {
    /// For virtual machines: small, with virtio and without drivers of cards
    #[default]
    Cloud,
    /// With every driver
    Full,
}

impl Flavour {
    fn suffix(self) -> &'static str {
        match self {
            Self::Cloud => "-cloud-amd64",
            Self::Full => "-amd64",
        }
    }
}

/// A release by its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    name: String,
    flavour: Flavour,
}

impl Release {
    /// Reads a full name. Names of Debian's meta packages (`6.12-amd64`), of builds without a signature and of other
    /// builds (`-rt-amd64`) are none.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let flavour =
            [Flavour::Cloud, Flavour::Full].into_iter().find(|flavour| name.ends_with(flavour.suffix()))?;
        let version = name.strip_suffix(flavour.suffix())?;
        let numbers = version.split(['-', '+', '~']).next()?;
        let whole = numbers.split('.').count() == 3
            && numbers.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
        // What may follow is `+deb12`, `+deb12.1`, `-56`; not `-rt`.
        let abi = version.strip_prefix(numbers)?;
        let plain = !abi.starts_with('-') || abi[1..].bytes().all(|byte| byte.is_ascii_digit());
        (whole && plain && !abi.contains("-rt")).then(|| Self { name: name.to_owned(), flavour })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The first two numbers: `(6, 12)`.
    pub(super) fn series(&self) -> (u32, u32) {
        let mut numbers = self.name.split('.').map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl Ord for Release {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.name, &other.name).then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for Release {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Compares versions by their numbers, in order; what is not a number as text.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    fn parts(text: &str) -> impl Iterator<Item = (&str, u64)> {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(digits);
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (number, after) = after.split_at(end);
            rest = after;
            Some((word, number.parse().unwrap_or(0)))
        })
    }
    parts(left).cmp(parts(right))
}

/// Which kernel somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Newest(Flavour),
    /// The start of a version, up to a dot, dash or plus: `6.1` is not `6.12`.
    Prefix(String, Flavour),
    Exactly(Release),
}

impl Wanted {
    pub(super) fn parse(text: &str, flavour: Flavour) -> Self {
        match Release::parse(text) {
            Some(release) => Self::Exactly(release),
            None if text == "newest" => Self::Newest(flavour),
            None => Self::Prefix(text.to_owned(), flavour),
        }
    }

    fn fits(&self, release: &Release) -> bool {
        match self {
            Self::Newest(flavour) => release.flavour == *flavour,
            Self::Prefix(prefix, flavour) => {
                release.flavour == *flavour
                    && release
                        .name
                        .strip_prefix(prefix.as_str())
                        .is_some_and(|rest| rest.starts_with(['.', '-', '+', '~']))
            }
            Self::Exactly(wanted) => release == wanted,
        }
    }

    /// The newest that fits.
    pub(super) fn choose(&self, known: &[Release]) -> Option<Release> {
        known.iter().filter(|release| self.fits(release)).max().cloned()
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest(_) => f.write_str("newest"),
            Self::Prefix(prefix, _) => f.write_str(prefix),
            Self::Exactly(release) => release.fmt(f),
        }
    }
}

/// The series that are in a list, oldest first, for an error.
pub(super) fn series(known: &[Release]) -> String {
    let mut all: Vec<(u32, u32)> = known.iter().map(Release::series).collect();
    all.sort_unstable();
    all.dedup();
    all.iter().map(|(major, minor)| format!("{major}.{minor}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Release> {
        [
            "6.1.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-56-amd64",
            "6.1.0-56-rt-amd64",
            "6.12-cloud-amd64",
            "cloud-amd64",
            "6.12.90+deb12-cloud-amd64",
            "6.12.90+deb12.1-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64-unsigned",
            "6.12.118+deb13-amd64",
            "7.3.4+deb13-cloud-amd64",
            "7.3.4+deb13-rt-amd64",
            "5.10.0-35-cloud-amd64",
        ]
        .into_iter()
        .filter_map(Release::parse)
        .collect()
    }

    fn chosen(wanted: &str, flavour: Flavour) -> Option<String> {
        Wanted::parse(wanted, flavour).choose(&known()).map(|release| release.name().to_owned())
    }

    #[test]
    fn only_kernels_are_releases() {
        assert_eq!(known().len(), 9);
        assert_eq!(series(&known()), "5.10, 6.1, 6.12, 7.3");
    }

    #[test]
    fn the_newest_that_fits_is_chosen() {
        let cloud = |wanted| chosen(wanted, Flavour::Cloud);
        assert_eq!(cloud("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(cloud("6.12").as_deref(), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(cloud("6.12.90").as_deref(), Some("6.12.90+deb12.1-cloud-amd64"));
        assert_eq!(cloud("5.10").as_deref(), Some("5.10.0-35-cloud-amd64"));
        assert_eq!(cloud("newest").as_deref(), Some("7.3.4+deb13-cloud-amd64"));
        assert_eq!(cloud("6.1.0-9-cloud-amd64").as_deref(), Some("6.1.0-9-cloud-amd64"));
        assert_eq!(cloud("6"), Some("6.12.117+deb12-cloud-amd64".to_owned()));
        assert_eq!(cloud("6.13"), None);
        assert_eq!(chosen("6.12", Flavour::Full).as_deref(), Some("6.12.118+deb13-amd64"));
        assert_eq!(chosen("newest", Flavour::Full).as_deref(), Some("6.12.118+deb13-amd64"));
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert_eq!(compare("1:10.0.2+ds", "1:7.2+dfsg"), Ordering::Greater);
        assert_eq!(compare("6.1.0-9", "6.1.0-56"), Ordering::Less);
        assert_eq!(compare("6.12.90+deb12", "6.12.90+deb12.1"), Ordering::Less);
    }
}
