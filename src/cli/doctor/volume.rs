//! What is looked at on the volume.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::super::rival::SecondProcess;
use super::{Context, Failure, Finding, Report, Verdict, audit, beats, pause, secrets, some_of};
use crate::client::status::{of_daemons, of_devices};
use crate::client::{Client, default_device, view};
use crate::decide::space::{Floor, floor, shortage};
use crate::model::space::{Space, show_size};
use crate::store::Refused;
use crate::volume::mounts::{Kind, Mount, mount_of};
use crate::volume::os::{OsDisk, is_network, may_write};
use crate::volume::probe::{self, Scratch, Trouble};
use crate::volume::{self, Context as _, found, heartbeat, results};

/// How long a file event may take. The kernel gives it at once, or never.
const EVENT: Duration = Duration::from_secs(2);
/// How far this machine's clock may be from the volume's before people are told.
const CLOCK: TimeDelta = TimeDelta::seconds(2);
/// Where locks work.
const LOCKS: &str = "put Common where locks exclude: a local disk, a named volume, NFS with its lock service";

pub(super) fn checks(context: &mut Context, report: &mut Report) -> Result<(), Failure> {
    let scratch = Scratch::new(&*context.client.disk, &context.client.layout, &context.client.session);
    let before = context.client.now().wall;
    let time = match &scratch {
        Ok(scratch) => probe::time_of(&*context.client.disk, &scratch.path("time"))
            .map_err(|error| not_tried(&error.to_string(), error.hint())),
        Err(error) => Err(not_tried(&error.to_string(), error.hint())),
    };
    let now = time.as_ref().copied().unwrap_or(before);
    let clock = time.map_or_else(|untried| untried, |time| clock(time, before, context.client.now().wall));
    let layout = context.client.layout.clone();
    // Beats take their time; meanwhile the rest is looked at.
    let (told, ids) = std::thread::scope(|threads| {
        let beats = threads.spawn(|| beats::look(&layout, now));
        let told = meanwhile(context, report, scratch, clock);
        (told, beats.join())
    });
    told?;
    let ids = ids.unwrap_or_else(|_| Finding::error("the look at heartbeats ended before its time", "look again"));
    report.tell("device ids", ids)
}

fn meanwhile(
    context: &mut Context,
    report: &mut Report,
    scratch: Result<Scratch, volume::Error>,
    clock: Finding,
) -> Result<(), Failure> {
    let common = context.client.layout.common.clone();
    report.tell("file system", file_system(mount_of(&common).as_ref(), is_network(&common)))?;
    report.tell("rights", rights(context))?;
    report.tell("space", space(context))?;
    match scratch {
        Ok(scratch) => {
            report.tell("locks", locks(&scratch))?;
            report.tell("renames", renames(context, &scratch))?;
            report.tell("events", events(context, &scratch))?;
            if let Err(error) = scratch.remove() {
                report.tell("scratch", error.into())?;
            }
        }
        Err(error) => {
            for check in ["locks", "renames", "events"] {
                report.tell(check, not_tried(&error.to_string(), error.hint()))?;
            }
        }
    }
    report.tell("clock", clock)?;
    report.tell("state.json", state(context))?;
    report.tell("devices", devices(context))?;
    report.tell("Programs", programs(context))?;
    report.tell("job files", job_files(context))?;
    report.tell("secrets", secrets::look(context))?;
    report.tell("audit log", audit::look(context))
}

fn not_tried(why: &str, hint: &str) -> Finding {
    Finding::warning(format!("not tried: {why}"), hint)
}

/// What it means to share a folder of this kind.
fn file_system(mount: Option<&Mount>, slow: bool) -> Finding {
    let Some(Mount { at, name, kind, read_only }) = mount else {
        return Finding::ok("the kernel does not tell its mounts; the looks below say what works");
    };
    let lease = if slow { "; the lease is 60 s by default" } else { "" };
    let how = if *read_only { "mounted read-only" } else { "mounted" };
    let found = |what: &str| format!("{name}, {how} on {}: {what}{lease}", at.display());
    match kind {
        Kind::Local => Finding::ok(found("a disk of this machine, for all of its containers")),
        Kind::Memory => Finding::warning(
            found("in memory: all of it is gone when it is unmounted or the machine restarts"),
            "put Common on a disk, unless it is meant so",
        ),
        Kind::Overlay => Finding::warning(
            found("a container's own layer: other containers do not see it, and it goes with this one"),
            "mount a named volume or a folder of the host there",
        ),
        Kind::Nfs => Finding::warning(
            found("file events do not come from other machines, and locks need the server's lock service"),
            "mount it without nolock and local_lock, NFSv4 best; run doctor on each machine",
        ),
        Kind::Smb => Finding::warning(
            found("file events do not come from other machines, and locks need byte ranges at the server"),
            "mount it without nobrl, with cache=strict or none; run doctor on each machine",
        ),
        Kind::Fuse => Finding::warning(
            found(
                "a program serves it: locks and renames are as good as that program, and perhaps of this machine alone",
            ),
            "share it with a single machine, or use NFS; run doctor on each machine",
        ),
        Kind::Host => Finding::warning(
            found("the host of this virtual machine serves it: locks may not reach the host or another machine"),
            "let all devices run in one virtual machine, or use NFS",
        ),
        Kind::Cluster => Finding::warning(
            found("many machines share it: file events come from this one alone, locks as it is mounted"),
            "mount it with locks for the whole cluster (Lustre: flock); run doctor on each machine",
        ),
        Kind::Unknown => Finding::warning(
            found("nothing is known of it; the looks below say what works on this machine"),
            "share it with a single machine, or use a file system that is known",
        ),
    }
}

