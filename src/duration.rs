//! Durations as people write them: a whole number and a unit, such as `90d`.

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use crate::invalid::InvalidValue;

/// A text that is not a duration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NotADuration(String);

impl fmt::Display for NotADuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(
            f,
            "invalid duration {text:?}: expected a whole number and a unit (ms, s, m, h, d, w), such as 90d"
        )
    }
}

impl std::error::Error for NotADuration {}

impl From<NotADuration> for InvalidValue {
    fn from(error: NotADuration) -> Self {
        error.to_string().into()
    }
}

/// Parses a duration: a whole number and one of the units ms, s, m, h, d, w. A number without a unit is ambiguous and
/// rejected.
///
/// # Errors
///
/// The text is not a duration; the error describes the format.
pub fn parse(text: &str) -> Result<Duration, NotADuration> {
    let not_one = || NotADuration(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0,
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(not_one()),
    };
    let number = u64::from_str(number).map_err(|_| not_one())?;
    if unit == "ms" {
        return Ok(Duration::from_millis(number));
    }
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(not_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_number_and_a_unit() {
        for (text, seconds) in [("90d", 7_776_000), ("12h", 43_200), ("1w", 604_800), ("5m", 300), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(parse("50ms"), Ok(Duration::from_millis(50)));
        for bad in ["", "5", "d", "1.5h", "-1d", "+1d", "1 d", "1D", "1y", "99999999999999999w", "١d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
