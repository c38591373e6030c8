//! Whether the audit logs are whole: each line follows the one before it.

use super::{Context, Finding, some_of};
use crate::volume::{Error, audit};

pub(super) fn look(context: &Context) -> Finding {
    read(context).unwrap_or_else(Finding::from)
}

fn read(context: &Context) -> Result<Finding, Error> {
    let (disk, layout) = (&*context.client.disk, &context.client.layout);
    let logs = audit::all(disk, layout)?;
    let (mut lines, mut torn, mut broken) = (0, 0, Vec::new());
    for (device, files) in &logs {
        let mut checked = audit::check(disk, files)?;
        if checked.broken.is_some() {
            // It may have gone on in a new file between the list and the look.
            checked = audit::check(disk, &audit::all(disk, layout)?.remove(device).unwrap_or_default())?;
        }
        lines += checked.lines;
        torn += checked.torn;
        broken.extend(checked.broken.map(|(path, line)| format!("{}:{line}", path.display())));
    }
    if !broken.is_empty() {
        let found = format!("a line does not follow the one before it: {}", some_of(&broken));
        let mend = "one of the two was changed, or what was between them taken out: compare with a copy, and see who can write there";
        return Ok(Finding::error(found, mend));
    }
    let cut = if torn == 0 { String::new() } else { format!("; a crash cut off {torn} of them") };
    let count = logs.len();
    Ok(Finding::ok(format!(
        "{lines} changes over HTTP in the logs of {count} devices, each follows the one before{cut}"
    )))
}
