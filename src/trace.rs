//! The parent of a check in a trace.
//!
//! W3C Trace Context (<https://www.w3.org/TR/trace-context/#traceparent-header>):
//!
//! ```text
//! 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//! version       trace-id                  parent-id    flags: 01 = sampled
//! ```
//!
//! Only sampled traces matter: without that flag there is no parent. Sending spans belongs to `telemetry`.

/// The header that a trace is carried in.
pub const TRACEPARENT: &str = "traceparent";

/// The span that the span of a check is a child of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parent {
    /// The id of the trace.
    pub trace_id: u128,
    /// The id of the span within it.
    pub span_id: u64,
}

impl Parent {
    /// Parses `traceparent`. Returns `None` if it is invalid or the trace is not sampled.
    #[must_use]
    pub fn sampled(traceparent: &[u8]) -> Option<Self> {
        // Later versions may append fields after another hyphen.
        let (known, rest) = traceparent.split_at_checked(LENGTH)?;
        let fits = rest.is_empty() || (!known.starts_with(b"00") && rest.starts_with(b"-"));
        let [version, trace_id, span_id, flags] =
            known.split(|b| *b == b'-').collect::<Vec<_>>().try_into().ok()?;
        let (version, flags) = (hex(version, 2)?, hex(flags, 2)?);
        let (trace_id, span_id) = (hex(trace_id, 32)?, u64::try_from(hex(span_id, 16)?).ok()?);
        let sound = fits && version != 0xff && trace_id != 0 && span_id != 0;
        (sound && flags & 1 == 1).then_some(Self { trace_id, span_id })
    }
}

const LENGTH: usize = 55;

/// Parses exactly `length` hexadecimal digits in lower case.
fn hex(digits: &[u8], length: usize) -> Option<u128> {
    let lower = digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let digits = std::str::from_utf8(digits).ok().filter(|digits| lower && digits.len() == length)?;
    u128::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_parsed_as_the_standard_defines_and_only_if_sampled() {
        let parent = Some(Parent {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            span_id: 0x00f0_67aa_0ba9_02b7,
        });
        for (text, expected) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", parent),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", parent),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", parent),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more", None),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", None),
            ("", None),
        ] {
            assert_eq!(Parent::sampled(text.as_bytes()), expected, "{text}");
        }
    }
}
