//! A literal and slow implementation of rules and paths.

use std::cmp::Reverse;

use tenantgate::path::PathOptions;
use tenantgate::route::{HostPattern, Method, Rule};

/// Whether a byte may occur in a segment without an escape.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@;".contains(&byte)
}

/// Returns a segment with its escapes in canonical form; `None` if they are not allowed.
fn form(segment: &[u8]) -> Option<Vec<u8>> {
    let mut form = Vec::new();
    let mut at = 0;
    while let Some(&byte) = segment.get(at) {
        let raw = byte != b'%';
        let byte = if raw { byte } else { escaped(segment, at)? };
        if byte.is_ascii() && is_plain(byte) {
            form.push(byte);
        } else {
            form.extend(format!("%{byte:02X}").bytes());
        }
        at += if raw { 1 } else { 3 };
    }
    Some(form)
}

fn escaped(text: &[u8], at: usize) -> Option<u8> {
    let digits = std::str::from_utf8(text.get(at + 1..at + 3)?).ok()?;
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Decodes a segment as an upstream would that decodes every escape.
fn decoded(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        bytes.push(if byte == b'%' { escaped(text, at)? } else { byte });
        at += if byte == b'%' { 3 } else { 1 };
    }
    String::from_utf8(bytes).ok()
}

/// Returns the segments of a path; `None` if it is ambiguous.
#[must_use]
pub fn segments(raw: &[u8], options: PathOptions) -> Option<Vec<Vec<u8>>> {
    let path = raw.split(|byte| *byte == b'?').next()?;
    let inside = path.strip_prefix(b"/")?;
    if path.iter().any(|&b| b <= 0x20 || b >= 0x7f || b == b'\\' || b == b'#') {
        return None;
    }
    let seen = decoded(inside)?;
    if seen.contains(['\0', '\\']) || seen.contains(';') && !options.keep_parameters {
        return None;
    }
    let slash = inside.to_ascii_lowercase().windows(3).any(|three| three == b"%2f");
    if slash && !options.keep_encoded_slash {
        return None;
    }
    let parts: Vec<_> = seen.split('/').collect();
    for (at, part) in parts.iter().enumerate() {
        let name = part.split(';').next()?;
        if name == "." || name == ".." || part.is_empty() && at + 1 < parts.len() {
            return None;
        }
    }
    let inside = inside.strip_suffix(b"/").unwrap_or(inside);
    if inside.is_empty() {
        return Some(Vec::new());
    }
    inside.split(|byte| *byte == b'/').map(form).collect()
}

/// Returns the matching rules, best first, as the contract describes.
#[must_use]
pub fn ranked<'r>(rules: &'r [Rule], host: &[u8], method: &[u8], path: &[Vec<u8>]) -> Vec<&'r Rule> {
    let mut all: Vec<_> =
        rules.iter().filter_map(|rule| Some((rank(rule, host, method, path)?, rule))).collect();
    all.sort_by_key(|(rank, _)| Reverse(rank.clone()));
    all.into_iter().map(|(_, rule)| rule).collect()
}

fn rank(rule: &Rule, host: &[u8], method: &[u8], path: &[Vec<u8>]) -> Option<(usize, Vec<u8>, u8)> {
    let host = match &rule.shape.host {
        HostPattern::Any => 0,
        HostPattern::Below(below) => {
            let inside = host.strip_suffix(below.as_bytes())?.strip_suffix(b".")?;
            (!inside.is_empty()).then_some(1 + below.len())?
        }
        HostPattern::Exact(name) => (name.as_bytes() == host).then_some(usize::MAX)?,
    };
    let (mut shape, mut rest) = (Vec::new(), path);
    let template = rule.shape.path.to_string();
    for segment in template.split('/').skip(1).filter(|_| template != "/") {
        if segment == "**" {
            shape.push(0);
            rest = &[];
            break;
        }
        let (first, after) = rest.split_first()?;
        rest = after;
        let name = segment.starts_with('{');
        shape.push(if name { 2 } else { (form(segment.as_bytes())? == *first).then_some(3)? });
    }
    if !rest.is_empty() {
        return None;
    }
    if shape.last() != Some(&0) {
        shape.push(1);
    }
    let method = match &rule.shape.method {
        Method::Any => 0,
        Method::Named(name) if name.as_bytes() == method => 2,
        Method::Named(name) if &**name == "GET" && method == b"HEAD" => 1,
        Method::Named(_) => return None,
    };
    Some((host, shape, method))
}
