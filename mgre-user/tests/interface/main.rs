//! The API and the command line, from outside, with a stand-in for the engine.

mod abuse;
mod api;
mod cli;
mod documents;
mod engine;
mod nonsense;
mod raw;
