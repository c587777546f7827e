//! Raw frames to and from an interface, by packet sockets.

use std::{
    io,
    mem::{self, size_of},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

use crate::{gre::Gre, netns::Netns, wait};

/// The most frames that a capture keeps; it counts on after that.
const MOST_FRAMES: usize = 200_000;
/// A superframe, at most.
const BUFFER: usize = 65_536 + 256;
/// How long to wait at most for the reader of frames that never end.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Room for frames that wait to be read.
const SOCKET_BUFFER: libc::c_int = 16 << 20;

/// A frame that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// All of it, with its VLAN tag.
    pub bytes: Vec<u8>,
    /// It left through the interface, it did not come in.
    pub outgoing: bool,
    /// When it was read.
    pub at: Instant,
}

/// Everything that passes an interface, until stopped or dropped.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    /// How often it was asked whether all is read that has come, and up to which of the questions it was.
    asked: Arc<AtomicU64>,
    caught_up: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins. What passes from now on is captured.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        Self::start_where(netns, interface, |_| true)
    }

    /// Begins to capture the frames that `wanted` accepts.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn start_where(
        netns: &Netns,
        interface: &str,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self> {
        let socket = netns
            .enter(|| packet_socket(interface))?
            .with_context(|| format!("cannot capture on {interface} in {}", netns.name()))?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, caught_up) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (frames, stop) = (Arc::clone(&frames), Arc::clone(&stop));
            let (asked, caught_up) = (Arc::clone(&asked), Arc::clone(&caught_up));
            move || {
                let mut buffer = vec![0; BUFFER];
                // What has come before the stop is read to its end.
                loop {
                    let ending = stop.load(Ordering::Acquire);
                    let question = asked.load(Ordering::Acquire);
                    match receive(&socket, &mut buffer) {
                        Ok(Some(frame)) if wanted(&frame.bytes) => {
                            let mut frames = lock(&frames);
                            if frames.len() < MOST_FRAMES {
                                frames.push(frame);
                            }
                        }
                        Ok(Some(_)) => {}
                        Ok(None) if ending => return,
                        Ok(None) => caught_up.store(question, Ordering::Release),
                        // The interface is gone; what came before counts.
                        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                            if ending {
                                return;
                            }
                        }
                        Err(error) => {
                            eprintln!("capture: {error}");
                            return;
                        }
                    }
                }
            }
        });
        Ok(Self { frames, stop, asked, caught_up, thread: Some(thread) })
    }

    /// Waits until all is read that has come, so that a frame that passed is not missed because its reader was late.
    /// Not for ever: where frames never stop to come there is always one more.
    fn catch_up(&self) {
        let question = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let start = Instant::now();
        while self.caught_up.load(Ordering::Acquire) < question
            && start.elapsed() < wait::patient(CATCH_UP)
            && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
        {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What was captured until now.
    pub fn frames(&self) -> Vec<Frame> {
        self.catch_up();
        lock(&self.frames).clone()
    }

    /// How many of the frames until now `wanted` accepts.
    pub fn count(&self, wanted: impl Fn(&Frame) -> bool) -> usize {
        self.catch_up();
        lock(&self.frames).iter().filter(|frame| wanted(frame)).count()
    }

    /// Waits for a frame that `wanted` accepts.
    ///
    /// # Errors
    /// There was none within `limit`.
    pub fn wait_for(&self, what: &str, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        wait::value(what, limit, || Ok(lock(&self.frames).iter().find(|frame| wanted(frame)).cloned()))
    }

    /// How often exactly this frame came in.
    pub fn arrived(&self, frame: &[u8]) -> usize {
        self.count(|seen| !seen.outgoing && seen.bytes == frame)
    }

    /// Waits until exactly this frame has come in.
    ///
    /// # Errors
    /// It has not, soon.
    pub fn wait_arrival(&self, what: &str, frame: &[u8]) -> Result<()> {
        self.wait_for(what, wait::SOON, |seen| !seen.outgoing && seen.bytes == frame).map(|_| ())
    }

    /// The GRE packets until now.
    pub fn packets(&self) -> Vec<(Frame, Gre)> {
        self.frames()
            .into_iter()
            .filter_map(|frame| Gre::parse(&frame.bytes).map(|gre| (frame, gre)))
            .collect()
    }

    /// The GRE packets until now that went out, or that came in, and carry exactly this frame.
    pub fn carrying(&self, outgoing: bool, inner: &[u8]) -> Vec<Gre> {
        let packets = self.packets().into_iter().filter(|(frame, _)| frame.outgoing == outgoing);
        packets.map(|(_, gre)| gre).filter(|gre| gre.inner == inner).collect()
    }

    /// Ends, and returns everything.
    pub fn stop(mut self) -> Vec<Frame> {
        self.end();
        mem::take(&mut lock(&self.frames))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("capture: the thread panicked");
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(frames: &Mutex<Vec<Frame>>) -> MutexGuard<'_, Vec<Frame>> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends frames through an interface, as they are.
///
/// # Errors
/// The kernel takes none, or not all of one.
pub fn send<B: AsRef<[u8]> + Sync>(netns: &Netns, interface: &str, frames: &[B]) -> Result<()> {
    let sender = Sender::new(netns, interface)?;
    frames.iter().try_for_each(|frame| sender.send(frame.as_ref()))
}

/// Sends frames through an interface.
#[derive(Debug)]
pub struct Sender(OwnedFd);

impl Sender {
    /// Opens the interface.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn new(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns
            .enter(|| packet_socket(interface))?
            .with_context(|| format!("cannot send through {interface} in {}", netns.name()))?;
        Ok(Self(socket))
    }

    /// Hands frames to the driver at once from now on, past the interface's queueing discipline.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bypass_qdisc(&self) -> Result<()> {
        option(&self.0, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1_i32)
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and the length are those of one slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot send a frame of {} bytes", frame.len()));
        }
        Ok(())
    }

    /// Sends frames as they are, many with each system call. Those that a full queue has no room for are sent again.
    ///
    /// # Errors
    /// The kernel does not take them.
    pub fn send_all<B: AsRef<[u8]>>(&self, frames: &[B]) -> Result<()> {
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| frame.as_ref())
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all-zero is a valid value of this plain structure.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
                message
            })
            .collect();
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            // SAFETY: each message points to one part of `parts`, and that to a frame; all live until the end of this
            // function, and nothing is written to frames that are sent.
            let sent = unsafe {
                libc::sendmmsg(self.0.as_raw_fd(), rest.as_mut_ptr(), u32::try_from(rest.len())?, 0)
            };
            match usize::try_from(sent) {
                Ok(sent) => rest = &mut rest[sent..],
                Err(_) => match io::Error::last_os_error() {
                    error if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
                    error => return Err(error).context("cannot send frames"),
                },
            }
        }
        Ok(())
    }
}