/// Whether every folder of the volume can be written, today's or the newest of each kind included.
fn rights(context: &mut Context) -> Finding {
    let own_lock = context.client.layout.device_lock(&default_device());
    let Client { disk, layout, names, .. } = &mut context.client;
    let mut folders = vec![layout.common.clone(), layout.devices(), layout.triggers(), layout.running()];
    folders.extend([layout.waiting(), layout.keys()]);
    for folder in [layout.processed(), layout.results(), layout.logs()] {
        let newest = results::days_in(&**disk, &folder).ok().and_then(|days| days.into_iter().next());
        folders.extend(newest.map(|day| folder.join(day)));
        folders.push(folder);
    }
    let (mut written, mut missing, mut errors) = (0, 0, Vec::new());
    for folder in &folders {
        match probe::can_write(&**disk, names, folder) {
            Ok(true) => written += 1,
            Ok(false) => missing += 1,
            Err(error) => errors.push(error),
        }
    }
    // Writing nothing into them shows whether they can be locked.
    for file in [layout.lock(), own_lock] {
        errors.extend(found(disk.append(&file, b"")).on("write", &file).err());
    }
    let Some(first) = errors.first() else {
        let rest = if missing == 0 { String::new() } else { format!("; {missing} are missing: a device makes them") };
        return Finding::ok(format!("{written} folders of {} can be written{rest}", layout.common.display()));
    };
    let hint = first.hint();
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Finding::error(some_of(&said), hint)
}

fn space(context: &Context) -> Finding {
    let common = &context.client.layout.common;
    match context.client.disk.space(common).on("ask for the free space of", common) {
        Ok(space) => of_space(&space),
        Err(error) => error.into(),
    }
}

fn of_space(space: &Space) -> Finding {
    let Floor { bytes, inodes } = floor(space, None);
    let mut found = if space.total_bytes == 0 {
        "the file system does not say how much is free: there is no floor".to_owned()
    } else {
        let [free, total, bytes] = [space.free_bytes, space.total_bytes, bytes].map(show_size);
        format!("{free} of {total} are free, the floor is {bytes}")
    };
    if space.total_inodes > 0 {
        found += &format!("; {} of {} inodes are free, the floor is {inodes}", space.free_inodes, space.total_inodes);
    }
    let mend = "free space or inodes there (df -h, df -i); `run --min-free` gives a device another floor";
    if shortage(space, None).is_some() {
        return Finding::error(format!("{found}: nothing new is claimed"), mend);
    }
    let is_near = space.free_bytes < bytes.saturating_mul(2) || space.free_inodes < inodes.saturating_mul(2);
    if is_near { Finding::warning(found, mend) } else { Finding::ok(found) }
}

fn locks(scratch: &Scratch) -> Finding {
    let path = scratch.path("lock");
    let tried =
        SecondProcess::start(&path).and_then(|mut rival| probe::locks_exclude(&OsDisk::new(), &path, &mut rival));
    match tried {
        Ok(()) => Finding::ok("a lock has one holder at a time, passes between processes and ends with its holder"),
        Err(Trouble::Untried { why, hint }) => not_tried(&why, &hint),
        Err(Trouble::Fault(what)) => Finding::error(what, LOCKS),
    }
}

