//! What job files say of each other: pools and jobs that there are not, and chains that bite their own tail.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ids::JobName;
use crate::model::job::{Job, JobError, Mention, Mentioned};
use crate::model::message::{quoted, suggest};
use crate::model::pools::Pools;

/// From each job to those that its end starts.
type Ways<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// What is wrong with each job's mentions. `jobs` are the newest readable definitions; `names` are all that have a file.
#[must_use]
pub fn check(
    jobs: &BTreeMap<&JobName, &Job>,
    names: &BTreeSet<&str>,
    pools: &Pools,
) -> BTreeMap<JobName, Vec<JobError>> {
    let (mut of_success, mut of_failure) = (Ways::new(), Ways::new());
    for (name, job) in jobs {
        of_success.entry(name.as_str()).or_default().extend(job.on_success.iter().map(JobName::as_str));
        of_failure.entry(name.as_str()).or_default().extend(job.on_failure.iter().map(JobName::as_str));
        // `after` points backwards: it is the other one that starts this job.
        for other in &job.after {
            of_success.entry(other.as_str()).or_default().push(name.as_str());
        }
    }
    let mut errors: BTreeMap<JobName, Vec<JobError>> = BTreeMap::new();
    for (name, job) in jobs {
        for mention in &job.mentions {
            let wrong = match mention.of {
                Mentioned::Pool => no_pool(mention, pools),
                Mentioned::OnSuccess => {
                    no_job(mention, names).or_else(|| circle(&of_success, &mention.name, name, mention))
                }
                Mentioned::OnFailure => {
                    no_job(mention, names).or_else(|| circle(&of_failure, &mention.name, name, mention))
                }
                Mentioned::After => {
                    no_job(mention, names).or_else(|| circle(&of_success, name, &mention.name, mention))
                }
            };
            if let Some((error, hint)) = wrong {
                let Mention { line, column, .. } = *mention;
                let error = JobError { file: format!("{name}.toml"), line, column, error, hint };
                errors.entry((*name).clone()).or_default().push(error);
            }
        }
    }
    errors
}

fn no_pool(mention: &Mention, pools: &Pools) -> Option<(String, String)> {
    if pools.contains_key(mention.name.as_str()) {
        return None;
    }
    let hint = match suggest(&mention.name, pools.keys().map(|pool| pool.as_str())) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None => format!("add to Programs/pools.toml: {} = NUMBER", mention.name),
    };
    Some((format!("`pool` is {}, expected a pool of Programs/pools.toml", quoted(&mention.name)), hint))
}

fn no_job(mention: &Mention, names: &BTreeSet<&str>) -> Option<(String, String)> {
    if names.contains(mention.name.as_str()) {
        return None;
    }
    let hint = match suggest(&mention.name, names.iter().copied()) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None => format!("make Programs/{}.toml", mention.name),
    };
    Some((format!("`{}` names {}, expected a job of Programs/", mention.of.key(), quoted(&mention.name)), hint))
}

/// The way round, if there is one from where a mention leads back to where it came from: it would be gone for ever.
fn circle(
    ways: &Ways<'_>,
    begin: impl AsRef<str>,
    end: impl AsRef<str>,
    mention: &Mention,
) -> Option<(String, String)> {
    let (begin, end) = (begin.as_ref(), end.as_ref());
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = vec![begin];
    while let Some(here) = open.pop() {
        if here == end {
            let mut way = vec![here];
            while let Some(earlier) = way.last().filter(|last| **last != begin).and_then(|last| from.get(last)) {
                way.push(earlier);
            }
            way.push(end);
            way.reverse();
            let way = way.join(" → ");
            let error = format!("`{}` closes a circle: {way}, expected a chain that ends", mention.of.key());
            return Some((error, "take one of them out; what is to run all the time is of type \"always\"".to_owned()));
        }
        for next in ways.get(here).into_iter().flatten().copied() {
            if next != begin && !from.contains_key(next) {
                from.insert(next, here);
                open.push(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::parse;

    fn errors(files: &[(&str, &str)], pools: &str) -> Vec<String> {
        let pools = crate::model::pools::parse("pools.toml", pools).unwrap();
        let jobs: Vec<Job> = files
            .iter()
            .map(|(name, text)| {
                let text = format!("command = [\"a\"]\n{text}");
                parse(&JobName::new(name).unwrap(), &format!("{name}.toml"), &text).unwrap()
            })
            .collect();
        let names = jobs.iter().map(|job| job.name.as_str()).collect();
        let jobs = jobs.iter().map(|job| (&job.name, job)).collect();
        check(&jobs, &names, &pools).into_values().flatten().map(|error| error.to_string()).collect()
    }

    #[track_caller]
    fn one(files: &[(&str, &str)], expected: &str) {
        let found = errors(files, "llm = 2");
        assert!(!found.is_empty() && found.iter().any(|error| error.contains(expected)), "{found:?}");
    }

    #[test]
    fn what_there_is_not_is_told_with_its_place() {
        one(&[("a", "pool = \"lm\"")], "a.toml:2:8: `pool` is \"lm\"");
        one(&[("a", "on_success = [\"b\"]")], "a.toml:2:15: `on_success` names \"b\"");
        one(&[("a", "after = [\"b\"]")], "`after` names \"b\"");
        assert_eq!(
            errors(&[("a", "pool = \"llm\"\non_success = [\"b\"]"), ("b", "after = [\"c\"]"), ("c", "")], "llm = 1"),
            [""; 0]
        );
    }

    #[test]
    fn a_circle_is_told_with_its_way() {
        one(&[("a", "after = [\"a\"]")], "`after` closes a circle: a → a");
        one(&[("a", "after = [\"b\"]"), ("b", "after = [\"c\"]"), ("c", "after = [\"a\"]")], "a → ");
        one(&[("a", "on_success = [\"b\"]"), ("b", "on_success = [\"a\"]")], "`on_success` closes a circle: a → b → a");
        one(&[("a", "on_success = [\"b\"]\nafter = [\"b\"]"), ("b", "")], "closes a circle");
        one(&[("a", "on_failure = [\"a\"]")], "`on_failure` closes a circle");
        // A repair that is followed by another try is no circle of one kind.
        assert_eq!(errors(&[("a", "on_failure = [\"b\"]"), ("b", "on_success = [\"a\"]")], ""), [""; 0]);
        assert_eq!(errors(&[("a", ""), ("b", "after = [\"a\"]"), ("c", "after = [\"a\", \"b\"]")], ""), [""; 0]);
    }
}
