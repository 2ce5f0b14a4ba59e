//! The operations on a request inside Envoy that the module needs.

/// A request with complete headers.
pub(crate) trait Exchange {
    /// Calls `each` with the name and the value of each line of the request's headers. Names have small letters, and
    /// include those of HTTP/2 that begin with a colon.
    fn each_header(&self, each: &mut dyn FnMut(&[u8], &[u8]));

    /// Returns whether more of the request follows its headers.
    fn has_body(&self) -> bool;

    /// Returns the values of a request header, one for each line.
    fn values(&self, name: &str) -> Vec<Vec<u8>>;

    /// Sets a request header to one value, or removes it. Returns whether that succeeded.
    fn set_header(&mut self, name: &str, value: Option<&str>) -> bool;

    /// Writes texts into the metadata of the request.
    fn set_metadata(&mut self, namespace: &str, fields: &[(&str, &str)]);

    /// Writes one boolean into the metadata of the request.
    fn set_flag(&mut self, namespace: &str, name: &str, value: bool);

    /// Returns the module's configuration of the route; `None` if it has none.
    fn route(&self) -> Option<ContextPolicy>;

    /// Makes Envoy choose the route again, by the current headers.
    fn clear_route_cache(&mut self);

    /// Sends a response.
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &str, details: &str);

    /// Increments a counter.
    fn count(&mut self, counter: usize);
}

/// The operator's statement whether `ext_authz` has `context_extensions` on a route, which the module cannot see.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum ContextPolicy {
    /// `context_extensions=some`, the default: the server decides on every request.
    #[default]
    Some,
    /// `context_extensions=none`: the server would judge a request by its key alone.
    None,
}

impl ContextPolicy {
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
pub(crate) enum FilterAction {
    /// The next filter asks the server.
    Ask,
    /// The request passes, without a call to the server.
    Allowed,
    /// A response was sent.
    Denied,
}
