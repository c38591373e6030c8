//! What is looked at of secrets: whether those that jobs name are there, and whether others can read them.

use super::{Context, Finding, some_of};
use crate::client::view;
use crate::volume::secrets::{Exposed, exposed, missing};

pub(super) fn look(context: &Context) -> Finding {
    let (disk, layout) = (&*context.client.disk, &context.client.layout);
    let Exposed { paths, is_open } = exposed(disk, layout);
    if !paths.is_empty() {
        let told: Vec<String> =
            paths.iter().map(|(path, mode)| format!("{} has mode {mode:04o}", path.display())).collect();
        let found = format!("others than their owner have rights there: {}", some_of(&told));
        let mend = format!("chmod -R go= {}", layout.security().display());
        return if is_open { Finding::error(found, mend) } else { Finding::warning(found, mend) };
    }
    // That job files cannot be read is said by their own check.
    let programs = view::programs(&context.client).ok();
    let jobs = programs.iter().flat_map(|programs| programs.catalog().jobs.values());
    let (mut named, mut absent) = (0, Vec::new());
    for job in jobs {
        named += job.secrets().count();
        absent.extend(missing(disk, layout, job).into_iter().map(|why| format!("{}: {why}", job.name)));
    }
    if absent.is_empty() {
        return Finding::ok(format!(
            "jobs name them {named} times, each is there, and nobody but their owner can read them"
        ));
    }
    let mend = format!(
        "put the value of each into {} or /run/secrets, as this user, with mode 0600",
        layout.secrets().display()
    );
    Finding::warning(some_of(&absent), mend)
}
