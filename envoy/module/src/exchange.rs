//! What the module needs of a request inside Envoy.

/// A request whose headers are complete.
pub(crate) trait Exchange {
    /// The values of a header of the request, one for each line.
    fn values(&self, name: &str) -> Vec<Vec<u8>>;

    /// Sets a header of the request to one value, or removes it. Returns whether that was done.
    fn set_header(&mut self, name: &str, value: Option<&str>) -> bool;

    /// Writes texts into the metadata of the request.
    fn set_metadata(&mut self, namespace: &str, fields: &[(&str, &str)]);

    /// Writes one truth value into the metadata of the request.
    fn set_flag(&mut self, namespace: &str, name: &str, value: bool);

    /// What the module's configuration of the route says, if it has one.
    fn route(&self) -> Option<Promise>;

    /// Lets Envoy choose the route again, by the headers as they are now.
    fn clear_route_cache(&mut self);

    /// Answers the request.
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &str, details: &str);

    /// Counts one.
    fn count(&mut self, counter: usize);
}

/// What the operator says of a route: the module cannot see what `ext_authz` is told of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Promise {
    /// `context_extensions=some`, or nothing: every request is left to the server.
    #[default]
    Some,
    /// `context_extensions=none`: the server would judge a request by its key alone.
    None,
}

impl Promise {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "context_extensions=some" => Some(Self::Some),
            "context_extensions=none" => Some(Self::None),
            _ => None,
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// The filter behind this one asks the server.
    Ask,
    /// It passes, and nobody is asked.
    Allowed,
    /// It was answered.
    Denied,
}
