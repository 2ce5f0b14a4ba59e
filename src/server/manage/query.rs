//! Query parameters, and the pages of a list.
//!
//! A page begins after a place in the order of the list, not after a number of rows. Rows that are added or removed
//! meanwhile therefore cause no other row to be skipped or repeated. A token is valid only for its list and filters.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::body::{MOST_ERRORS, escaped};
use super::problem::{FieldError, Problem};

const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

/// Filters that may be given more than once: all of them must hold.
const REPEATABLE: [&str; 1] = ["label"];

/// The query parameters of a list.
#[derive(Debug)]
pub(super) struct ListQuery {
    /// The values of each filter, in the order of the list's filter names.
    filters: Vec<Vec<String>>,
    size: usize,
    after: Option<String>,
    bound_to: String,
}

/// A part of a list.
#[derive(Debug, Serialize)]
pub(super) struct ListPage<T> {
    items: Vec<T>,
    /// Empty on the last page.
    next_page_token: String,
}

impl ListQuery {
    /// Parses the parameters of `list`, which has the filters `names`.
    pub(super) fn read(query: Option<&str>, list: &str, names: &[&str]) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let mut filters = vec![Vec::new(); names.len()];
        let (mut size, mut token) = (Vec::new(), Vec::new());
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if errors.len() >= MOST_ERRORS {
                break;
            }
            let place = match name.as_ref() {
                "page_size" => &mut size,
                "page_token" => &mut token,
                other => {
                    let Some(at) = names.iter().position(|name| *name == other) else {
                        let known = [names, &["page_size", "page_token"]].concat().join(", ");
                        let detail = format!("expected one of {known}");
                        errors.push(FieldError::new(pointer(other), "unknown_parameter", detail));
                        continue;
                    };
                    &mut filters[at]
                }
            };
            if value.contains('\0') {
                // Postgres accepts no NUL in a text.
                errors.push(FieldError::new(pointer(&name), "invalid_value", "expected no NUL character"));
            }
            if !place.is_empty() && !REPEATABLE.contains(&name.as_ref()) {
                errors.push(FieldError::new(pointer(&name), "repeated_parameter", "give it once"));
            }
            place.push(value.into_owned());
        }
        let bound_to = fingerprint(list, &filters);
        let size = match size.pop().map(|size| size.parse::<usize>()) {
            None => PAGE,
            Some(Ok(size)) if size > 0 => size.min(LARGEST_PAGE),
            Some(_) => {
                errors.push(FieldError::new(
                    "/page_size".into(),
                    "invalid_value",
                    "expected a number from 1 to 1000",
                ));
                PAGE
            }
        };
        let after = token.pop().filter(|token| !token.is_empty()).and_then(|token| {
            let after = place_of(&token, &bound_to);
            errors.extend(after.is_none().then(wrong_token));
            after
        });
        if errors.is_empty() {
            Ok(Self { filters, size, after, bound_to })
        } else {
            Err(Problem::invalid(errors))
        }
    }

    /// Returns the value of a filter.
    pub(super) fn filter(&self, at: usize) -> Option<&str> {
        self.filters(at).first().map(String::as_str)
    }

    /// Returns all values of a filter that may be repeated.
    pub(super) fn filters(&self, at: usize) -> &[String] {
        self.filters.get(at).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the maximum number of objects on a page.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the place after which the page begins.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Returns the problem for a token that belongs to this list but contains an invalid place.
    #[expect(clippy::unused_self, reason = "only a query can have a wrong token")]
    pub(super) fn bad_token(&self) -> Problem {
        Problem::invalid(vec![wrong_token()])
    }

    /// Builds a page from its items. `next` is the place after which the next page begins; `None` on the last page.
    pub(super) fn part<T>(&self, items: Vec<T>, next: Option<&str>) -> ListPage<T> {
        let next_page_token = next.map(|place| token(place, &self.bound_to)).unwrap_or_default();
        ListPage { items, next_page_token }
    }

    /// Builds the page from all rows of the list. Each row comes with its place, which is unique and orders the list.
    pub(super) fn page<T>(&self, mut rows: Vec<(String, T)>) -> ListPage<T> {
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        rows.retain(|(place, _)| self.after.as_ref().is_none_or(|after| place > after));
        let more = rows.len() > self.size;
        rows.truncate(self.size);
        let last = rows.last().filter(|_| more);
        let next_page_token = last.map(|(place, _)| token(place, &self.bound_to)).unwrap_or_default();
        ListPage { items: rows.into_iter().map(|(_, row)| row).collect(), next_page_token }
    }
}