fn renames(context: &mut Context, scratch: &Scratch) -> Finding {
    let mend = "put Common on a file system with atomic renames: a local disk, a named volume, NFS";
    let (refuses, whole) = (
        probe::renames_refuse(&*context.client.disk, &scratch.path("")),
        probe::replaces_whole(&*context.client.disk, &mut context.client.names, &scratch.path("document")),
    );
    match (refuses, whole) {
        (Ok(true), Ok(looks)) => Finding::ok(format!(
            "a rename replaces nothing unless it is to, and of {looks} looks at a file being replaced each saw a whole one"
        )),
        (Ok(false), Ok(_)) => Finding::warning(
            "a rename that replaces nothing takes two steps here: only the lock keeps two devices off one name",
            "see that locks exclude; Linux gives such a rename on local disks",
        ),
        (Err(Trouble::Fault(what)), _) | (_, Err(Trouble::Fault(what))) => Finding::error(what, mend),
        (Err(Trouble::Untried { why, hint }), _) | (_, Err(Trouble::Untried { why, hint })) => not_tried(&why, &hint),
    }
}

fn events(context: &mut Context, scratch: &Scratch) -> Finding {
    let look = || pause(Duration::from_millis(2));
    match probe::events_arrive(&*context.client.disk, &mut context.client.names, scratch, EVENT, look) {
        Ok(()) => Finding::ok("a file that is dropped gives an event"),
        Err(Trouble::Untried { why, hint }) => not_tried(&why, &hint),
        Err(Trouble::Fault(what)) => {
            Finding::warning(what, "the scan finds triggers all the same: `run --watch poll --scan 1s`")
        }
    }
}

/// `before` and `after`: this machine's clock around the moment at which the volume said what time it has.
fn clock(volume: DateTime<Utc>, before: DateTime<Utc>, after: DateTime<Utc>) -> Finding {
    let (difference, way) = if volume < before { (before - volume, "ahead of") } else { (volume - after, "behind") };
    if difference < CLOCK {
        return Finding::ok("this machine and the volume have the same time");
    }
    let seconds = difference.as_seconds_f64();
    Finding::warning(
        format!("this machine's clock is {seconds:.1} s {way} the volume's"),
        "set this machine's clock by NTP (chronyc, timedatectl); devices go by the volume's, `status` and `trigger` by this one",
    )
}

fn state(context: &Context) -> Finding {
    let mut store = view::store(&context.client);
    let is_there = context.client.disk.stat(&context.client.layout.state()).is_ok();
    match store.refresh() {
        Ok(true) => {
            let state = store.state();
            let (schema, revision, runs) = (state.schema, state.revision, state.runs.len());
            Finding::ok(format!("schema {schema}, revision {revision}, open runs: {runs}"))
        }
        Ok(false) if is_there => Finding::error(
            "state.json is damaged: it does not parse",
            "a device that works keeps it aside and makes it anew; start one with `orchestrator run`",
        ),
        Ok(false) => {
            let beats =
                heartbeat::read_all(&*context.client.disk, &context.client.layout).map(|beats| beats.beats.len());
            if beats.is_ok_and(|beats| beats == 0) {
                return Finding::ok("there is none yet: no device has worked here");
            }
            Finding::warning("state.json is missing", "the next device that starts or works makes it anew")
        }
        Err(refused @ Refused::Newer(_)) => {
            Finding::error(refused.to_string(), "use the newer program on this machine too")
        }
        Err(Refused::Volume(error)) => error.into(),
        Err(refused @ (Refused::Busy | Refused::Raced)) => Finding::warning(refused.to_string(), "look again"),
    }
}

/// What the devices say of themselves.
fn devices(context: &Context) -> Finding {
    let devices = match view::devices(&context.client) {
        Ok(devices) => devices,
        Err(failure) => return Finding::error(failure.error, failure.hint),
    };
    // That it cannot be read is said by its own check.
    let state = view::state(&context.client).ok().flatten().unwrap_or_default();
    let mut problems = of_devices(&devices, &state);
    // Job files that cannot be read are said by their own check.
    if let Ok(programs) = view::programs(&context.client) {
        problems.extend(of_daemons(&context.client, programs.catalog(), &devices, &state));
    }
    let alive = devices.iter().filter(|device| device.alive).count();
    let found = format!("{alive} of {} alive", devices.len());
    if problems.is_empty() {
        return Finding::ok(found);
    }
    let says = devices.iter().any(|device| device.alive && !device.beat.problems.is_empty());
    let verdict = if says { Verdict::Error } else { Verdict::Warning };
    let mend = "`orchestrator status` shows all of it, `orchestrator logs` since when".to_owned();
    Finding { verdict, found: format!("{found}; {}", some_of(&problems)), mend: Some(mend) }
}

