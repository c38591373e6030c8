//! Lists: one page after the other, by a cursor that names the last one of the page before.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;

/// The most that one page holds.
pub(super) const MOST: usize = 500;
/// What one page holds unless said.
const USUAL: usize = 100;

/// Which page is wanted.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// At most so many, 1 to 500.
    #[serde(default)]
    #[param(minimum = 1, maximum = 500, default = 100)]
    pub(super) limit: Option<usize>,
    /// The `next` of the page before.
    #[serde(default)]
    pub(super) cursor: Option<String>,
}

impl PageQuery {
    /// How much one page holds.
    pub(super) fn limit(limit: Option<usize>) -> Result<usize, Problem> {
        let limit = limit.unwrap_or(USUAL);
        if (1..=MOST).contains(&limit) {
            return Ok(limit);
        }
        Err(Problem::invalid(
            format!("found limit {limit}, expected 1 to {MOST}"),
            "ask for the next page by its cursor",
        ))
    }
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
    /// The page behind `cursor` of things that stand in the order of their names.
    pub(super) fn of(all: Vec<T>, limit: usize, cursor: Option<&str>, name: impl Fn(&T) -> String) -> Self {
        let rest = all.into_iter().filter(|one| cursor.is_none_or(|cursor| name(one).as_str() > cursor));
        let mut items: Vec<T> = rest.take(limit + 1).collect();
        let more = items.len() > limit;
        items.truncate(limit);
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
            let page = Page::of(all.clone(), 3, cursor.as_deref(), Clone::clone);
            assert!(page.items.len() <= 3);
            seen.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, all);
        assert!(Page::of(all, 7, None, Clone::clone).next.is_none());
        assert!(PageQuery::limit(Some(0)).is_err() && PageQuery::limit(Some(501)).is_err());
    }
}
