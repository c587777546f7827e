//! The pipeline over ordinary memory: frames and tables for tests.
