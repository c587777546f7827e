//! Parts of a request, with problems for answers when they are bad.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::activity::Activity;
use super::problem::{self, Problem};

/// The longest body that is read: a document of some ten thousand peers.
pub(super) const BODY_MAX: usize = 8 << 20;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, problem::CONTENT_TYPE)], body).into_response()
    }
}

/// A body, whatever it holds.
pub(super) struct Body(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let client = request.extensions().get::<Arc<Activity>>().cloned();
        let body = request.into_body();
        // Until it has come, it is the client who is waited for.
        let _turn = client.as_ref().map(Activity::wait);
        // What the head announces; a body that announces nothing is cut off below.
        if body.size_hint().lower() > BODY_MAX as u64 {
            return Err(too_long());
        }
        match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_MAX)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(_)) => Err(too_long()),
            Err(_) => Err(Problem::new(408, "the body did not come in time")),
        }
    }
}

pub(super) fn too_long() -> Problem {
    Problem::new(413, format!("the body is cut short, or longer than {BODY_MAX} bytes"))
}

/// A JSON body. An empty one reads as an empty object.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_kind(request.headers(), false)?;
        let Body(bytes) = Body::from_request(request, state).await?;
        json(&bytes).map(Self)
    }
}

/// Whether a body is said to be TOML. Clients that say nothing of a body, or what curl says by itself, mean JSON.
///
/// # Errors
/// It is said to be something else than JSON, or TOML where that is taken.
pub(super) fn check_kind(headers: &HeaderMap, toml: bool) -> Result<bool, Problem> {
    let said =
        |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    if let Some(encoding) = said(header::CONTENT_ENCODING).filter(|encoding| encoding != "identity") {
        return Err(Problem::new(415, format!("a body in content encoding {encoding:?} is not taken")));
    }
    let Some(kind) = said(header::CONTENT_TYPE) else { return Ok(false) };
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/toml" | "text/plain" | "text/x-toml" | "text/toml" if toml => Ok(true),
        "" | "application/json" | "application/x-www-form-urlencoded" => Ok(false),
        json if json.ends_with("+json") => Ok(false),
        other => {
            let wanted = if toml { "application/json or application/toml" } else { "application/json" };
            Err(Problem::new(415, format!("a body of type {other:?} is not taken: send {wanted}")))
        }
    }
}

/// Reads a JSON object; nothing reads as an empty one.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // A list would be read as the values of a structure's fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::bad_request("the body is not a JSON object"));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::bad_request(format!("the body is not right: {error}")))
}

/// What stands after the question mark.
pub(super) struct Options<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Options<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(options)| Self(options))
            .map_err(|error| Problem::bad_request(error.body_text()))
    }
}

/// Names in the path.
pub(super) struct Names<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Path::from_request_parts(parts, state)
            .await
            .map(|Path(names)| Self(names))
            .map_err(|error| Problem::bad_request(error.body_text()))
    }
}
