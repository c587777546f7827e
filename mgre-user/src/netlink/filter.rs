//! TC filters and the qdisc that they hang on: programs attached without TCX.
//!
//! The requests are made in the calling thread: the datapath that makes them is in the middle of a change, and the
//! kernel answers within the system call.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption, TcU32OptionFlags,
};
use nix::errno::Errno;

use super::decode::{attributes, text};
use super::error::Failure;
use super::socket::Socket;
use super::{Error, Result};

/// Of include/uapi/linux/rtnetlink.h and pkt_cls.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// Length of `struct tcmsg`.
const HEADER_LEN: usize = 20;
/// All protocols (`ETH_P_ALL`), as `struct tcmsg` has it: in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// The qdisc with a filter list for each direction.
const CLSACT: &str = "clsact";

/// The direction of a filter list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// What the interface received.
    Ingress,
    /// What is sent out of it.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

/// A filter of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its kind, such as `bpf` or `flower`.
    pub kind: String,
    /// Lower ones come first (`pref` of tc(8)).
    pub priority: u16,
    /// Its number among those of one priority.
    pub handle: u32,
    /// Whether it takes frames of all protocols.
    pub all_protocols: bool,
    /// The id of its program, if it is of kind `bpf`.
    pub program: Option<u32>,
    /// Its name, if it is of kind `bpf`.
    pub name: Option<String>,
    /// The chain it is in. Frames begin in chain 0.
    pub chain: u32,
}

impl Filter {
    /// Whether it runs a program on all frames.
    pub fn is_program(&self) -> bool {
        self.kind == TcFilterBpf::KIND && self.all_protocols && self.chain == 0
    }
}

/// A handle for requests about filters, in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Filters {
    /// None after a request failed in a way that leaves answers unread; the next one opens a new socket.
    socket: Option<Socket>,
}

impl Filters {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn connect() -> Result<Self> {
        let socket = Socket::open().map_err(|failure| failure.during("open a socket"))?;
        Ok(Self { socket: Some(socket) })
    }

    /// The number of the network namespace (`SO_NETNS_COOKIE`, since Linux 5.14). No other one has it until the next
    /// boot.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn namespace(&self) -> Result<u64> {
        let failed = |failure: Failure| failure.during("tell the network namespace");
        match &self.socket {
            Some(socket) => socket.namespace().map_err(failed),
            None => Socket::open().and_then(|socket| socket.namespace()).map_err(failed),
        }
    }

    fn run<T>(&mut self, work: impl FnOnce(&mut Socket) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open()?,
        };
        let result = work(&mut socket);
        if !matches!(result, Err(Failure::Transport(_))) {
            self.socket = Some(socket);
        }
        result
    }

    /// The filters of one direction, in the order of their priorities. None if the interface is gone or has no qdisc
    /// for filters.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn list(&mut self, ifindex: u32, direction: Direction) -> Result<Vec<Filter>> {
        let message = message(ifindex, TcHandle::UNSPEC, direction.parent(), 0);
        let answer = self.run(|socket| socket.dump(RouteNetlinkMessage::GetTrafficFilter(message))).map_err(
            |failure| failure.on_link(ifindex, format!("list the filters of interface {ifindex}")),
        )?;
        let filters = answer.iter().filter(|message| message.kind == libc::RTM_NEWTFILTER);
        Ok(filters.filter_map(|message| decode(&message.payload)).collect())
    }

    /// Adds a filter that runs a program on all frames and does what the program says (`direct-action`). The kernel
    /// gives it a number.
    ///
    /// # Errors
    /// The kernel refuses: [`Error::Refused`] with `EINVAL` where others' filters of that priority are of another kind.
    pub fn add(
        &mut self,
        ifindex: u32,
        direction: Direction,
        priority: u16,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<()> {
        let message = filter(ifindex, direction, (priority, 0), Some((program, name)));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.run(|socket| socket.change(RouteNetlinkMessage::NewTrafficFilter(message), flags))
            .map_err(|failure| failure.on_link(ifindex, format!("add a filter to interface {ifindex}")))
    }

    /// Puts another program into a filter that [`Filters::add`] made. Each frame is given to the old one or to the new
    /// one (`cls_bpf_change()` of net/sched/cls_bpf.c exchanges them under RCU). False: there is no such filter any
    /// more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn replace(
        &mut self,
        ifindex: u32,
        direction: Direction,
        at: &Filter,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<bool> {
        let message = filter(ifindex, direction, (at.priority, at.handle), Some((program, name)));
        let replaced =
            self.run(|socket| socket.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_REPLACE));
        existed(replaced)
            .map_err(|failure| failure.on_link(ifindex, format!("replace a filter of interface {ifindex}")))
    }

    /// Removes a filter. False: it was not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self, ifindex: u32, direction: Direction, at: &Filter) -> Result<bool> {
        let message = filter(ifindex, direction, (at.priority, at.handle), None);
        let removed = self.run(|socket| socket.change(RouteNetlinkMessage::DelTrafficFilter(message), 0));
        existed(removed)
            .map_err(|failure| failure.on_link(ifindex, format!("remove a filter of interface {ifindex}")))
    }

    /// Makes the qdisc that filters hang on. False: the interface has one already, if perhaps one for received frames
    /// alone ([`Filters::has_clsact`]).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_clsact(&mut self, ifindex: u32) -> Result<bool> {
        let message = clsact(ifindex);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.run(|socket| socket.change(RouteNetlinkMessage::NewQueueDiscipline(message), flags)) {
            Ok(()) => Ok(true),
            Err(failure) if failure.errno() == Some(Errno::EEXIST) => Ok(false),
            Err(failure) => {
                Err(failure.on_link(ifindex, format!("add a clsact qdisc to interface {ifindex}")))
            }
        }
    }

    /// Whether the interface has a clsact qdisc.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn has_clsact(&mut self, ifindex: u32) -> Result<bool> {
        // Kernels differ in whether they answer with the qdisc, but all of them say whether it is there.
        let message = RouteNetlinkMessage::GetQueueDiscipline(clsact(ifindex));
        match self.run(|socket| socket.change(message, NLM_F_ACK)) {
            Ok(()) => Ok(true),
            Err(failure) if matches!(failure.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(false),
            Err(failure) => {
                Err(failure.on_link(ifindex, format!("look at the clsact qdisc of interface {ifindex}")))
            }
        }
    }

    /// Removes the clsact qdisc, with all filters on it. False: there is none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_clsact(&mut self, ifindex: u32) -> Result<bool> {
        let message = clsact(ifindex);
        match self.run(|socket| socket.change(RouteNetlinkMessage::DelQueueDiscipline(message), 0)) {
            Ok(()) => Ok(true),
            Err(failure) if matches!(failure.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(false),
            Err(failure) => {
                Err(failure.on_link(ifindex, format!("remove the clsact qdisc of interface {ifindex}")))
            }
        }
    }
}

