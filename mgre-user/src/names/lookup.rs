//! Asks name servers for the addresses of names, as `/etc/resolv.conf` and `/etc/hosts` say.
//!
//! Not by the C library: it blocks a thread for each name, for as long as a server does not answer, and says nothing
//! of times to live.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};

use super::Answer;
use crate::model::check;

/// Where it stands whom to ask, and what need not be asked for.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// The longest that all attempts for a name may take together.
const LIMIT: Duration = Duration::from_secs(30);

/// What tells one version of a file from another.
type Version = Option<(u64, u64, i64, i64)>;

/// Asks for names. The files are read again when they have changed.
#[derive(Debug, Default)]
pub struct Resolver {
    current: Option<([Version; 2], TokioResolver)>,
}

impl Resolver {
    /// Asks for a name.
    ///
    /// What is returned needs nothing of this, so that it can run beside.
    pub fn ask(&mut self, name: &str) -> impl Future<Output = Answer> + Send + use<> {
        let (resolver, name) = (self.current(), name.to_owned());
        async move {
            let asked = async { ask(&resolver?, &name).await };
            let answer = tokio::time::timeout(LIMIT, asked).await;
            answer.unwrap_or_else(|_| Err("no answer in time".to_owned())).unwrap_or_else(|problem| Answer {
                v4: None,
                v6: None,
                ttl: Duration::ZERO,
                problem: Some(problem),
            })
        }
    }

    fn current(&mut self) -> Result<TokioResolver, String> {
        let versions = FILES.map(version);
        if let Some((made_from, resolver)) = &self.current
            && *made_from == versions
        {
            return Ok(resolver.clone());
        }
        let resolver = make().map_err(|error| error.to_string())?;
        self.current = Some((versions, resolver.clone()));
        Ok(resolver)
    }
}

fn version(path: &str) -> Version {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

fn make() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        // As resolv.conf(5) has it.
        tracing::debug!(%error, "no name server in /etc/resolv.conf, asking 127.0.0.1");
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![local]);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    });
    // When to ask again is decided elsewhere.
    builder.options_mut().cache_size = 0;
    builder.build()
}

async fn ask(resolver: &TokioResolver, name: &str) -> Result<Answer, String> {
    let name = Name::from_str_relaxed(name).map_err(|error| error.to_string())?;
    let (v4, v6) = tokio::join!(resolver.ipv4_lookup(name.clone()), resolver.ipv6_lookup(name));
    let (v4, v6) = (Part::new(v4), Part::new(v6));
    let ttl = [v4.ttl, v6.ttl].into_iter().flatten().min().unwrap_or_default();
    let ips = |part: &Part| part.addresses.clone();
    let only4 = ips(&v4).map(|all| all.into_iter().filter_map(v4_of).collect());
    let only6 = ips(&v6).map(|all| all.into_iter().filter_map(v6_of).collect());
    Ok(Answer { v4: only4, v6: only6, ttl, problem: v4.problem.or(v6.problem) })
}

/// What came of asking for the addresses of one IP version.
struct Part {
    addresses: Option<Vec<IpAddr>>,
    ttl: Option<Duration>,
    problem: Option<String>,
}

impl Part {
    fn new(found: Result<Lookup, NetError>) -> Self {
        match found {
            Ok(lookup) => {
                let ips = lookup.answers().iter().filter_map(|record| ip(&record.data));
                let usable = |ip: &IpAddr| check::endpoint("an endpoint", *ip).is_ok();
                let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
                Self { addresses: Some(ips.filter(usable).collect()), ttl: Some(ttl), problem: None }
            }
            // There is the name, or there is none, but no such address.
            Err(error) if error.is_no_records_found() => {
                Self { addresses: Some(Vec::new()), ttl: None, problem: Some("no such name".to_owned()) }
            }
            Err(error) => Self { addresses: None, ttl: None, problem: Some(error.to_string()) },
        }
    }
}

fn ip(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    }
}

fn v4_of(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6_of(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}
