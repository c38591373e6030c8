//! What is looked at on this machine: the interpreter, and room for file events.

use super::super::run::NO_ENGINE;
use super::{Context, Failure, Finding, Report};
use crate::client::{default_device, view};
use crate::exec::cgroup::{Cgroups, Why};
use crate::exec::docker::{self, DEFAULT_HOST};
use crate::exec::machine::{FileEvents, PYTHON, Python, file_events, python};
use crate::model::ids::DeviceId;
use crate::model::job::{Job, Program};
use crate::model::limits::CGROUP_TAG;
use crate::volume::heartbeat;

/// A device takes one instance of file events, and a handful of watches.
const WATCHES: u64 = 8;
/// So few free instances are soon gone.
const FEW: u64 = 4;

pub(super) fn checks(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let programs = view::programs(&context.client);
    let users = |needs: fn(&Job) -> bool| {
        programs.as_ref().map_or(0, |programs| programs.catalog().jobs.values().filter(|job| needs(job)).count())
    };
    report.tell("python3", of_python(&python(), users(needs_python)))?;
    report.tell("engine", of_engine(users(|job| job.container.is_some())))?;
    let users_of_limits = users(|job| job.container.is_none() && !job.limits.is_none());
    report.tell("limits", of_limits(holder(context).as_ref(), &Cgroups::look(), users_of_limits))?;
    report.tell("inotify", of_file_events(&file_events()))
}

/// `users`: how many jobs run in containers.
fn of_engine(users: usize) -> Finding {
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| DEFAULT_HOST.to_owned());
    if host == NO_ENGINE {
        return Finding::ok("this device is to use no container engine (DOCKER_HOST)");
    }
    match docker::look(&host) {
        Ok(seen) => {
            let manages = if seen.is_manager { ", and manages a swarm" } else { "" };
            Finding::ok(format!("a container engine answers at {host}, version {}{manages}", seen.version))
        }
        Err(fault) if users == 0 => Finding::ok(format!("{fault}; no job here needs one")),
        Err(fault) => {
            Finding::warning(format!("{fault}; {users} of the jobs here wait for a device that has one"), fault.hint())
        }
    }
}

/// This machine's device, if it says that it may make cgroups.
fn holder(context: &Context) -> Option<DeviceId> {
    let beat = heartbeat::read(&*context.client.disk, &context.client.layout, &default_device()).ok()??;
    let makes_cgroups = beat.tags.iter().any(|tag| tag.as_str() == CGROUP_TAG);
    (makes_cgroups && !beat.left).then_some(beat.device)
}

/// `holder`: the device that may make cgroups, which by its place it may where this process may not. `users`: how many jobs have limits
/// outside containers.
fn of_limits(holder: Option<&DeviceId>, looked: &Result<Cgroups, Why>, users: usize) -> Finding {
    if let Some(device) = holder {
        return Finding::ok(format!("outside containers a cgroup holds them, as the device {device} says"));
    }
    let why = match looked {
        Ok(cgroups) => return Finding::ok(format!("outside containers a cgroup holds them: {}", cgroups.show())),
        Err(why) => why,
    };
    let found = format!(
        "outside containers only memory is held, by address space (RLIMIT_AS), and what needs more waits for another device: {why}"
    );
    match users {
        0 => Finding::ok(format!("{found}; no job here has limits there")),
        _ => Finding::warning(
            format!("{found}; jobs here that have limits there: {users}"),
            "run the device as a service of systemd with Delegate=yes, in a container that may write its cgroups, or as root where cgroups are of version 1",
        ),
    }
}

fn needs_python(job: &Job) -> bool {
    if job.container.is_some() {
        return false;
    }
    match &job.program {
        Program::Function { .. } => true,
        Program::File(file) => file.ends_with(".py"),
        Program::Command(command) => command.first().is_some_and(|program| program == "python3"),
    }
}

