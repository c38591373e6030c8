//! Proof of what the simulator finds: each bug that can be planted in the product makes it fail, in one of its first seeds.

use aios::planted::{Bug, plant};

use super::{MOST_COMMITS, calm_stories, commits_per_result, run_seeds};

/// The number of seeds in which a bug must be found.
const MOST: u64 = 300;

/// Takes the bug out again, however the simulation ends.
struct Planted;

impl Planted {
    fn new(bug: Bug) -> Self {
        plant(Some(bug));
        Self
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        plant(None);
    }
}

fn is_found(bug: Bug) {
    let planted = Planted::new(bug);
    let found = (0..MOST).find_map(|seed| run_seeds(std::iter::once(seed)).1.pop());
    drop(planted);
    let Some((seed, violations)) = found else { panic!("{bug:?} is not found in {MOST} seeds") };
    eprintln!("{bug:?}: seed {seed}: {}", violations[0]);
}

#[test]
fn planted_bugs_of_commits_are_found() {
    for bug in [
        Bug::ForgetToTell,
        Bug::CommitNothing,
        Bug::KeepOrphans,
        Bug::ShortenLease,
        Bug::ClaimUnwritable,
        Bug::ReuseAttempt,
        Bug::NoteAgain,
    ] {
        is_found(bug);
    }
}

#[test]
fn planted_bugs_of_rules_are_found() {
    for bug in [
        Bug::ClaimOverSlots,
        Bug::IgnoreOverlap,
        Bug::EndEarly,
        Bug::DropKeys,
        Bug::LoseDueTime,
        Bug::RerunOnce,
        Bug::NeverYield,
    ] {
        is_found(bug);
    }
}

#[test]
fn too_many_commits_are_found() {
    let planted = Planted::new(Bug::NoteAgain);
    let commits = commits_per_result(&calm_stories());
    drop(planted);
    assert!(commits > MOST_COMMITS, "{commits} commits for each result");
}
