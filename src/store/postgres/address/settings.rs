//! The parameter `options`: settings of a session.

use super::{Settings, is_schema};
use crate::store::AddressError;

/// Parses `-c name=value -cname=value --name=value`. A backslash escapes the next character.
pub(super) fn settings(text: &str) -> Result<Settings, AddressError> {
    let invalid = || AddressError::invalid("options", "expected -c NAME=VALUE");
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => words.last_mut().ok_or_else(invalid)?.extend(characters.next()),
            c if c.is_whitespace() => words.push(String::new()),
            c => words.last_mut().ok_or_else(invalid)?.push(c),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next().ok_or_else(invalid)?,
            word => word.strip_prefix("--").or(word.strip_prefix("-c")).ok_or_else(invalid)?.to_owned(),
        };
        let (name, value) = setting.split_once('=').ok_or_else(invalid)?;
        let known = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if name.is_empty() || !known {
            return Err(invalid());
        }
        found.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(found)
}

/// Separates `search_path`, which must name one schema, from the other settings.
pub(super) fn schema_of(settings: Settings) -> Result<(Option<String>, Settings), AddressError> {
    let (paths, rest): (Vec<_>, Vec<_>) =
        settings.into_iter().partition(|(name, _)| name.eq_ignore_ascii_case("search_path"));
    let Some((_, path)) = paths.last() else { return Ok((None, rest)) };
    let name = path.trim().trim_matches('"');
    if path.contains(',') || name.contains('$') || !is_schema(name) {
        return Err(AddressError::rejected(
            "options sets search_path to more than one schema: name the schema of tenants and api_keys with \
             --database-schema",
        ));
    }
    Ok((Some(name.to_owned()), rest))
}
