//! How much memory requests and answers may take together.
//!
//! Documents and listings may be megabytes long. Only so many of them are in the works at one time; others wait for
//! their turn, and are told to come again when that does not come soon, or too many wait already.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::extract::{BODY_MAX, too_long};
use super::problem::Problem;

/// Bodies longer than this take turns. Those that do not say how long they are do, too.
const SHORT: u64 = 64 * 1024;
/// Long bodies that are read and worked on at one time.
const BODIES: usize = 4;
/// Listings that are made and sent at one time.
const ANSWERS: usize = 8;
/// Requests that wait for either at most.
const WAITING: usize = 64;
/// Streams of events at one time.
const STREAMS: usize = 64;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// A listing is sent in pieces of so many bytes.
const PIECE: usize = 64 * 1024;
/// How long a client may take to read a listing,
const READ_SECONDS: u64 = 30;
/// and how much longer for a long one: a second for so many bytes.
const READ_RATE: u64 = 256 * 1024;

/// Turns to take.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    bodies: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Lanes {
    pub(super) fn new() -> Self {
        let [bodies, answers, waiting, streams] =
            [BODIES, ANSWERS, WAITING, STREAMS].map(|turns| Arc::new(Semaphore::new(turns)));
        Self { bodies, answers, waiting, streams }
    }

    /// A turn to send events, for as long as it is held.
    ///
    /// # Errors
    /// Too many listen.
    pub(super) fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Problem::new(503, format!("{STREAMS} clients listen to events already")))
    }

    async fn turn(&self, lane: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = || Problem::new(503, "too many large requests at one time: try again in some seconds");
        if let Ok(turn) = Arc::clone(lane).try_acquire_owned() {
            return Ok(turn);
        }
        let _waits = self.waiting.try_acquire().map_err(|_| busy())?;
        match timeout(PATIENCE, Arc::clone(lane).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(busy()),
        }
    }
}

/// Lets long bodies take turns, until they are answered.
pub(super) async fn bodies(State(lanes): State<Lanes>, request: Request, next: Next) -> Response {
    let length = request.body().size_hint();
    if length.lower() > BODY_MAX as u64 {
        return too_long().into_response();
    }
    if length.upper().is_some_and(|length| length <= SHORT) {
        return next.run(request).await;
    }
    match lanes.turn(&lanes.bodies).await {
        Ok(_turn) => next.run(request).await,
        Err(problem) => refused(problem),
    }
}

/// Lets listings take turns, until they are sent.
pub(super) async fn answers(State(lanes): State<Lanes>, request: Request, next: Next) -> Response {
    match lanes.turn(&lanes.answers).await {
        Ok(turn) => next.run(request).await.map(|body| Body::new(Listing::new(body, turn))),
        Err(problem) => refused(problem),
    }
}

fn refused(problem: Problem) -> Response {
    let mut response = problem.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// An answer that goes out piece by piece, and holds its turn until then.
#[derive(Debug)]
struct Listing {
    body: Body,
    /// What of it is not sent yet.
    rest: Bytes,
    until: Instant,
    _turn: OwnedSemaphorePermit,
}

impl Listing {
    fn new(body: Body, turn: OwnedSemaphorePermit) -> Self {
        let seconds = READ_SECONDS + body.size_hint().lower() / READ_RATE;
        let until = Instant::now() + Duration::from_secs(seconds);
        Self { body, rest: Bytes::new(), until, _turn: turn }
    }
}

impl HttpBody for Listing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if Instant::now() > this.until {
            let slow = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Poll::Ready(Some(Err(axum::Error::new(slow))));
        }
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listing_is_sent_whole_and_holds_its_turn_until_then() {
        let lanes = Lanes::new();
        let turn = lanes.turn(&lanes.answers).await.expect("free");
        let bytes: Bytes = (0..200_000_u32).map(|number| number as u8).collect();
        let body = Body::new(Listing::new(Body::from(bytes.clone()), turn));
        assert_eq!(
            (body.size_hint().exact(), lanes.answers.available_permits()),
            (Some(200_000), ANSWERS - 1)
        );
        assert_eq!(axum::body::to_bytes(body, usize::MAX).await.expect("all"), bytes);
        assert_eq!(lanes.answers.available_permits(), ANSWERS);
    }

    #[tokio::test]
    async fn only_so_many_wait() {
        let lanes = Lanes::new();
        let mut turns = Vec::new();
        for _ in 0..BODIES {
            turns.push(lanes.turn(&lanes.bodies).await.expect("free"));
        }
        let all = lanes.waiting.clone().acquire_many_owned(WAITING as u32).await.expect("nobody waits");
        assert_eq!(lanes.turn(&lanes.bodies).await.expect_err("none is free").status, 503);
        drop(all);
        let (next, ()) = tokio::join!(lanes.turn(&lanes.bodies), async { turns.clear() });
        assert!(next.is_ok(), "one became free");
    }
}
