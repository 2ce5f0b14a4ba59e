//! The parameter `options`: settings of a session.

use super::{SessionSettings, USER, is_schema};
use crate::store::AddressError;

/// Parses `-c name=value -cname=value --name=value`. A backslash escapes the next character.
pub(super) fn settings(text: &str) -> Result<SessionSettings, AddressError> {
    if text.trim_start().starts_with("endpoint=") || text.trim_start().starts_with("project=") {
        return Err(AddressError::rejected(
            "options=endpoint=… is for old clients of Neon: remove it, TLS names the endpoint to the server",
        ));
    }
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
pub(super) fn schema_of(
    settings: SessionSettings,
) -> Result<(Option<String>, SessionSettings), AddressError> {
    let (paths, rest): (Vec<_>, Vec<_>) =
        settings.into_iter().partition(|(name, _)| name.eq_ignore_ascii_case("search_path"));
    let Some((_, path)) = paths.last() else { return Ok((None, rest)) };
    let path = path.trim();
    // As Postgres reads it: a name in quotes is taken as it is, others in lower case.
    let name = match path.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => path.to_lowercase(),
    };
    let fault = if name.is_empty() {
        "no schema"
    } else if path.contains(',') {
        "more than one schema"
    } else if name == USER {
        "\"$user\", which is another schema for each role"
    } else if !is_schema(&name) {
        "an invalid name"
    } else {
        return Ok((Some(name), rest));
    };
    Err(AddressError::rejected(format!(
        "options sets search_path to {fault}: name the schema of tenants and api_keys with --database-schema"
    )))
}
