//! AIOS: one binary that runs jobs across every container and machine that shares a folder.
//!
//! Whoever drops a JSON file into `Common/Triggers` gets the job run on a device with the right tags. Every device runs the
//! same loop - observe, decide, commit, perform - and there is no leader. This page is the map; `ARCHITECTURE.md` says more.
//!
//! # Floors
//!
//! A room imports only rooms on lower floors; rooms on one floor do not know each other (`tests/it/tidy.rs` holds them to it).
//!
//! | floor | room | what it is |
//! |---|---|---|
//! | 0 | [`model`] | nouns: no clock, no file, nothing asynchronous, nothing random |
//! | 1 | [`decide`] | verbs, pure: state and observation in, plan out |
//! | 2 | [`volume`] | the shared folder: the only room that touches files |
//! | 3 | [`store`] | the shared state: one lock hold, one commit |
//! | 3 | [`exec`] | what runs attempts: the only room that touches processes |
//! | 3 | [`notify`] | what tells webhooks: the only room that speaks to others |
//! | 4 | [`coordinator`] | the loop, and the only owner of change |
//! | 5 | [`client`] | what people see of a volume, and what they ask to be changed |
//! | 6 | [`api`] | control over HTTP: sees what a client sees, decides nothing |
//! | 7 | [`cli`] | one file a verb |
//!
//! # The way of one trigger
//!
//! 1. `Triggers/hello.json` appears; [`volume::watch`] wakes the loop, or the scan finds it.
//! 2. [`volume::inbox`] reads it into an [`model::entry::Entry`], which [`decide::queue`] puts in its place.
//! 3. [`decide::plan::plan`] claims it. [`store::Store::transact`] asks for that plan again under the lock, renames the file
//!    into `.running` - only one device can - and commits.
//! 4. [`decide::derive`] sees an attempt that the state gives to this device and that does not run: [`exec`] starts it.
//! 5. It ends; its result is written aside. [`decide::settle`] accepts it only if the lease is still the same: the commit makes the
//!    result visible and moves the trigger to `TriggersProcessed`.
//!
//! # What never happens
//!
//! One current attempt of a run; no attempt number twice; a final result stays, and is the only one; every dropped file ends
//! as exactly one of processed, rejected, duplicate. `tests/sim` holds the product to these, and to the rest, with code of its own.

// Beside the rooms: bugs for the simulator to find.
pub mod planted;
pub(crate) use planted::planted;

// Floor 0.
pub mod model;

// Floor 1.
pub mod decide;

// Floor 2.
pub mod volume;

// Floor 3.
pub mod exec;
pub mod notify;
pub mod store;

// Floor 4.
pub mod coordinator;

// Floor 5.
pub mod client;

// Floor 6.
pub mod api;

// Floor 7.
pub mod cli;
