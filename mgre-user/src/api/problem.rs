//! Errors as a client sees them: problem details for HTTP APIs (RFC 9457).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{ErrorKind, ModelError};

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`: the status says the kind (RFC 9457 4.2.1).
    #[serde(rename = "type")]
    pub kind: String,
    /// The status as text.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here, in one line, and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem with this HTTP status.
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        let reason =
            axum::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        Self {
            kind: "about:blank".to_owned(),
            title: reason.unwrap_or("Error").to_owned(),
            status,
            detail: detail.into(),
        }
    }

    /// The request makes no sense (400).
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(400, detail)
    }

    /// No such thing (404).
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(404, detail)
    }

    /// It does not go together with what is there (409).
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(409, detail)
    }

    /// It could never be (422).
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(422, detail)
    }

    /// The kernel or the daemon failed (500).
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(500, detail)
    }

    /// The engine is not there or has stopped (503).
    pub fn unavailable() -> Self {
        Self::new(503, "the daemon is stopping")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

impl From<ModelError> for Problem {
    fn from(error: ModelError) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => 404,
            ErrorKind::Conflict => 409,
            ErrorKind::Invalid => 422,
        };
        Self::new(status, error.to_string())
    }
}
