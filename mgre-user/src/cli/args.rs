//! The grammar: `mgre [OPTIONS] NOUN VERB ...`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{ArgGroup, Args as ClapArgs, CommandFactory, Parser, Subcommand};
use mgre_common::fdb::MAX_ENTRIES;
use mgre_common::table::{DEFAULT_ADJACENCIES, DEFAULT_FDB_ENTRIES};
use mgre_common::wire::MacAddr;

use super::values::{instance, key, key_or_none, metrics, on_or_off, tos, vsid};
use crate::daemon::{BPFFS, STATE_DIR, TcAttach};
use crate::model::{Cidr, Df, Encap, ForeignGre, LinkLocal, Mode, Mtu, StormLimit, Tos};

/// An eBPF multipoint-GRE switch: one overlay, any number of peers.
#[derive(Debug, Parser)]
#[command(name = "mgre", version, max_term_width = 100)]
pub struct Args {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What the command is about.
    #[command(subcommand)]
    pub noun: Noun,
}

/// Options that may stand anywhere.
#[derive(Debug, ClapArgs)]
pub struct Global {
    /// Which daemon
    #[arg(short, long, global = true, env = "MGRE_INSTANCE", default_value = "default", value_name = "NAME")]
    #[arg(value_parser = instance, hide_env_values = true)]
    pub instance: String,
    /// Where the daemons' sockets are
    #[arg(long, global = true, env = "MGRE_RUN_DIR", default_value = "/run/mgre", value_name = "DIR")]
    #[arg(hide_env_values = true)]
    pub run_dir: PathBuf,
    /// Print JSON
    #[arg(short, long, global = true)]
    pub json: bool,
}

impl Args {
    /// Reads a command line, its program's name first.
    ///
    /// # Errors
    /// Bad usage, help or version, as clap says them.
    pub fn read<W: Into<OsString> + Clone>(words: impl IntoIterator<Item = W>) -> Result<Self, clap::Error> {
        let mut args = Self::try_parse_from(words)?;
        if let Noun::Peer(verb) = &mut args.noun
            && let Err((verb, what)) = verb.settle()
        {
            // From there, so that the usage is that command's.
            let mut command = Self::command();
            command.build();
            let verb = command.find_subcommand_mut("peer").and_then(|peer| peer.find_subcommand_mut(verb));
            let kind = ErrorKind::MissingRequiredArgument;
            return Err(verb.map_or_else(|| clap::Error::raw(kind, what), |verb| verb.error(kind, what)));
        }
        Ok(args)
    }
}

impl Peer {
    /// `--segment` takes all the words that follow it. Names that come after it are taken back.
    ///
    /// # Errors
    /// The verb that lacks something, and what.
    fn settle(&mut self) -> Result<(), (&'static str, &'static str)> {
        match self {
            Self::Add { name, remote, segments, .. } => {
                if name.is_none() && segments.len() > 2 {
                    *remote = segments.pop();
                    *name = segments.pop();
                } else if name.is_some() && remote.is_none() {
                    // A segment's name may be a DNS name, but hardly looks like one.
                    let address = |word: &mut String| word.contains(['.', ':']);
                    *remote = if segments.len() > 1 { segments.pop_if(address) } else { None };
                }
                let whole = name.is_some() && remote.is_some();
                whole.then_some(()).ok_or((
                    "add",
                    "a name or a remote is missing: mgre peer add NAME REMOTE --segment SEGMENT...",
                ))
            }
            Self::Set { name, segments, .. } => {
                if name.is_none() {
                    *name = segments.as_mut().filter(|segments| segments.len() > 1).and_then(Vec::pop);
                }
                name.is_some().then_some(()).ok_or(("set", "the name is missing: mgre peer set NAME ..."))
            }
            Self::Del { .. } | Self::Show => Ok(()),
        }
    }
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Run the daemon in the foreground
    Daemon(Daemon),
    /// Interfaces that outer packets come and go through
    #[command(subcommand)]
    Underlay(Underlay),
    /// Broadcast domains, told apart by their GRE key or NVGRE VSID
    #[command(subcommand)]
    Segment(Segment),
    /// Local interfaces in a segment
    #[command(subcommand)]
    Port(Port),
    /// Remote hosts
    #[command(subcommand)]
    Peer(Peer),
    /// The forwarding database: which address is where
    #[command(subcommand)]
    Fdb(Fdb),
    /// Hosts' IP addresses and their MAC addresses, in segments that suppress ARP and ND
    #[command(subcommand)]
    Neigh(Neigh),
    /// Traffic of peers and ports, or what was dropped and why
    Stats {
        /// Show drop counters that are not zero, by reason
        #[arg(long)]
        drops: bool,
    },
    /// How the daemon is
    Status,
    /// Print what happens, as it happens
    Monitor,
    /// Make the daemon's state equal to a configuration file
    Apply {
        /// A TOML file, or - for standard input
        file: PathBuf,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// Remove everything if the file is empty
        #[arg(long)]
        allow_empty: bool,
    },
    /// Print the configuration as TOML
    Export,
    /// Remove everything from the kernel and stop the daemon; without a daemon, remove what it left
    Detach {
        /// Where the state is saved, if there is no daemon and it did not note that
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Where the bpf file system is mounted, likewise
        #[arg(long, value_name = "DIR")]
        bpffs: Option<PathBuf>,
    },
}

