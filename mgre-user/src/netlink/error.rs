//! What can go wrong when the kernel is asked, each as one line an operator can act on.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

/// Result of a netlink operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the kernel did not do what it was asked.
///
/// The variants are the cases a caller may want to tell apart; everything else
/// is [`Error::Refused`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process lacks the privilege.
    #[error("cannot {action}: not permitted: run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// What was attempted, as a verb phrase.
        action: String,
    },
    /// No interface has the name.
    #[error("no interface named {0}")]
    NoSuchName(String),
    /// No interface has the index (any more).
    #[error("no interface with index {0}")]
    NoSuchIndex(u32),
    /// Another interface has the name, or has it as an alternative name.
    #[error("interface name {0} is taken")]
    NameTaken(String),
    /// The kernel would not take the text as an interface name.
    #[error("{0:?} cannot name an interface: 1 to 15 characters without white space, '/', ':' or '%'")]
    InvalidName(String),
    /// The interface has the address already.
    #[error("{address}/{prefix_len} is already on interface {ifindex}")]
    AddressExists {
        /// Index of the interface.
        ifindex: u32,
        /// The address.
        address: IpAddr,
        /// Its prefix length in bits.
        prefix_len: u8,
    },
    /// A route was asked for from a source address that this host does not have.
    #[error("{0} is not an address of this host")]
    SourceNotLocal(IpAddr),
    /// The kernel's neighbour table, which is one for the whole machine, is full.
    #[error(
        "the kernel's neighbour table is full: sysctl net.{}.neigh.default.gc_thresh3 is the limit of the machine",
        if *v4 { "ipv4" } else { "ipv6" }
    )]
    NoRoomForNeighbors {
        /// That of IPv4, not of IPv6.
        v4: bool,
    },
    /// Any other refusal, with the kernel's own explanation where it gives one.
    #[error("cannot {action}: {reason}")]
    Refused {
        /// What was attempted, as a verb phrase.
        action: String,
        /// The kernel's extended acknowledgement, or else the text of `errno`.
        reason: String,
        /// The error number.
        errno: Errno,
    },
    /// The socket itself failed, or the answer made no sense.
    #[error("netlink: cannot {action}: {source}")]
    Transport {
        /// What was attempted, as a verb phrase.
        action: String,
        /// The error of the system call.
        source: io::Error,
    },
}

/// A request that failed, before it is known what it was for.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel answered with an error.
    Kernel {
        /// The error number.
        errno: Errno,
        /// The extended acknowledgement's text.
        message: Option<String>,
    },
    /// The answer did not arrive whole: the socket's state is unknown.
    Transport(io::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Transport(errno.into())
    }
}

impl Failure {
    /// A malformed answer.
    pub(super) fn malformed(what: &str) -> Self {
        Self::Transport(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
    }

    /// What the kernel answered to something else than a netlink message.
    pub(super) fn of(error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::Kernel { errno, message: None }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Transport(_) => None,
        }
    }

    /// Gives the failure its meaning: `action` is what was attempted.
    pub(super) fn during(self, action: impl Into<String>) -> Error {
        let action = action.into();
        match self {
            Self::Kernel { errno: Errno::EPERM, .. } => Error::NotPermitted { action },
            Self::Kernel { errno, message } => {
                let reason = message.unwrap_or_else(|| errno.desc().to_owned());
                Error::Refused { action, reason, errno }
            }
            Self::Transport(source) => Error::Transport { action, source },
        }
    }

    /// As [`Failure::during`], for a request about one interface.
    pub(super) fn on_link(self, index: u32, action: impl Into<String>) -> Error {
        match self.errno() {
            Some(Errno::ENODEV) => Error::NoSuchIndex(index),
            _ => self.during(action),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_one_line() {
        let refused =
            |errno, message: Option<&str>| Failure::Kernel { errno, message: message.map(str::to_owned) };
        let line = |error: Error| error.to_string();
        assert_eq!(
            line(refused(Errno::EPERM, None).during("create interface a")),
            "cannot create interface a: not permitted: run as root or with CAP_NET_ADMIN"
        );
        assert_eq!(
            line(
                refused(Errno::EINVAL, Some("mtu less than device minimum"))
                    .during("set the MTU of interface 3")
            ),
            "cannot set the MTU of interface 3: mtu less than device minimum"
        );
        assert_eq!(
            line(refused(Errno::EBUSY, None).on_link(3, "delete interface 3")),
            "cannot delete interface 3: Device or resource busy"
        );
        assert_eq!(line(refused(Errno::ENODEV, None).on_link(3, "")), "no interface with index 3");
    }
}
