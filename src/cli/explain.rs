//! `orchestrator jobs explain`: when a job runs next, or why it does not.

use super::out::printable;
use super::times::short;
use super::{Code, Context, Failure};
use crate::client::explain::{self, Due};

pub(super) fn explain(name: &str, context: &Context) -> Result<Code, Failure> {
    let answer = explain::explain(&context.client, name)?;
    let out = &context.out;
    if out.json {
        out.document(&answer)?;
        return Ok(Code::Done);
    }
    for Due { at, local, timezone } in &answer.next {
        let local = local.replace('T', " ");
        let when = at.parse().map(|at| short(at, context.client.now().wall)).unwrap_or_default();
        out.line(&format!("due   {local}  {timezone:<20} {at}  {when}"))?;
    }
    for reason in &answer.reasons {
        out.line(&printable(reason))?;
    }
    if answer.next.is_empty() && answer.reasons.is_empty() {
        out.note("nothing keeps it from running");
    }
    Ok(Code::Done)
}