/// Whether what a request was about was there.
fn existed(result: Result<(), Failure>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        // No such filter, or no qdisc.
        Err(failure) if matches!(failure.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn message(ifindex: u32, handle: TcHandle, parent: TcHandle, info: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.handle = handle;
    message.header.parent = parent;
    message.header.info = info;
    message
}

/// A message about a filter, with a priority and a handle.
fn filter(
    ifindex: u32,
    direction: Direction,
    (priority, handle): (u16, u32),
    program: Option<(BorrowedFd<'_>, &str)>,
) -> TcMessage {
    let info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS);
    let mut message = message(ifindex, handle.into(), direction.parent(), info);
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    if let Some((program, name)) = program {
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
            // It is not for a card that can run programs itself.
            TcFilterBpfOption::FlagsGeneric(TcU32OptionFlags::SkipHw),
        ];
        message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).to_vec()));
    }
    message
}

fn clsact(ifindex: u32) -> TcMessage {
    let handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    let mut message = message(ifindex, handle, TcHandle::CLSACT, 0);
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    message
}

/// A filter of a list. None for what is no filter but the head of those of a priority.
fn decode(payload: &[u8]) -> Option<Filter> {
    let word = |offset: usize| {
        payload.get(offset..)?.first_chunk().map(|bytes: &[u8; 4]| u32::from_ne_bytes(*bytes))
    };
    let (handle, info) = (word(8)?, word(16)?);
    let mut filter = Filter {
        kind: String::new(),
        priority: (info >> 16) as u16,
        handle,
        all_protocols: info as u16 == ALL_PROTOCOLS,
        program: None,
        name: None,
        chain: 0,
    };
    for (kind, value) in attributes(payload.get(HEADER_LEN..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value)?,
            TCA_CHAIN => filter.chain = value.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)),
            TCA_OPTIONS if filter.kind == TcFilterBpf::KIND => {
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = text(value),
                        TCA_BPF_ID => {
                            filter.program = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(filter)
}

impl Error {
    /// Whether the interface that a request was about is gone.
    pub const fn is_no_interface(&self) -> bool {
        matches!(self, Self::NoSuchIndex(_))
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    #[test]
    fn a_filter_is_read_as_it_was_written() {
        let info = 10 << 16 | u32::from(ALL_PROTOCOLS);
        let mut message = message(7, 0x1.into(), Direction::Ingress.parent(), info);
        let options =
            [TcFilterBpfOption::ProgName("mgre_port:default".into()), TcFilterBpfOption::ProgId(42)];
        message.attributes = vec![
            TcAttribute::Kind("bpf".into()),
            TcAttribute::Chain(0),
            TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let filter = decode(&bytes).expect("a filter");
        assert!(filter.is_program());
        assert_eq!((filter.priority, filter.handle, filter.program), (10, 1, Some(42)));
        assert_eq!(filter.name.as_deref(), Some("mgre_port:default"));
    }

    #[test]
    fn parents_are_those_of_the_kernel() {
        assert_eq!(u32::from(Direction::Ingress.parent()), 0xffff_fff2);
        assert_eq!(u32::from(Direction::Egress.parent()), 0xffff_fff3);
    }

    #[test]
    fn others_are_no_programs_for_all_frames() {
        let mut message = message(7, 0x1.into(), Direction::Ingress.parent(), 10 << 16 | 8);
        message.attributes = vec![TcAttribute::Kind("flower".into())];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let filter = decode(&bytes).expect("a filter");
        assert!(!filter.is_program() && !filter.all_protocols && filter.kind == "flower");
        assert_eq!(decode(&bytes[..10]), None);
    }
}