/// Options of the daemon.
#[derive(Debug, ClapArgs)]
pub struct Daemon {
    /// A configuration (TOML) to apply at the start
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to serve Prometheus metrics over TCP, or "off"
    #[arg(long, default_value = "127.0.0.1:9747", value_name = "ADDR:PORT|off", value_parser = metrics)]
    pub metrics: Metrics,
    /// Where the state is saved
    #[arg(long, default_value = STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Where the bpf file system is mounted
    #[arg(long, default_value = BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// FDB entries to have room for, at most 1048576; 34 bytes of memory each, or up to twice that
    #[arg(long, default_value_t = DEFAULT_FDB_ENTRIES, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ENTRIES)))]
    pub fdb_entries: u32,
    /// Adjacencies (peers in segments) to have room for
    #[arg(long, default_value_t = DEFAULT_ADJACENCIES, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub adjacencies: u32,
    /// How to attach programs at TC: by TCX links, or by filters on a clsact qdisc, as kernels before 6.6 need it
    #[arg(long, value_enum, default_value_t, value_name = "auto|tcx|clsact", hide_possible_values = true)]
    pub tc_attach: TcAttach,
    /// Where to write what the kernel's verifier says, should it refuse a program [default:
    /// INSTANCE.verifier.log beside the socket]
    #[arg(long, value_name = "FILE")]
    pub verifier_log: Option<PathBuf>,
}

/// Where to serve metrics, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics(pub Option<SocketAddr>);

/// Verbs of underlays.
#[derive(Debug, Subcommand)]
pub enum Underlay {
    /// Use an interface for outer packets
    Add {
        /// The interface
        #[arg(value_name = "IFACE")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        interface: String,
        /// This host's address on it: the source of outer packets; one IPv4 and one IPv6 address at most
        #[arg(long = "local", value_name = "IP", required = true)]
        locals: Vec<IpAddr>,
        /// Its settings
        #[command(flatten)]
        settings: UnderlaySettings,
    },
    /// Change the given settings
    #[command(group = ArgGroup::new("change").args(["locals", "mode", "foreign_gre"]).required(true).multiple(true))]
    Set {
        /// The interface
        #[arg(value_name = "IFACE")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        interface: String,
        /// This host's address on it, in place of those before: one IPv4 and one IPv6 address at most
        #[arg(long = "local", value_name = "IP")]
        locals: Vec<IpAddr>,
        /// Its settings
        #[command(flatten)]
        settings: UnderlaySettings,
        /// Take an address away even if peers are reached through it
        #[arg(long)]
        force: bool,
    },
    /// Leave an interface alone again
    Del {
        /// The interface
        #[arg(value_name = "IFACE")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        interface: String,
        /// Only this address of it
        #[arg(long, value_name = "IP")]
        local: Option<IpAddr>,
        /// Remove it even if peers are reached through it
        #[arg(long)]
        force: bool,
    },
    /// List underlays
    Show,
}

