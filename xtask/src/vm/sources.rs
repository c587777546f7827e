//! Where this system gets Debian's packages from: its apt sources, in both forms that apt reads (sources.list(5)).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Debian's suites, without what may follow a dash.
const SUITES: [&str; 10] =
    ["bullseye", "bookworm", "trixie", "forky", "duke", "sid", "stable", "testing", "unstable", "oldstable"];
/// What follows the dash where it is of the same archive.
const PARTS: [&str; 4] = ["updates", "backports", "proposed-updates", "backports-sloppy"];

/// One source of binary packages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
}

/// Debian's archives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) archive: String,
    pub(super) security: String,
}

/// The mirror that this system uses.
pub(super) fn mirror() -> Result<Mirror> {
    let mut sources = Vec::new();
    for file in files()? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if file.extension().is_some_and(|extension| extension == "sources") {
            sources.extend(parse_stanzas(&text));
        } else {
            sources.extend(parse_lines(&text));
        }
    }
    choose(&sources).context(
        "apt's sources on this system name no mirror of Debian, and the kernels and qemu come from one; on another \
         distribution, put one into /etc/apt/sources.list.d",
    )
}

fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let list = Path::new("/etc/apt/sources.list");
    files.extend(list.is_file().then(|| list.to_owned()));
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in folder {
            let path = entry?.path();
            files.extend(
                path.extension()
                    .is_some_and(|extension| extension == "list" || extension == "sources")
                    .then_some(path),
            );
        }
    }
    files.sort();
    Ok(files)
}

/// `deb [options] URI suite component...`
fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t'])) else {
            continue;
        };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, after)| after),
            None => rest,
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            sources.push(Source { uris: vec![uri], suites: vec![suite], components: words.collect() });
        }
    }
    sources
}

/// Stanzas of fields; a line that starts with a blank goes on with the field above.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let without_comments: String =
        text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let mut sources = Vec::new();
    for stanza in without_comments.split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines() {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push(' ');
                    value.push_str(line.trim());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let words = |name: &str| -> Vec<String> {
            let value = fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
            value.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let off = words("enabled").first().is_some_and(|value| {
            ["no", "false", "0", "off", "without", "disable"].contains(&value.to_ascii_lowercase().as_str())
        });
        if !off && words("types").iter().any(|kind| kind == "deb") {
            sources.push(Source {
                uris: words("uris"),
                suites: words("suites"),
                components: words("components"),
            });
        }
    }
    sources
}

fn choose(sources: &[Source]) -> Option<Mirror> {
    // The first mirror that has a suite of this kind. Others' archives call their suites by Debian's names, too, but
    // not their components.
    let find = |wanted: &dyn Fn(&str) -> bool| {
        sources
            .iter()
            .filter(|source| source.components.iter().any(|component| component == "main"))
            .filter(|source| source.suites.iter().any(|suite| wanted(suite)))
            .flat_map(|source| &source.uris)
            .find(|uri| ["http:", "https:", "file:"].iter().any(|scheme| uri.starts_with(scheme)))
            .map(|uri| uri.trim_end_matches('/').to_owned())
    };
    let archive = find(&|suite| match suite.split_once('-') {
        Some((name, part)) => SUITES.contains(&name) && PARTS.contains(&part),
        None => SUITES.contains(&suite),
    })?;
    let security = find(&|suite| suite.strip_suffix("-security").is_some_and(|name| SUITES.contains(&name)));
    Some(Mirror { security: security.unwrap_or_else(|| format!("{archive}-security")), archive })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "\
Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
";

    #[test]
    fn stanzas() {
        let sources = parse_stanzas(STANZAS);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(
            choose(&sources),
            Some(Mirror {
                archive: "http://mirror.example/debian".into(),
                security: "http://mirror.example/debian-security".into()
            })
        );
    }

    #[test]
    fn one_line_forms() {
        let text = "\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://other.example/apt tool-bookworm main
deb https://other.example/linux/debian bookworm stable
deb-src http://mirror.example/debian bookworm main
deb [ arch=amd64 ] http://mirror.example/debian trixie main non-free # the archive
";
        let sources = parse_lines(text);
        assert_eq!(sources.len(), 3);
        assert_eq!(
            choose(&sources),
            Some(Mirror {
                archive: "http://mirror.example/debian".into(),
                security: "http://mirror.example/debian-security".into()
            })
        );
    }

    #[test]
    fn another_distribution_has_none() {
        let sources = parse_lines("deb http://archive.example/ubuntu noble main\n");
        assert_eq!(choose(&sources), None);
    }
}
