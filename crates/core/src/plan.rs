//! Plans: named sets of limits for tenants and keys.
//!
//! tenantgate does not count requests against these limits. Envoy's rate limit filter reads them from the metadata
//! of a request, so a limit has the range that Envoy accepts: a number of 32 bits, and a unit in capitals.

use std::fmt;

use crate::invalid::Invalid;

/// The most bytes of a plan's name.
pub const MAX_PLAN_BYTES: usize = 64;

/// The name of a plan: 1 to 64 of `[a-z0-9_-]`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PlanName(Box<str>);

impl PlanName {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// Returns the first character that is not allowed in a name, or that the length is wrong.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const WHAT: &str = "name of a plan";
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if let Some(at) = text.bytes().position(|byte| !good(byte)) {
            return Err(Invalid::new(WHAT, at, "lower-case letters, digits, _ or -"));
        }
        if text.is_empty() || text.len() > MAX_PLAN_BYTES {
            return Err(Invalid::new(WHAT, text.len().min(MAX_PLAN_BYTES), "1 to 64 characters"));
        }
        Ok(Self(text.into()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unit of time of Envoy's rate limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// `SECOND`.
    Second,
    /// `MINUTE`.
    Minute,
    /// `HOUR`.
    Hour,
    /// `DAY`.
    Day,
    /// `MONTH`.
    Month,
    /// `YEAR`.
    Year,
}

impl Unit {
    /// Every unit, shortest first.
    pub const ALL: [Self; 6] = [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Month, Self::Year];

    /// Returns the name that Envoy uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Second => "SECOND",
            Self::Minute => "MINUTE",
            Self::Hour => "HOUR",
            Self::Day => "DAY",
            Self::Month => "MONTH",
            Self::Year => "YEAR",
        }
    }
}

/// A limit, such as `100/MINUTE`. 0 allows nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit {
    /// How many are allowed per unit of time: requests, or tokens of a model.
    pub requests_per_unit: u32,
    /// The unit of time.
    pub unit: Unit,
}

impl Limit {
    /// Parses `N/UNIT`.
    ///
    /// # Errors
    ///
    /// Returns whether the number or the unit is invalid.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const WHAT: &str = "limit";
        let (number, unit) = text
            .split_once('/')
            .ok_or_else(|| Invalid::new(WHAT, text.len(), "a number, / and a unit, such as 100/MINUTE"))?;
        let plain = number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
        let requests_per_unit = Some(number)
            .filter(|_| plain)
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Invalid::new(WHAT, 0, "a whole number from 0 to 4294967295"))?;
        let unit = Unit::ALL.into_iter().find(|known| known.as_str() == unit).ok_or_else(|| {
            Invalid::new(WHAT, number.len() + 1, "one of SECOND, MINUTE, HOUR, DAY, MONTH, YEAR, in capitals")
        })?;
        Ok(Self { requests_per_unit, unit })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.requests_per_unit, self.unit.as_str())
    }
}

/// The unit that a limit counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitKind {
    /// Requests.
    Requests,
    /// Input and output tokens of a model together.
    Total,
    /// Input tokens of a model.
    Input,
    /// Output tokens of a model.
    Output,
}

impl LimitKind {
    /// Every kind, in the order of the columns.
    pub const ALL: [Self; 4] = [Self::Requests, Self::Total, Self::Input, Self::Output];

    /// Returns the name of the column of `tenantgate_plan`, which is also the name of the metadata field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "request_limit",
            Self::Total => "total_limit",
            Self::Input => "input_limit",
            Self::Output => "output_limit",
        }
    }
}

/// A row of `tenantgate_plan`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// `name`.
    pub name: PlanName,
    /// `request_limit`.
    pub request: Option<Limit>,
    /// `total_limit`.
    pub total: Option<Limit>,
    /// `input_limit`.
    pub input: Option<Limit>,
    /// `output_limit`.
    pub output: Option<Limit>,
}

