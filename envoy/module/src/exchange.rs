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

    /// Lets Envoy choose the route again, by the headers as they are now.
    fn clear_route_cache(&mut self);

    /// Answers the request.
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &str, details: &str);

    /// Counts one.
    fn count(&mut self, counter: usize);
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
