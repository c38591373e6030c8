//! What a device says once it works: where the folders are, where the API listens, the first key, and what to type next.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use crate::exec::identity;
use crate::volume::layout::Layout;

/// Devices that start together say their part first, so that these lines are the last ones.
const AFTER: Duration = Duration::from_secs(1);

/// How the people who started this device see it from outside; set by `docker-compose.yml` and `debug.sh`.
#[derive(Debug, Clone, Args)]
pub(super) struct Outside {
    /// The address at which people reach the HTTP API, where it is another one than it listens at.
    #[arg(long, env = "AIOS_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,
    /// The script that started this device: it is named for what to type next.
    #[arg(long, hide = true, env = "AIOS_STARTED_WITH", value_name = "PATH")]
    started_with: Option<String>,
    /// Where Common lies for whoever started this device.
    #[arg(long, hide = true, env = "AIOS_SHOWN_COMMON", value_name = "PATH")]
    shown_common: Option<String>,
    /// Where Programs lies for whoever started this device.
    #[arg(long, hide = true, env = "AIOS_SHOWN_PROGRAMS", value_name = "PATH")]
    shown_programs: Option<String>,
}

/// The API of a device that works.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// Where it listens.
    pub(super) url: String,
    /// The first key, if this device has just made it.
    pub(super) first_key: Option<String>,
}

/// Writes the lines to standard error, a moment from now. They hold a key, so they do not go through the log.
///
/// A device without an API, such as one of many workers, says nothing unless a script waits for it.
pub(super) fn announce(device: &str, layout: &Layout, served: Option<Served>, outside: &Outside) {
    if served.is_none() && outside.started_with.is_none() {
        return;
    }
    let text = lines(device, layout, served, outside);
    let write = move || {
        let _ = std::io::stderr().write_all(text.as_bytes());
    };
    tokio::spawn(async move {
        tokio::time::sleep(AFTER).await;
        // On a thread of its own: whoever was to read this may never do so.
        let _ = std::thread::Builder::new().name("aios-ready".to_owned()).spawn(write);
    });
}

fn lines(device: &str, layout: &Layout, served: Option<Served>, outside: &Outside) -> String {
    let shown = |known: &Option<String>, path: &std::path::Path| known.clone().unwrap_or(path.display().to_string());
    let common = shown(&outside.shown_common, &layout.common);
    let programs = shown(&outside.shown_programs, &layout.programs);
    let verb =
        if identity::is_in_container() { "docker compose exec orchestrator orchestrator" } else { "orchestrator" };
    let (url, key) = match served {
        None => ("none on this device".to_owned(), "none".to_owned()),
        Some(Served { url, first_key }) => (
            outside.public_url.clone().unwrap_or(url),
            first_key.map_or_else(
                || format!("shown at the first start; for another one: {verb} keys create --name NAME --role ROLE"),
                |key| format!("{key} (the first one, for an admin)"),
            ),
        ),
    };
    let commands = match &outside.started_with {
        Some(script) => ["trigger hello", "status", "logs", "down"].map(|word| format!("{script} {word}")),
        None => ["orchestrator trigger hello", "orchestrator status", "orchestrator logs -f", "Ctrl-C, or SIGTERM"]
            .map(str::to_owned),
    };
    let [example, status, logs, stop] = commands;
    format!(
        "ready     device {device}\n\
         folders   {common} with Triggers, Results and Logs; jobs in {programs}\n\
         API       {url}\n\
         key       {key}\n\
         next      drop a file       cp FILE.json {common}/Triggers/\n\
         \x20         try an example    {example}\n\
         \x20         look              {status}\n\
         \x20         follow the logs   {logs}\n\
         \x20         stop              {stop}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_what_people_see_from_outside() {
        let layout = Layout { common: "/aios/Common".into(), programs: "/aios/Programs".into() };
        let served =
            |key: Option<&str>| Some(Served { url: "http://0.0.0.0:8080".into(), first_key: key.map(str::to_owned) });
        let mut outside = Outside { public_url: None, started_with: None, shown_common: None, shown_programs: None };
        let said = lines("a", &layout, served(Some("aios_k")), &outside);
        for part in
            ["/aios/Common with", "API       http://0.0.0.0:8080\n", "key       aios_k (", "orchestrator status"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(lines("a", &layout, None, &outside).contains("API       none"));
        outside.public_url = Some("http://localhost:81".into());
        outside.shown_common = Some("./Common".into());
        outside.started_with = Some("./debug.sh".into());
        let said = lines("a", &layout, served(None), &outside);
        for part in
            ["./Common with", "API       http://localhost:81\n", "keys create", "./debug.sh down", "./Common/Triggers/"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
