//! What is remembered of each job, with an index of those that have something to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::JobName;
use super::sorted::{Difference, Sorted};
use super::state::JobMark;

/// The marks of jobs.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    all: Sorted<JobName, JobMark>,
    /// The jobs whose webhooks are to be told something, or were told of a failure last.
    telling: BTreeSet<JobName>,
}

impl Marks {
    /// Returns the mark of a job.
    #[must_use]
    pub fn get(&self, job: &JobName) -> Option<&JobMark> {
        self.all.get(job)
    }

    /// Returns all in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&JobName, &JobMark)> {
        self.all.iter()
    }

    /// Returns all in the order of their names, without these.
    pub fn values(&self) -> impl Iterator<Item = &JobMark> {
        self.all.values()
    }

    /// Returns in order those whose webhooks are to be told something, or were told of a failure last.
    pub fn telling(&self) -> impl Iterator<Item = (&JobName, &JobMark)> {
        self.telling.iter().filter_map(|job| Some((job, self.all.get(job)?)))
    }

    /// Changes the mark of a job, which begins empty.
    pub fn update(&mut self, job: &JobName, change: impl FnOnce(&mut JobMark)) {
        let mut tells = false;
        self.all.update(job, |mark| {
            change(mark);
            tells = mark.tells();
        });
        if tells {
            self.telling.insert(job.clone());
        } else {
            self.telling.remove(job);
        }
    }

    /// Forgets a job.
    pub fn remove(&mut self, job: &JobName) {
        self.all.remove(job);
        self.telling.remove(job);
    }

    /// Returns in order what differs from an older revision. What both share is not looked at.
    #[must_use]
    pub fn differences<'a>(&'a self, older: &'a Self) -> Vec<Difference<'a, JobName, JobMark>> {
        self.all.differences(&older.all)
    }

    /// Adds the marks to `text` as one JSON object.
    ///
    /// # Errors
    /// A mark cannot be written as JSON.
    pub fn write_json(&self, text: &mut Vec<u8>) -> serde_json::Result<()> {
        self.all.write_json(text)
    }
}

impl PartialEq for Marks {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Index<&JobName> for Marks {
    type Output = JobMark;

    fn index(&self, job: &JobName) -> &JobMark {
        &self.all[job]
    }
}

impl FromIterator<(JobName, JobMark)> for Marks {
    fn from_iter<I: IntoIterator<Item = (JobName, JobMark)>>(marks: I) -> Self {
        let all: Sorted<JobName, JobMark> = marks.into_iter().collect();
        let telling = all.iter().filter(|(_, mark)| mark.tells()).map(|(job, _)| job.clone()).collect();
        Self { all, telling }
    }
}

impl<const N: usize> From<[(JobName, JobMark); N]> for Marks {
    fn from(marks: [(JobName, JobMark); N]) -> Self {
        marks.into_iter().collect()
    }
}

impl Serialize for Marks {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.all.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Marks {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(from)?.into_iter().collect())
    }
}
