//! `orchestrator init`: makes the shared folder ready before there is a device.

use super::access::explain;
use super::{Code, Context, Failure};
use crate::coordinator::{check_writable, open_volume};
use crate::volume::os::refused_file;

/// Makes the folders that are missing, and fails with exit code 4 if one of them cannot be written.
pub(super) fn init(context: &mut Context) -> Result<Code, Failure> {
    let client = &mut context.client;
    let made = open_volume(&*client.disk, &client.layout, &client.session)
        .and_then(|id| check_writable(&*client.disk, &client.layout, &mut client.names).map(|()| id))
        .and_then(|id| refused_file(&client.layout).map_or(Ok(id), Err));
    let id = made.map_err(|error| explain(error, &context.client.layout))?;
    let common = context.client.layout.common.display();
    if context.out.json {
        context.out.document(&serde_json::json!({"common": common.to_string(), "volume": id}))?;
    } else {
        context.out.note(&format!("{common} is ready"));
    }
    Ok(Code::Done)
}
