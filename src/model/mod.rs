//! Nouns: what a job, a trigger, a run, a device and the shared state *are*.
//!
//! This room promises to be free of effects: no clock, no file, no randomness, nothing asynchronous. Time arrives as an
//! argument. Everything here can be compared, printed and built in a test.

pub mod access;
pub mod backup;
pub mod config;
pub mod container;
pub mod device;
pub mod entry;
pub mod ids;
pub mod job;
pub mod json_scan;
pub mod lease;
pub mod limits;
pub mod marks;
pub mod masker;
pub mod message;
pub mod news;
pub mod pools;
pub mod result;
pub mod runs;
pub mod schedule;
pub mod schema;
pub mod sorted;
pub mod space;
pub mod state;
pub mod time;
mod toml_read;
pub mod trigger;