/// Whether every file that lies in Programs can be read.
fn programs(context: &Context) -> Finding {
    let folder = &context.client.layout.programs;
    let names = match context.client.disk.list(folder).on("list", folder) {
        Ok(names) => names,
        Err(error) => return error.into(),
    };
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    // Nothing of them is read: that they can be opened is enough.
    let errors: Vec<volume::Error> =
        paths.iter().filter_map(|path| context.client.disk.read(path, 0).on("read", path).err()).collect();
    if let Some(first) = errors.first() {
        let hint = first.hint();
        return Finding::error(some_of(&errors.iter().map(ToString::to_string).collect::<Vec<_>>()), hint);
    }
    let how = if may_write(folder) { "this user can write there" } else { "it is read-only for this user" };
    Finding::ok(format!("{} can be read, {how}; names in it: {}", folder.display(), paths.len()))
}

fn job_files(context: &Context) -> Finding {
    let mend = "`orchestrator jobs validate` says how to mend each";
    let programs = match view::programs(&context.client) {
        Ok(programs) => programs,
        Err(failure) => return Finding::error(failure.error, failure.hint),
    };
    let errors: Vec<String> = programs.errors().map(|error| format!("Programs/{error}")).collect();
    if !errors.is_empty() {
        let files: BTreeSet<&str> = programs.errors().map(|error| error.file.as_str()).collect();
        return Finding::error(format!("files with errors: {}; {}", files.len(), some_of(&errors)), mend);
    }
    if programs.catalog().is_empty() {
        return Finding::warning("there is no job file", "is Programs mounted? see --programs");
    }
    Finding::ok(format!("{} are valid", programs.catalog().jobs.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space_of(bytes: (u64, u64), inodes: (u64, u64)) -> Finding {
        let (free_bytes, total_bytes) = bytes;
        let (free_inodes, total_inodes) = inodes;
        of_space(&Space { free_bytes, total_bytes, free_inodes, total_inodes })
    }

    #[test]
    fn space_is_judged_by_the_floor_and_told_with_its_numbers() {
        let mib = 1 << 20;
        let plenty = (1 << 20, 1 << 20);
        let good = space_of((128 * mib, 10_000 * mib), plenty);
        assert_eq!(good.verdict, Verdict::Ok);
        assert!(good.found.starts_with("128 MiB of 9.7 GiB are free, the floor is 64 MiB; 1048576"), "{}", good.found);
        assert_eq!(space_of((128 * mib - 1, 10_000 * mib), plenty).verdict, Verdict::Warning);
        assert_eq!(space_of((64 * mib - 1, 10_000 * mib), plenty).verdict, Verdict::Error);
        assert_eq!(space_of((mib, mib), (1_999, 100_000)).verdict, Verdict::Warning);
        assert_eq!(space_of((mib, mib), (999, 100_000)).verdict, Verdict::Error);
        assert_eq!(space_of((0, 0), (0, 0)).verdict, Verdict::Ok, "what is not told has no floor");
    }

    #[test]
    fn a_clock_is_told_when_it_is_off_by_seconds_and_which_way() {
        let at = |ms: i64| DateTime::from_timestamp_millis(1_800_000_000_000 + ms).unwrap();
        for volume in [at(0), at(-1_900), at(2_000), at(1)] {
            assert_eq!(clock(volume, at(0), at(100)).verdict, Verdict::Ok);
        }
        let ahead = clock(at(-90_000), at(0), at(100));
        assert_eq!(ahead.verdict, Verdict::Warning);
        assert!(ahead.found.contains("is 90.0 s ahead of the volume's"), "{}", ahead.found);
        assert!(clock(at(3_100), at(0), at(100)).found.contains("is 3.0 s behind the volume's"));
    }

    #[test]
    fn each_kind_of_file_system_has_its_meaning() {
        let of = |kind, name: &str, slow| {
            let mount = Mount { at: "/srv".into(), name: name.to_owned(), kind, read_only: false };
            file_system(Some(&mount), slow)
        };
        let local = of(Kind::Local, "ext4", false);
        assert!(local.verdict == Verdict::Ok && !local.found.contains("lease"), "{}", local.found);
        let nfs = of(Kind::Nfs, "nfs4", true);
        assert!(nfs.verdict == Verdict::Warning && nfs.found.starts_with("nfs4, mounted on /srv: "), "{}", nfs.found);
        assert!(nfs.found.ends_with("the lease is 60 s by default") && nfs.mend.is_some(), "{}", nfs.found);
        for kind in [Kind::Memory, Kind::Overlay, Kind::Smb, Kind::Fuse, Kind::Host, Kind::Cluster, Kind::Unknown] {
            assert_eq!(of(kind, "x", true).verdict, Verdict::Warning, "{kind:?}");
        }
    }
}