/// Rejects every query parameter.
pub(super) fn no_parameters(query: Option<&str>) -> Result<(), Problem> {
    let unknown = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let unknown: Vec<_> = unknown
        .map(|(name, _)| FieldError::new(pointer(&name), "unknown_parameter", "this path has no parameters"))
        .collect();
    if unknown.is_empty() { Ok(()) } else { Err(Problem::invalid(unknown)) }
}

/// Formats a name as a JSON pointer (RFC 6901).
pub(super) fn pointer(name: &str) -> String {
    format!("/{}", escaped(name))
}

fn wrong_token() -> FieldError {
    let detail = "this token does not belong to this list with these filters: start with the first page";
    FieldError::new("/page_token".into(), "page_token_mismatch", detail)
}

fn fingerprint(list: &str, filters: &[Vec<String>]) -> String {
    let all = serde_json::to_vec(&(list, filters)).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(&Sha256::digest(all)[..9])
}

fn token(place: &str, bound_to: &str) -> String {
    format!("{bound_to}.{}", URL_SAFE_NO_PAD.encode(place))
}

fn place_of(token: &str, bound_to: &str) -> Option<String> {
    let (bound, place) = token.split_once('.')?;
    let place = URL_SAFE_NO_PAD.decode(place).ok().filter(|_| bound == bound_to)?;
    String::from_utf8(place).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn read(query: &str) -> Result<ListQuery, Problem> {
        ListQuery::read(Some(query), "things", &["name"])
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let problem = read("page_size=0&nam%2Fe=x&name=a&name=b&page_token=abc").unwrap_err();
        let shown = format!("{problem:?}");
        for says in ["/page_size", "/nam~1e", "repeated_parameter", "page_token_mismatch"] {
            assert!(shown.contains(says), "{shown}");
        }
        assert!(no_parameters(Some("a=1")).is_err() && no_parameters(None).is_ok());
    }

    #[test]
    fn page_sizes_are_limited_to_a_thousand() {
        for (query, size) in
            [("", 100), ("page_size=1", 1), ("page_size=1000", 1_000), ("page_size=1001", 1_000)]
        {
            assert_eq!(read(query).unwrap().size, size);
        }
        for bad in ["page_size=", "page_size=-1", "page_size=ten"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_valid_only_for_its_list_and_filters() {
        let rows = || vec![("a".to_owned(), 1), ("b".to_owned(), 2)];
        let token = read("page_size=1").unwrap().page(rows()).next_page_token;
        assert_eq!(read(&format!("page_token={token}")).unwrap().page(rows()).items, [2]);
        assert!(read(&format!("name=x&page_token={token}")).is_err());
        assert!(ListQuery::read(Some(&format!("page_token={token}")), "others", &["name"]).is_err());
    }

    proptest! {
        /// Rows that stay are shown once, even if others are added and removed between two pages.
        #[test]
        fn pages_neither_skip_nor_repeat(
            stay in prop::collection::btree_set("[a-z]{1,3}", 0..20),
            changing in prop::collection::vec(prop::collection::btree_set("[A-Z]{1,3}", 0..6), 1..40),
            size in 1_usize..6,
        ) {
            let (mut token, mut seen) = (String::new(), Vec::new());
            for round in 0_usize.. {
                let come_and_go = &changing[round % changing.len()];
                let rows = stay.union(come_and_go).map(|row| (row.clone(), row.clone())).collect();
                let page = read(&format!("page_size={size}&page_token={token}")).unwrap().page(rows);
                seen.extend(page.items.into_iter().filter(|row| stay.contains(row)));
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            let different: BTreeSet<_> = seen.iter().cloned().collect();
            prop_assert_eq!(different.len(), seen.len());
            prop_assert_eq!(different, stay);
        }
    }
}
