//! Who is connected, and who of them does nothing.
//!
//! There is room for so many connections. When it is taken, a new one gets the place of whoever has kept the
//! server waiting longest: connected and sent nothing, sent half a request, or does not read its answer. So nobody can
//! shut others out by connections alone; at worst they wait for [`GRACE`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Who did nothing for so long may lose its place.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// How often to look for one, while there is none.
const LOOK: Duration = Duration::from_millis(20);

/// What a connection does.
#[derive(Debug)]
pub(super) struct Activity {
    since: Instant,
    /// When the last byte went either way, in milliseconds after `since`.
    last: AtomicU64,
    /// The server works on a request: it is not the client who is waited for.
    busy: AtomicBool,
    /// It may be silent for as long as it likes.
    exempt: AtomicBool,
    leave: Notify,
}

impl Activity {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            last: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            exempt: AtomicBool::new(false),
            leave: Notify::new(),
        }
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A byte went either way.
    pub(super) fn note(&self) {
        self.last.store(self.milliseconds(), Ordering::Relaxed);
    }

    /// From here on the server works, until what is given is dropped.
    pub(super) fn work(self: &Arc<Self>) -> Turn {
        Turn::new(self, true)
    }

    /// From here on the client is waited for, until what is given is dropped.
    pub(super) fn wait(self: &Arc<Self>) -> Turn {
        Turn::new(self, false)
    }

    /// Never gives up its place: its answer has no end.
    pub(super) fn stay(&self) {
        self.exempt.store(true, Ordering::Relaxed);
    }

    /// Ready when the place is given to somebody else.
    pub(super) async fn told_to_leave(&self) {
        self.leave.notified().await;
    }

    /// For how long the client has kept the server waiting; none if it does not.
    fn idle(&self) -> Option<Duration> {
        if self.busy.load(Ordering::Relaxed) || self.exempt.load(Ordering::Relaxed) {
            return None;
        }
        Some(Duration::from_millis(self.milliseconds().saturating_sub(self.last.load(Ordering::Relaxed))))
    }
}

/// Whose turn it is, for as long as this lives.
#[derive(Debug)]
pub(super) struct Turn {
    activity: Arc<Activity>,
    before: bool,
}

impl Turn {
    fn new(activity: &Arc<Activity>, busy: bool) -> Self {
        Self { before: activity.busy.swap(busy, Ordering::Relaxed), activity: Arc::clone(activity) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.activity.note();
        self.activity.busy.store(self.before, Ordering::Relaxed);
    }
}

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    places: HashMap<u64, Arc<Activity>>,
}

impl Room {
    /// With so many places.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(places)), taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place. Waits until there is one, and sees to it that there will be.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return self.take(permit);
            }
            self.clear_one();
            // It may take its owner a moment to leave, and all may be at work.
            if let Ok(Ok(permit)) = tokio::time::timeout(LOOK, Arc::clone(&self.free).acquire_owned()).await {
                return self.take(permit);
            }
        }
    }

    fn take(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place {
        let activity = Arc::new(Activity::new());
        let mut taken = self.taken();
        let number = taken.next;
        taken.next += 1;
        taken.places.insert(number, Arc::clone(&activity));
        Place { room: Arc::clone(self), number, activity, _permit: permit }
    }

    /// Tells the one to leave that has been waited for longest, if that is long. Says whether there was one.
    pub(super) fn clear_one(&self) -> bool {
        let mut taken = self.taken();
        let idle = taken.places.iter().filter_map(|(number, activity)| Some((activity.idle()?, *number)));
        let Some((_, number)) = idle.filter(|(idle, _)| *idle >= GRACE).max() else { return false };
        // Not told twice.
        if let Some(activity) = taken.places.remove(&number) {
            activity.leave.notify_one();
        }
        true
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    number: u64,
    /// What is done there.
    pub(super) activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_nothing_makes_room_and_who_works_does_not() {
        let room = Room::new(3);
        let (idle, busy, stays) = (room.place().await, room.place().await, room.place().await);
        let turn = busy.activity.work();
        stays.activity.stay();
        assert!(!room.clear_one(), "not at once");
        tokio::time::sleep(GRACE + Duration::from_millis(50)).await;
        let (told, next) = tokio::join!(
            async {
                idle.activity.told_to_leave().await;
                drop(idle);
            },
            room.place(),
        );
        let () = told;
        assert!(!room.clear_one(), "the new one has just come, the others may stay");
        drop(turn);
        drop((next, busy, stays));
        assert!(room.taken().places.is_empty());
    }

    #[tokio::test]
    async fn a_request_that_does_not_come_is_waited_for() {
        let room = Room::new(1);
        let place = room.place().await;
        let work = place.activity.work();
        assert_eq!(place.activity.idle(), None);
        let wait = place.activity.wait();
        assert!(place.activity.idle().is_some());
        drop(wait);
        assert_eq!(place.activity.idle(), None);
        drop(work);
        assert!(place.activity.idle().is_some());
    }
}
