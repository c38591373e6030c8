//! Verbs: what should happen, decided purely.
//!
//! This room promises that every rule of the product is a function of what it is given: the same state and the same
//! observation give the same plan, on every device and in the simulator. It reads no clock, touches no file, draws no
//! random number and keeps nothing between two calls but what its caller hands back.

pub mod agenda;
pub mod attempts;
pub mod backup;
pub mod catalog;
pub mod chain;
pub mod claim;
pub mod deferred;
pub mod derive;
pub mod due;
pub mod explain;
pub mod liveness;
pub mod lost;
pub mod marks;
pub mod mentions;
pub mod notify;
pub mod placement;
pub mod plan;
pub mod queue;
pub mod recover;
pub mod reserve;
pub mod settle;
pub mod space;
