//! The API and the command line, from outside, with a stand-in for the engine.

mod api;
mod cli;
mod engine;
