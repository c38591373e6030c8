//! `orchestrator devices limits`: a device's slots and default limits, changed while it runs.

use clap::Args;

use super::{Code, Context, Failure};
use crate::client::devices::{Limited, limit};
use crate::model::limits::{Resources, read_cpus, read_memory, read_pids, read_slots};

/// Instead of a limit: there is to be none.
const NONE: &str = "none";

/// What an option says, which can be that there is none.
type OrNone<T> = Option<T>;

/// Which device, and what of it.
#[derive(Debug, Clone, Args)]
pub(super) struct LimitsArgs {
    /// Its id.
    id: String,
    /// How much it runs at once; what runs already goes on.
    #[arg(long, value_name = "N", value_parser = read_slots)]
    slots: Option<u32>,
    /// The memory of a run whose job does not say; `none`: as much as there is.
    #[arg(long, value_name = "SIZE|none", value_parser = or_none(read_memory))]
    memory: Option<OrNone<u64>>,
    /// The same for processor time, as a number of CPUs.
    #[arg(long, value_name = "N|none", value_parser = or_none(read_cpus))]
    cpus: Option<OrNone<u32>>,
    /// The same for processes and threads.
    #[arg(long, value_name = "N|none", value_parser = or_none(read_pids))]
    pids: Option<OrNone<u32>>,
}

fn or_none<T: 'static>(
    read: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<OrNone<T>, String> + Clone + Send + Sync + 'static {
    move |text| {
        if text == NONE {
            return Ok(None);
        }
        read(text).map(Some).map_err(|error| format!("{error}, or {NONE}"))
    }
}

/// Leaves for a device what is asked of it; with nothing to change it only says what holds.
pub(super) fn limits(context: &Context, args: &LimitsArgs) -> Result<Code, Failure> {
    let set = Resources { slots: args.slots, memory: args.memory, cpu_millis: args.cpus, pids: args.pids };
    let limited = limit(&context.client, &args.id, set)?;
    if context.out.json {
        context.out.document(&limited)?;
        return Ok(Code::Done);
    }
    let Limited { device, slots, limits, asked, alive, note } = limited;
    if !context.out.quiet {
        let when = match (asked.is_empty(), alive) {
            (true, _) => "",
            (false, true) => ", as soon as it reads this",
            (false, false) => ", once it is back: it is not alive",
        };
        context.out.line(&format!("{device}: {slots} slots; of each run {}{when}", limits.show()))?;
    }
    if let Some(note) = note {
        context.out.note(&note);
    }
    Ok(Code::Done)
}
