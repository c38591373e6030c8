//! Lists: one page after the other, by a cursor that names the last one of the page before.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

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

/// What one page holds unless said.
pub(super) fn usual() -> usize {
    100
}

/// Reads how much one page holds.
pub(super) fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let limit = usize::deserialize(from)?;
    if (1..=MOST).contains(&limit) {
        return Ok(limit);
    }
    Err(serde::de::Error::custom(format!(
        "found limit {limit}, expected 1 to {MOST}: the next page is asked for by its cursor"
    )))
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
    /// The page that is wanted of things that stand in the order of their names.
    pub(super) fn of(all: Vec<T>, wanted: &PageQuery, name: impl Fn(&T) -> String) -> Self {
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
        let all: Vec<String> = (0..7).map(|number| format!("n{number}")).collect();
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
        assert_eq!(seen, all);
        assert!(Page::of(all, &PageQuery { limit: 7, cursor: None }, Clone::clone).next.is_none());
    }
}
