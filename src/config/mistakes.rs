//! Collects the mistakes in options.

use std::fmt;

/// An option that is invalid, or contradicts another one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{option}: {why}")]
pub struct ConfigError {
    /// The option, such as `--listen`.
    pub option: &'static str,
    /// Why it is rejected, or what is expected.
    pub why: String,
}

/// All mistakes in the options.
#[derive(Debug, Default)]
pub struct Mistakes(pub Vec<ConfigError>);

impl Mistakes {
    /// Records a mistake.
    pub(super) fn add(&mut self, option: &'static str, why: impl fmt::Display) {
        self.0.push(ConfigError { option, why: why.to_string() });
    }

    /// Returns the value, or records the mistake with the name of the option.
    pub(super) fn note<T, E: fmt::Display>(
        &mut self,
        option: &'static str,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|why| self.add(option, why)).ok()
    }

    pub(super) fn one_of<T: Copy + Default>(
        &mut self,
        option: &'static str,
        text: &str,
        words: &[(&str, T)],
    ) -> T {
        let known = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.note(option, found.ok_or_else(|| format!("invalid value {text:?}: expected {}", known())))
            .unwrap_or_default()
    }
}