/// A packet socket for all protocols on an interface of this thread's namespace.
fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface)?;
    // SAFETY: no memory is passed. Protocol 0 receives nothing until it is bound.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a packet socket");
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &SOCKET_BUFFER)?;
    let interval = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &interval)?;

    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of one valid address.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length) };
    if bound < 0 {
        return Err(io::Error::last_os_error()).context("cannot bind a packet socket");
    }
    Ok(socket)
}

fn option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of one value, of the type that the option takes.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(value).cast(), length) };
    if set < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot set socket option {name}"));
    }
    Ok(())
}

/// The next frame; none if none came for a while.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Frame>> {
    // SAFETY: all-zero is a valid value of these plain structures.
    let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = [0_u64; 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = ptr::from_mut(&mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in the message is to memory of the length beside it, which lives until the end of this
    // function.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        };
    };
    let mut bytes = buffer[..length.min(buffer.len())].to_vec();
    if let Some(tag) = vlan_tag(&message)
        && bytes.len() >= 12
    {
        bytes.splice(12..12, tag);
    }
    let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
    Ok(Some(Frame { bytes, outgoing, at: Instant::now() }))
}

/// The VLAN tag that the kernel took out of the frame, as it was on the wire.
fn vlan_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel has filled the control buffer that the message points to.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers inside the buffer, which is aligned for them.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
            // SAFETY: a message of this type holds this structure; it need not be aligned.
            let data: libc::tpacket_auxdata = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let [p0, p1] = data.tp_vlan_tpid.to_be_bytes();
                let [t0, t1] = data.tp_vlan_tci.to_be_bytes();
                return Some([p0, p1, t0, t1]);
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
