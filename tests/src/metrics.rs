//! The Prometheus text.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{netns::Netns, wait};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// One line: a series and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// A scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// The text.
    pub text: String,
    /// The series in it.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Scrapes over the daemon's socket.
    ///
    /// # Errors
    /// No answer, or not the text.
    pub fn over_socket(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
        stream.set_read_timeout(Some(wait::patient(LIMIT)))?;
        Self::parse(&get(stream, "/metrics")?)
    }

    /// Scrapes over TCP in a namespace.
    ///
    /// # Errors
    /// No answer, or not the text.
    pub fn over_tcp(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let stream = netns
            .enter(|| TcpStream::connect_timeout(&address, wait::patient(LIMIT)))?
            .with_context(|| format!("http://{address} in {}", netns.name()))?;
        stream.set_read_timeout(Some(wait::patient(LIMIT)))?;
        Self::parse(&get(stream, "/metrics")?)
    }

    /// Reads the text.
    ///
    /// # Errors
    /// A line that is neither a comment nor a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("metrics line {line:?}")));
        Ok(Self { text: text.to_owned(), samples: samples.collect::<Result<_>>()? })
    }

    /// The value of the first series with this name and at least these labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.all(name, labels).next().map(|sample| sample.value)
    }

    /// Every series with this name and at least these labels.
    pub fn all<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        let fits = move |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).map(String::as_str) == Some(*value))
        };
        self.samples.iter().filter(fits)
    }
}

/// The body of the answer to a GET.
///
/// # Errors
/// Another status than 200, or an answer that cannot be read.
pub fn get(mut stream: impl Read + Write, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: mgre\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{path}: {status}: {body}");
    ensure!(!head.to_ascii_lowercase().contains("transfer-encoding: chunked"), "{path}: a chunked answer");
    Ok(body.to_owned())
}

fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').context("no closing brace")?),
        None => (series, ""),
    };
    let mut pairs = BTreeMap::new();
    // No value in mgre's series has a comma or a quote.
    for pair in labels.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').context("no label value")?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).context("no quotes")?;
        ensure!(pairs.insert(key.to_owned(), value.to_owned()).is_none(), "label {key} twice");
    }
    Ok(Sample { name: name.to_owned(), labels: pairs, value: value.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples() {
        let text = "# HELP a b\n# TYPE a counter\na 1\nb{x=\"y\",z=\"\"} 2.5\n";
        let metrics = Metrics::parse(text).expect("reads");
        assert_eq!(metrics.get("a", &[]), Some(1.0));
        assert_eq!(metrics.get("b", &[("x", "y")]), Some(2.5));
        assert_eq!(metrics.get("b", &[("x", "z")]), None);
        assert!(Metrics::parse("a{x=\"y\" 1").is_err() && Metrics::parse("a").is_err());
    }
}