/// What can be said of an underlay.
#[derive(Debug, clap::Args)]
pub struct UnderlaySettings {
    /// How to attach [default: auto]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Drop GRE that belongs to no peer, or pass it to the kernel for the host's own tunnels [default: drop]
    #[arg(long, value_enum, value_name = "drop|pass", hide_possible_values = true)]
    pub foreign_gre: Option<ForeignGre>,
}

/// Verbs of segments.
#[derive(Debug, Subcommand)]
pub enum Segment {
    /// Make a segment
    Add {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// The GRE key; GRE without one if not given
        #[arg(long, value_name = "N", value_parser = key)]
        key: Option<Key>,
        /// The virtual subnet id: NVGRE (RFC 7637), in place of a key
        #[arg(long, value_name = "N", value_parser = vsid, conflicts_with = "key")]
        vsid: Option<Key>,
        /// Its settings
        #[command(flatten)]
        settings: SegmentSettings,
    },
    /// Change the given settings
    #[command(group = ArgGroup::new("change").args(["key", "vsid", "mtu", "aging", "max_macs", "hub", "clamp_mss", "link_local", "suppress_neighbors"]).required(true).multiple(true))]
    Set {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// The GRE key, or "none" for GRE without one
        #[arg(long, value_name = "N|none", value_parser = key_or_none)]
        key: Option<Key>,
        /// The virtual subnet id: NVGRE (RFC 7637), in place of a key
        #[arg(long, value_name = "N", value_parser = vsid, conflicts_with = "key")]
        vsid: Option<Key>,
        /// Its settings
        #[command(flatten)]
        settings: SegmentSettings,
    },
    /// Remove an empty segment
    Del {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// List segments
    Show,
}

/// A key, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub Option<u32>);

/// Settings of a segment.
#[derive(Debug, ClapArgs)]
pub struct SegmentSettings {
    /// MTU of interfaces that the daemon makes in it
    #[arg(long, value_name = "N|auto")]
    pub mtu: Option<Mtu>,
    /// Forget a learned address that is not seen for so long
    #[arg(long, value_name = "SECONDS")]
    pub aging: Option<u32>,
    /// Addresses it may learn
    #[arg(long, value_name = "N")]
    pub max_macs: Option<u32>,
    /// Whether frames go from peer to peer through this host
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub hub: Option<bool>,
    /// Whether TCP's maximum segment size is lowered to what fits through the tunnel
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub clamp_mss: Option<bool>,
    /// Whether ARP and IPv6 neighbour questions for hosts that are known are answered here, not flooded
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on", value_parser = on_or_off)]
    pub suppress_neighbors: Option<bool>,
    /// Frames that bridges keep to one link (01:80:c2:00:00:0X): pass all but pause, none, or a list such as stp,lldp
    /// [default: forward]
    #[arg(long, value_name = "forward|drop|LIST")]
    pub link_local: Option<LinkLocal>,
}

/// Verbs of ports.
#[derive(Debug, Subcommand)]
pub enum Port {
    /// Make an existing interface, or a VLAN on it, a port
    Add {
        /// Its segment
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        segment: String,
        /// The interface
        #[arg(value_name = "IFACE")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        interface: String,
        /// Only frames with this 802.1Q tag, which they have on IFACE alone; the port is named IFACE.N
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4094))]
        vlan: Option<u16>,
        /// How to attach
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        /// Its settings
        #[command(flatten)]
        settings: PortSettings,
    },
    /// Make an interface of this host in a segment
    Create {
        /// Its segment
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        segment: String,
        /// The new interface's name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// An address for it; may be given more than once
        #[arg(long = "address", value_name = "CIDR")]
        addresses: Vec<Cidr>,
        /// Its MAC address
        #[arg(long)]
        mac: Option<MacAddr>,
        /// Its settings
        #[command(flatten)]
        settings: PortSettings,
    },
    /// Change the given settings
    #[command(group = ArgGroup::new("change").args(["storm_limit"]).required(true).multiple(true))]
    Set {
        /// The interface, or IFACE.N
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Its settings
        #[command(flatten)]
        settings: PortSettings,
    },
    /// Remove a port, and its interface if the daemon made it
    Del {
        /// The interface, or IFACE.N
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// List ports
    Show,
}

