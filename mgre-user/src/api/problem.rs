//! Errors as a client sees them: problem details for HTTP APIs (RFC 9457).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{ErrorKind, ModelError};

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";
/// What a problem says is cut off after so many bytes.
const DETAIL_MAX: usize = 1000;

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
            detail: one_line(detail.into()),
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

/// Text that a client may have had a part in, as something that can be shown: in one line, and not too long. What
/// stands at its ends says most.
pub(super) fn one_line(text: String) -> String {
    if text.len() <= DETAIL_MAX && !text.contains(char::is_control) {
        return text;
    }
    let escape = |part: &str| {
        let escaped =
            part.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() });
        escaped.collect::<String>()
    };
    if text.len() <= DETAIL_MAX {
        return escape(&text);
    }
    let half = DETAIL_MAX / 2;
    let (start, end) = (text.floor_char_boundary(half), text.ceil_char_boundary(text.len() - half));
    format!("{} ... {}", escape(&text[..start]), escape(&text[end..]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_one_line_and_not_too_long() {
        assert_eq!(Problem::not_found("no peer \"ä\"").detail, "no peer \"ä\"");
        assert_eq!(Problem::not_found("a\n\u{1b}[2Jb\0").detail, "a\\n\\u{1b}[2Jb\\u{0}");
        let long = Problem::not_found(format!("no {} here", "ä".repeat(1 << 20))).detail;
        assert!(long.len() < DETAIL_MAX + 10, "{long}");
        assert!(long.starts_with("no ää") && long.contains("ä ... ä") && long.ends_with("ää here"), "{long}");
    }
}
