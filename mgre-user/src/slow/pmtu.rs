//! What routers said of the paths to endpoints. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a path is taken to be as narrow as was said (RFC 1191 6.3, RFC 8201 4).
const REMEMBERED: Duration = Duration::from_secs(600);
/// Less than this is believed of no IPv4 path: below it nothing would be left for what is inside.
pub const IPV4_PATH_MTU_LEAST: u32 = 552;
/// Less than this no IPv6 path is (RFC 8201 4).
pub const IPV6_PATH_MTU_LEAST: u32 = 1280;

/// Path MTUs by endpoint.
#[derive(Debug, Default)]
pub struct PathMtus(BTreeMap<IpAddr, (u32, Instant)>);

impl PathMtus {
    /// Takes note of a path's MTU; says whether it is news. It can only get less.
    pub fn lower(&mut self, remote: IpAddr, mtu: u32, now: Instant) -> bool {
        let least = if remote.is_ipv4() { IPV4_PATH_MTU_LEAST } else { IPV6_PATH_MTU_LEAST };
        if mtu < least || self.0.get(&remote).is_some_and(|(known, _)| *known <= mtu) {
            return false;
        }
        self.0.insert(remote, (mtu, now + REMEMBERED));
        true
    }

    /// Forgets what was said long ago: the endpoints concerned.
    pub fn forget(&mut self, now: Instant) -> Vec<IpAddr> {
        let old: Vec<IpAddr> =
            self.0.iter().filter(|(_, (_, until))| *until <= now).map(|(remote, _)| *remote).collect();
        for remote in &old {
            self.0.remove(remote);
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_gets_narrower_and_is_wide_again_after_ten_minutes() {
        let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [1_u16; 8].into());
        let start = Instant::now();
        let mut paths = PathMtus::default();
        assert!(paths.lower(v4, 1400, start));
        assert!(!paths.lower(v4, 1400, start) && !paths.lower(v4, 1450, start), "no news");
        assert!(paths.lower(v6, 1400, start + Duration::from_secs(1)));
        let later = start + Duration::from_secs(60);
        assert!(paths.lower(v4, 1300, later));
        assert_eq!(paths.forget(start + Duration::from_secs(600)), Vec::<IpAddr>::new());
        assert_eq!(paths.forget(start + Duration::from_secs(601)), [v6]);
        assert_eq!(paths.forget(later + Duration::from_secs(600)), [v4]);
        assert!(paths.lower(v4, 1400, later), "forgotten");
    }

    #[test]
    fn too_narrow_to_be_true() {
        let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [1_u16; 8].into());
        let now = Instant::now();
        let mut paths = PathMtus::default();
        for (remote, least) in [(v4, 552), (v6, 1280)] {
            assert!(!paths.lower(remote, least - 1, now));
            assert!(paths.lower(remote, least, now));
        }
    }
}
