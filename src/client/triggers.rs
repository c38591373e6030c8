//! What lies in the inbox: what waits and why, and how it is taken out again.

use super::change::end_waiting;
use super::status::{Waiting, waiting};
use super::view::{self, Lies};
use super::{Client, Code, Failure};
use crate::decide::explain::{Reserved, Scene};
use crate::model::ids::{JobName, RunId};
use crate::model::message::quoted;

/// What stands in the place of a name for what nobody dropped.
const NAMELESS: &str = "-";

/// Everything that waits, in the order in which it will be taken; in reasons runs are named of jobs that `sees` lets be seen.
///
/// # Errors
/// Exit code 4.
pub fn list(client: &Client, sees: &dyn Fn(&JobName) -> bool) -> Result<Vec<Waiting>, Failure> {
    let programs = view::programs(client)?;
    // Before the state: what is claimed in between is then active rather than nowhere.
    let lying = view::waiting(client)?;
    let state = view::state(client)?.unwrap_or_default();
    let seen = view::seen(&view::devices(client)?, &state);
    let (catalog, now) = (programs.catalog(), client.now());
    let reserved = Reserved::new();
    Ok(waiting(&lying, Scene { catalog, state: &state, devices: &seen, now, reserved: &reserved, sees }))
}

/// Ends the run of a trigger that waits, by the name of its file or the id of its run, as `cancelled`; the trigger is kept in `TriggersProcessed`.
///
/// # Errors
/// Exit code 3: no trigger of this name waits; 1: several do, or it cannot be taken out.
pub fn remove(client: &Client, name: &str, sees: &dyn Fn(&Waiting) -> bool) -> Result<RunId, Failure> {
    let missing = || {
        let error = format!("no trigger {} waits", quoted(name));
        Failure::new(Code::NotFound, error, "what was taken is a run: cancel that")
    };
    for _ in 0..5 {
        // What runs by itself has no name of a file: it is named by its run.
        let is_it = |waiting: &Waiting| {
            let is_run = waiting.run_id.as_ref().is_some_and(|run| run.as_str() == name);
            (is_run || (waiting.trigger == name && name != NAMELESS)) && sees(waiting)
        };
        let mut found = list(client, &|_| true)?.into_iter().filter(is_it);
        let Some(there) = found.next() else { return Err(missing()) };
        let more = found.filter_map(|waiting| waiting.run_id).map(|run| run.to_string()).collect::<Vec<_>>();
        if !more.is_empty() {
            let error = format!("{} names several runs that wait, also {}", quoted(name), more.join(", "));
            return Err(Failure::new(Code::Failed, error, "give the id of the run instead"));
        }
        let lying = view::waiting(client)?;
        let found = lying.into_iter().find_map(|(_, lies)| match lies {
            Lies::Waits(entry) if Some(&entry.run) == there.run_id.as_ref() => Some(entry),
            Lies::Waits(_) | Lies::Refused(..) | Lies::Unfinished => None,
        });
        match found {
            Some(entry) if end_waiting(client, &entry)? => return Ok(entry.run.clone()),
            Some(_) => {}
            None if there.job.is_none() => {
                let error = format!("{} is no trigger (yet): {}", quoted(name), there.reason);
                return Err(Failure::new(Code::Failed, error, "a device moves what cannot be taken to rejected"));
            }
            None => {}
        }
        client.pause(std::time::Duration::from_millis(20));
    }
    Err(missing())
}
