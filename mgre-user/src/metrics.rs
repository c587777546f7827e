//! The Prometheus text.
