//! A name server in a namespace, and a way to have a daemon ask it.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// The question's type for IPv4 addresses.
const TYPE_A: [u8; 2] = [0, 1];

/// What the server says.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Addresses by name; whoever is not in it does not exist.
    pub names: HashMap<String, Vec<Ipv4Addr>>,
    /// Whether it says nothing at all.
    pub silent: bool,
    /// How many addresses it has been asked for (questions for IPv4 addresses), silent or not.
    pub questions: usize,
}

/// A name server at 127.0.0.1 in a namespace. It gives the addresses of a name in another order each time, with a time
/// to live of zero. Ends when dropped.
#[derive(Debug)]
pub struct Dns {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts it.
    ///
    /// # Errors
    /// Its port cannot be bound.
    pub fn start(netns: &Netns) -> Result<Self> {
        let socket = netns.enter(|| UdpSocket::bind("127.0.0.1:53"))?.context("cannot bind port 53")?;
        socket.set_read_timeout(Some(LOOK))?;
        let (book, stop) = (Arc::new(Mutex::new(Book::default())), Arc::new(AtomicBool::new(false)));
        let (shared, ending) = (Arc::clone(&book), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut question = [0; 512];
            while !ending.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                let answer =
                    answer(&mut shared.lock().unwrap_or_else(PoisonError::into_inner), &question[..length]);
                if let Some(answer) = answer {
                    // Who asked may be gone.
                    socket.send_to(&answer, from).ok();
                }
            }
        });
        Ok(Self { book, stop, thread: Some(thread) })
    }

    /// Changes what it says.
    pub fn change(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Has a name have these addresses.
    pub fn say(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect();
        self.change(|book| drop(book.names.insert(name.to_owned(), addresses)));
    }

    /// How many addresses it has been asked for.
    pub fn questions(&self) -> usize {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).questions
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The answer to a question (RFC 1035 4.1), if one is given.
fn answer(book: &mut Book, question: &[u8]) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).into_owned());
        at += length;
    }
    let is_v4 = question.get(at..at + 2)? == TYPE_A;
    book.questions += usize::from(is_v4);
    if book.silent {
        return None;
    }
    let known = book.names.get_mut(&labels.join(".").to_ascii_lowercase());
    let exists = known.is_some();
    let addresses = known.filter(|_| is_v4).map(|addresses| {
        let places = usize::from(addresses.len() > 1);
        addresses.rotate_left(places);
        addresses.clone()
    });
    let addresses = addresses.unwrap_or_default();
    let code = if exists { 0 } else { 3 };
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    answer.extend(question.get(12..at + 4)?);
    for address in addresses {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The words of a command that becomes another one, which asks the name server at 127.0.0.1.
///
/// # Errors
/// A file in the folder cannot be written.
pub fn wrapper(folder: &Path) -> Result<Vec<String>> {
    let conf = folder.join("resolv.conf");
    fs::write(&conf, "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n")?;
    let script = format!("mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"", conf.display());
    Ok(["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).to_vec())
}
