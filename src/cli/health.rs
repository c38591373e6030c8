//! `orchestrator health`: whether this machine's device lives, in one exit code, for whoever watches containers and services.

use clap::Args;

use super::{Code, Context, Failure};
use crate::client::default_device;
use crate::client::view::{self, Life};
use crate::model::ids::DeviceId;
use crate::volume::heartbeat;
use crate::volume::os::is_network;

/// Which device.
#[derive(Debug, Clone, Args)]
pub(super) struct HealthArgs {
    /// The device [default: DEVICE_ID, else the host's name].
    device: Option<DeviceId>,
}

/// Exit code 0: it beats and holds its lock. 1: it does not. What only hinders it is said and no reason to end it.
pub(super) fn health(args: &HealthArgs, context: &Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    let device = args.device.clone().unwrap_or_else(default_device);
    let silent = |error: String| Failure::new(Code::Failed, error, "`orchestrator logs` has what it said last");
    let Some(beat) = heartbeat::read(&*context.client.disk, &context.client.layout, &device)? else {
        return Err(silent(format!("device {device} has no heartbeat in {}", context.client.layout.common.display())));
    };
    if beat.left {
        return Err(silent(format!("device {device} has left")));
    }
    match view::life_of(&context.client, &beat, is_network(&context.client.layout.common))? {
        Life::Alive => {}
        Life::Silent => return Err(silent(format!("device {device} lives, and cannot write its heartbeat"))),
        Life::Over => return Err(silent(format!("device {device} does not beat any more"))),
    }
    if context.out.json {
        context.out.document(&serde_json::json!({"device": device, "alive": true, "problems": beat.problems}))?;
    } else {
        context.out.note(&format!("device {device} lives"));
        for problem in &beat.problems {
            context.out.note(&format!("hindered: {problem}"));
        }
    }
    Ok(Code::Done)
}
