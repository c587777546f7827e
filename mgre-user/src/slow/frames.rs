//! Single frames out of interfaces.

use std::io;

use socket2::Socket;

use super::socket::{any_frames, send_frame};

/// Sends single frames out of interfaces. It keeps its socket: to close one waits for a grace period of the kernel,
/// milliseconds for each.
#[derive(Debug, Default)]
pub(crate) struct FrameSender(Option<Socket>);

impl FrameSender {
    /// Sends one.
    ///
    /// # Errors
    /// There is no such interface, it is down, or it takes no more.
    pub(crate) fn send(&mut self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let socket = match self.0.take() {
            Some(socket) => socket,
            None => any_frames()?,
        };
        send_frame(self.0.insert(socket), ifindex, frame)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn one_socket_sends_all() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: needs root for a packet socket");
            return;
        }
        let mut sender = FrameSender::default();
        let mut sockets = Vec::new();
        // To the loopback interface, which throws away what it does not know, and to one that is not there.
        for (ifindex, there) in [(1, true), (0x7fff_fff0, false), (1, true)] {
            let frame = [[0; 12].as_slice(), &[0x88, 0xb5], &[0; 46]].concat();
            assert_eq!(sender.send(ifindex, &frame).is_ok(), there);
            let socket = sender.0.as_ref().expect("a socket").as_raw_fd();
            sockets.push(std::fs::metadata(format!("/proc/self/fd/{socket}")).expect("it is open").ino());
        }
        assert!(sockets.iter().all(|socket| *socket == sockets[0]), "{sockets:?}");
    }
}
