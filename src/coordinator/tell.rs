//! Telling webhooks: hands what the state gives this device to tell to the notifier, and takes in what became of it.

use std::collections::BTreeMap;

use super::{Device, TRY_AGAIN};
use crate::decide::notify::to_tell;
use crate::model::ids::JobName;
use crate::model::news::News;
use crate::model::time::Moment;
use crate::notify::{Answer, Letter, body, shown};
use crate::volume::{self, results};

/// What is told by this device now.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// What is on its way.
    on_its_way: BTreeMap<JobName, News>,
}

impl Device {
    /// Takes in what became of what was told.
    pub(super) fn take_answers(&mut self) {
        for Answer { job, news, outcome } in self.parts.notifier.take_answers() {
            let (event, run) = (news.event.as_str(), &news.run_id);
            match outcome {
                Ok(()) => tracing::info!(%job, %run, attempt = news.attempt, event, "its webhook is told"),
                Err(why) => {
                    let to = self.hook(&job).map(|url| shown(&url));
                    tracing::warn!(%job, %run, attempt = news.attempt, event, to, why, "its webhook is not told: given up");
                }
            }
            self.desk.on_its_way.remove(&job);
            self.seen.told.insert(job, news);
        }
    }

    /// Whether webhooks are told: a device that leaves gives up after its grace, and leaves the rest to others.
    pub(super) fn may_tell(&self, now: Moment) -> bool {
        self.end.is_none() && self.leaving.is_none_or(|leaving| now.boot < leaving.stop_at)
    }

    /// Whether nothing is left to tell, or no time for it.
    pub(super) fn has_told(&self, now: Moment) -> bool {
        let has_all = || self.seen.told.is_empty() && to_tell(self.store.state(), &self.seen.me).is_empty();
        !self.may_tell(now) || has_all()
    }

    /// Begins to tell what the state gives this device to tell.
    pub(super) fn tell(&mut self, now: Moment) {
        let state = std::sync::Arc::clone(self.store.state());
        let stands = |job: &JobName, news: &News| {
            state.jobs.get(job).is_some_and(|mark| mark.news.first().is_some_and(|first| first.is_of(news)))
        };
        self.seen.told.retain(|job, news| stands(job, news));
        if !self.may_tell(now) {
            return;
        }
        for (job, news) in to_tell(&state, &self.seen.me) {
            if self.desk.on_its_way.contains_key(job) || self.seen.told.contains_key(job) {
                continue;
            }
            // It is withdrawn at the next beat.
            let Some(url) = self.hook(job) else { continue };
            if !self.parts.notifier.has_room(&url) {
                continue;
            }
            match self.letter(job, news, url) {
                Ok(Some(letter)) => {
                    self.desk.on_its_way.insert(job.clone(), news.clone());
                    self.parts.notifier.tell(letter);
                }
                Ok(None) => {
                    tracing::warn!(%job, run = %news.run_id, attempt = news.attempt, "its webhook is not told: the result is gone or damaged");
                    self.seen.told.insert(job.clone(), news.clone());
                    self.come_back(now.boot);
                }
                Err(error) => {
                    self.problem("notify", format!("{error}; hint: {}", error.hint()));
                    self.come_back(now.boot + TRY_AGAIN);
                    return;
                }
            }
        }
        self.solved("notify");
    }

    fn hook(&self, job: &JobName) -> Option<String> {
        self.seen.catalog.jobs.get(job)?.notify.clone()
    }

    fn letter(&self, job: &JobName, news: &News, url: String) -> Result<Option<Letter>, volume::Error> {
        let path = self.parts.layout.result(job, &news.lease());
        let result = results::read_bytes(&*self.parts.disk, &path)?;
        let body = result.and_then(|result| body(&result, news.event));
        Ok(body.map(|body| Letter { job: job.clone(), news: news.clone(), url, body }))
    }
}
