//! Backups of the volume, made while it is used.

use std::path::Path;
use std::time::Duration;

use super::view::patiently;
use super::{Client, Code, Failure};
use crate::volume::atomic::Temporary;
use crate::volume::backup::{Fault, Made, Terms, make, prune};

/// Makes a backup in the folder `to`, with results that are younger than `results`, and removes all but the newest `keep` of this
/// volume there: their names.
///
/// # Errors
/// Exit code 4.
pub fn back_up(
    client: &mut Client,
    to: &Path,
    results: Duration,
    keep: Option<usize>,
) -> Result<(Made, Vec<String>), Failure> {
    let mut names = Temporary::new(client.session.clone());
    let made = patiently(
        client,
        |fault| matches!(fault, Fault::Busy { .. }),
        |now| {
            let terms = Terms { device: client.device.clone(), to: to.to_owned(), results, now: now.wall };
            make(&*client.disk, &client.layout, &mut names, &terms, &|| false)
        },
    )?;
    let removed = match keep {
        Some(keep) => prune(&*client.disk, &client.layout, to, keep, &made)?,
        None => Vec::new(),
    };
    Ok((made, removed))
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let code = match &fault {
            Fault::Bad { .. } => Code::Usage,
            Fault::Volume(_)
            | Fault::Busy { .. }
            | Fault::Changed { .. }
            | Fault::TooMuch { .. }
            | Fault::Damaged { .. }
            | Fault::Newer { .. }
            | Fault::Alive { .. }
            | Fault::OtherVolume { .. }
            | Fault::Occupied { .. }
            | Fault::InTheWay { .. }
            | Fault::NoRoom { .. } => Code::Volume,
            Fault::Stopped => Code::Failed,
        };
        Self::new(code, fault.to_string(), fault.hint())
    }
}