impl Plan {
    /// Returns its limits in the order of [`LimitKind::ALL`]; `None` means unlimited.
    pub fn limits(&self) -> impl Iterator<Item = (LimitKind, Option<Limit>)> {
        LimitKind::ALL.into_iter().zip([self.request, self.total, self.input, self.output])
    }
}

/// An unparsed row of `tenantgate_plan`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlanRow {
    /// `name`.
    pub name: String,
    /// `request_limit`, `total_limit`, `input_limit`, `output_limit`.
    pub limits: [Option<String>; 4],
}

impl PlanRow {
    /// Parses the row.
    ///
    /// # Errors
    ///
    /// Returns the first column that is invalid.
    pub fn compile(&self) -> Result<Plan, Invalid> {
        let [request, total, input, output] = &self.limits;
        let limit = |text: &Option<String>| text.as_deref().map(Limit::parse).transpose();
        Ok(Plan {
            name: PlanName::parse(&self.name)?,
            request: limit(request)?,
            total: limit(total)?,
            input: limit(input)?,
            output: limit(output)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_64_allowed_characters() {
        for good in ["a", "gold", "gold_2-x", &"x".repeat(64)] {
            let name = PlanName::parse(good).unwrap();
            assert_eq!((name.as_str(), name.to_string().as_str()), (good, good));
        }
        for (bad, at) in [("", 1), ("Gold", 1), ("go ld", 3), ("gold.x", 5), (&"x".repeat(65), 65), ("é", 1)]
        {
            assert_eq!(PlanName::parse(bad).unwrap_err().position(), at, "{bad}");
        }
    }

    #[test]
    fn a_limit_has_the_range_that_envoy_accepts() {
        for unit in Unit::ALL {
            for number in ["0", "1", "4294967295"] {
                let text = format!("{number}/{}", unit.as_str());
                assert_eq!(Limit::parse(&text).unwrap().to_string(), text);
            }
        }
        for (bad, at, expected) in [
            ("", 1, "such as 100/MINUTE"),
            ("100", 4, "such as 100/MINUTE"),
            ("/MINUTE", 1, "a whole number"),
            ("-1/MINUTE", 1, "a whole number"),
            ("+1/MINUTE", 1, "a whole number"),
            ("01/MINUTE", 1, "a whole number"),
            ("1.5/MINUTE", 1, "a whole number"),
            (" 1/MINUTE", 1, "a whole number"),
            ("4294967296/MINUTE", 1, "a whole number from 0 to 4294967295"),
            ("5/minute", 3, "in capitals"),
            ("5/WEEK", 3, "one of SECOND"),
            ("5/", 3, "one of SECOND"),
            ("5/MINUTE ", 3, "one of SECOND"),
            ("5/HOUR/2", 3, "one of SECOND"),
        ] {
            let error = Limit::parse(bad).unwrap_err();
            assert_eq!(error.position(), at, "{bad}: {error}");
            assert!(error.to_string().contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn a_plan_is_valid_if_all_its_columns_are() {
        let row = PlanRow {
            name: "gold".into(),
            limits: [Some("5/DAY".into()), None, Some("0/SECOND".into()), Some("7/YEAR".into())],
        };
        let plan = row.compile().unwrap();
        let shown: Vec<_> =
            plan.limits().map(|(kind, limit)| (kind.as_str(), limit.map(|l| l.to_string()))).collect();
        let expected =
            [("request_limit", Some("5/DAY")), ("total_limit", None), ("input_limit", Some("0/SECOND"))];
        let expected = expected.into_iter().chain([("output_limit", Some("7/YEAR"))]);
        assert_eq!(shown, expected.map(|(k, l)| (k, l.map(str::to_owned))).collect::<Vec<_>>());
        for at in 0..4 {
            let mut bad = row.clone();
            bad.limits[at] = Some("5".into());
            assert!(bad.compile().is_err(), "{at}");
        }
        assert!(PlanRow { name: "Gold".into(), ..row }.compile().is_err());
    }
}