/// `users`: how many jobs run under it.
fn of_python(python: &Python, users: usize) -> Finding {
    let needed = format!("{}.{} or newer", PYTHON.0, PYTHON.1);
    let found = match python {
        Python::Found { version, is_enough: true } => return Finding::ok(format!("python3 is {version}")),
        Python::Found { version, is_enough: false } => format!("python3 is {version}, expected {needed}"),
        Python::Missing => "there is no python3 in PATH".to_owned(),
        Python::Broken { why } => format!("python3 cannot be used: {why}"),
    };
    let mend = format!("install Python {needed}, and see that `python3` in the device's PATH is that one");
    match users {
        0 => Finding::warning(format!("{found}; no job here needs it"), mend),
        1 => Finding::error(format!("{found}; 1 job runs under it"), mend),
        many => Finding::error(format!("{found}; {many} jobs run under it"), mend),
    }
}

fn of_file_events(events: &FileEvents) -> Finding {
    let FileEvents { max_watches, max_instances, watches, instances } = *events;
    let (Some(max_watches), Some(max_instances)) = (max_watches, max_instances) else {
        return Finding::ok("the kernel does not tell its limits of file events; see events");
    };
    let found = format!(
        "{instances} of {max_instances} instances and {watches} of {max_watches} watches are taken by what this user runs here"
    );
    let mend = |key: &str, most: u64| {
        format!(
            "sysctl fs.inotify.{key}={} on the host; without events the scan finds triggers",
            most.max(1).saturating_mul(2)
        )
    };
    if max_instances.saturating_sub(instances) < FEW {
        return Finding::warning(found, mend("max_user_instances", max_instances));
    }
    if max_watches.saturating_sub(watches) < WATCHES * FEW {
        return Finding::warning(found, mend("max_user_watches", max_watches));
    }
    Finding::ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn python_is_missed_only_by_those_who_need_it() {
        let good = Python::Found { version: "3.9.1".to_owned(), is_enough: true };
        let old = Python::Found { version: "3.7.1".to_owned(), is_enough: false };
        let broken = Python::Broken { why: "it hangs".to_owned() };
        assert_eq!(of_python(&good, 2).verdict, Verdict::Ok);
        for bad in [&old, &Python::Missing, &broken] {
            assert_eq!((of_python(bad, 0).verdict, of_python(bad, 1).verdict), (Verdict::Warning, Verdict::Error));
        }
        assert!(of_python(&old, 2).found.starts_with("python3 is 3.7.1, expected 3.8 or newer; 2 jobs"));
    }

    #[test]
    fn how_limits_are_held_is_told_and_is_a_fault_only_for_those_who_have_some() {
        let none = || Err(Why::NotWritable("/sys/fs/cgroup".into()));
        let (idle, used) = (of_limits(None, &none(), 0), of_limits(None, &none(), 2));
        let device = DeviceId::new("d").unwrap();
        assert_eq!(of_limits(Some(&device), &none(), 2).verdict, Verdict::Ok);
        assert_eq!((idle.verdict, used.verdict), (Verdict::Ok, Verdict::Warning));
        for found in [&idle.found, &used.found] {
            assert!(found.contains("RLIMIT_AS") && found.contains("may not make groups in /sys/fs/cgroup"), "{found}");
        }
        assert!(used.mend.unwrap().contains("Delegate=yes"));
    }

    #[test]
    fn limits_that_are_nearly_reached_are_told_with_their_key() {
        let of = |instances, watches| {
            let events = FileEvents { max_watches: Some(100), max_instances: Some(10), watches, instances };
            of_file_events(&events)
        };
        assert_eq!((of(1, 5).verdict, of(6, 68).verdict), (Verdict::Ok, Verdict::Ok));
        let (few, none) = (of(7, 5), of(12, 5));
        assert_eq!((few.verdict, none.verdict), (Verdict::Warning, Verdict::Warning));
        assert!(few.mend.unwrap().starts_with("sysctl fs.inotify.max_user_instances=20"));
        let watches = of(1, 69);
        assert!(watches.verdict == Verdict::Warning && watches.mend.unwrap().contains("max_user_watches=200"));
        let silent = FileEvents { max_watches: None, max_instances: None, watches: 0, instances: 0 };
        assert_eq!(of_file_events(&silent).verdict, Verdict::Ok);
    }
}