/// Settings of a port.
#[derive(Debug, ClapArgs)]
pub struct PortSettings {
    /// Frames from it that may be flooded in a second (broadcast, multicast, unknown destinations) [default: off]
    #[arg(long, value_name = "N|off")]
    pub storm_limit: Option<StormLimit>,
}

/// Verbs of peers.
#[derive(Debug, Subcommand)]
pub enum Peer {
    /// Add a remote host
    #[command(override_usage = "mgre peer add [OPTIONS] <NAME> <REMOTE> --segment <SEGMENT>...")]
    Add {
        /// A name for it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: Option<String>,
        /// Its endpoint: an IPv4 or IPv6 address, or a DNS name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        remote: Option<String>,
        /// The segments it is in
        #[arg(long = "segment", value_name = "SEGMENT", num_args = 1.., required = true)]
        segments: Vec<String>,
        /// Its settings
        #[command(flatten)]
        settings: PeerSettings,
    },
    /// Change the given settings
    #[command(group = ArgGroup::new("change")
        .args(["remote", "segments", "ttl", "tos", "df", "mtu", "max_macs", "csum", "seq", "encap", "storm_limit"])
        .required(true).multiple(true), override_usage = "mgre peer set [OPTIONS] <NAME>")]
    Set {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: Option<String>,
        /// Its endpoint: an IPv4 or IPv6 address, or a DNS name
        #[arg(long)]
        remote: Option<String>,
        /// All the segments it is to be in
        #[arg(long = "segment", value_name = "SEGMENT", num_args = 1..)]
        segments: Option<Vec<String>>,
        /// Its settings
        #[command(flatten)]
        settings: PeerSettings,
    },
    /// Remove a peer
    Del {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// List peers
    Show,
}

/// Settings of a peer.
#[derive(Debug, ClapArgs)]
pub struct PeerSettings {
    /// TTL (hop limit) of outer packets [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub ttl: Option<u8>,
    /// TOS of outer packets, such as 0xb8, a multiple of 4; or the DSCP inside, both ways [default: 0]
    #[arg(long, value_name = "N|inherit", value_parser = tos)]
    pub tos: Option<Tos>,
    /// Whether outer packets forbid fragmentation [default: set]
    #[arg(long, value_enum, value_name = "set|unset|inherit", hide_possible_values = true)]
    pub df: Option<Df>,
    /// Largest inner packet [default: auto]
    #[arg(long, value_name = "N|auto")]
    pub mtu: Option<Mtu>,
    /// Addresses that may be learned from it [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_macs: Option<u32>,
    /// Send checksums; those received are verified in any case
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub csum: Option<bool>,
    /// Send sequence numbers, and drop packets that come late
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub seq: Option<bool>,
    /// What GRE is put into: IP, or UDP port 4754 (RFC 8086) [default: gre]
    #[arg(long, value_enum, value_name = "gre|gre-udp", hide_possible_values = true)]
    pub encap: Option<Encap>,
    /// Frames from it that may be flooded in a second, in each segment [default: off]
    #[arg(long, value_name = "N|off")]
    pub storm_limit: Option<StormLimit>,
}

/// Verbs of the FDB.
#[derive(Debug, Subcommand)]
pub enum Fdb {
    /// List entries
    Show(FdbFilter),
    /// Add a static entry
    #[command(group = ArgGroup::new("target").args(["peer", "port"]).required(true))]
    Add {
        /// The segment
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        segment: String,
        /// The address
        mac: MacAddr,
        /// The peer that it is at
        #[arg(long)]
        peer: Option<String>,
        /// The port that it is at
        #[arg(long, value_name = "IFACE")]
        port: Option<String>,
    },
    /// Remove a static entry
    Del {
        /// The segment
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        segment: String,
        /// The address
        mac: MacAddr,
    },
    /// Forget learned addresses
    Flush(FdbFilter),
}

/// Which entries.
#[derive(Debug, ClapArgs)]
pub struct FdbFilter {
    /// Only those in this segment
    #[arg(long)]
    pub segment: Option<String>,
    /// Only those at this peer
    #[arg(long)]
    pub peer: Option<String>,
}

/// Verbs of neighbours.
#[derive(Debug, Subcommand)]
pub enum Neigh {
    /// List what was learned
    Show {
        /// Only those in this segment
        #[arg(long)]
        segment: Option<String>,
    },
}
