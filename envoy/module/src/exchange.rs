//! The operations on a request inside Envoy that the module needs.

/// A request with complete headers.
pub(crate) trait Exchange {
    /// Returns the values of a request header, one for each line.
    fn values(&self, name: &str) -> Vec<Vec<u8>>;

    /// Sets a request header to one value, or removes it. Returns whether that succeeded.
    fn set_header(&mut self, name: &str, value: Option<&str>) -> bool;

    /// Writes texts into the metadata of the request.
    fn set_metadata(&mut self, namespace: &str, fields: &[(&str, &str)]);

    /// Writes one boolean into the metadata of the request.
    fn set_flag(&mut self, namespace: &str, name: &str, value: bool);

    /// What the module's configuration of the route says, if it has one.
    fn route(&self) -> Option<Promise>;

    /// Makes Envoy choose the route again, by the current headers.
    fn clear_route_cache(&mut self);

    /// Sends a response.
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &str, details: &str);

    /// Increments a counter.
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

/// The result for a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// The next filter asks the server.
    Ask,
    /// The request passes, without a call to the server.
    Allowed,
    /// A response was sent.
    Denied,
}
