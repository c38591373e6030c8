//! Lists: one page after the other, by a cursor that names the last one of the page before.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use crate::model::message::quoted;

/// The most that one page holds.
pub(super) const MOST: usize = 500;

/// Which page is wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// At most so many, 1 to 500.
    #[serde(default = "usual", deserialize_with = "limit")]
    #[param(value_type = Option<usize>, minimum = 1, maximum = 500, default = 100)]
    pub(super) limit: usize,
    /// The `next` of the page before.
    #[serde(default)]
    pub(super) cursor: Option<String>,
}

impl PageQuery {
    /// Where the page begins, if a cursor says it.
    pub(super) fn begins<T>(&self, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Problem> {
        let Some(cursor) = self.cursor.as_deref() else { return Ok(None) };
        let detail = || format!("found the cursor {}, expected one that was given", quoted(cursor));
        let begin = read(cursor).ok_or_else(|| Problem::invalid(detail(), "give the `next` of the page before"));
        begin.map(Some)
    }
}

/// What one page holds unless said.
fn usual() -> usize {
    100
}

/// Reads how much one page holds.
fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let text = String::deserialize(from)?;
    let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    limit.ok_or_else(|| {
        let found = quoted(&text);
        serde::de::Error::custom(format!(
            "found limit {found}, expected 1 to {MOST}: the next page is asked for by its cursor"
        ))
    })
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// What there is.
    pub(super) items: Vec<T>,
    /// The cursor of the next page; `null`: this is the last.
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// The page that is wanted, in the order of the names: what a cursor leaves behind depends on no other order.
    pub(super) fn of(mut all: Vec<T>, wanted: &PageQuery, name: impl Fn(&T) -> String) -> Self {
        all.sort_by_cached_key(&name);
        let rest = all.into_iter().filter(|one| wanted.cursor.as_ref().is_none_or(|cursor| name(one) > *cursor));
        let mut items: Vec<T> = rest.take(wanted.limit + 1).collect();
        let more = items.len() > wanted.limit;
        items.truncate(wanted.limit);
        let next = items.last().filter(|_| more).map(name);
        Self { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_without_gap_or_overlap() {
        // As files are listed: by their names with the ending.
        let all: Vec<String> = ["n-1", "n.1", "n", "n0", "n1", "n10", "n2"].map(str::to_owned).into();
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = Page::of(all.clone(), &PageQuery { limit: 3, cursor }, Clone::clone);
            assert!(page.items.len() <= 3);
            seen.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut sorted = all.clone();
        sorted.sort();
        assert_eq!(seen, sorted);
        assert!(Page::of(all, &PageQuery { limit: 7, cursor: None }, Clone::clone).next.is_none());
    }
}
