//! Decodes a `CheckRequest` by walking its wire format.
//!
//! It reads method, host, path, headers and context extensions, without copies and allocations. Strings need not be
//! UTF-8: Envoy forwards some bytes that clients choose, and if the decoder rejected a message, its request would be
//! allowed under `failure_mode_allow`.
//!
//! The rules are those of protobuf (<https://protobuf.dev/programming-guides/encoding/>): of a repeated scalar the
//! last one counts, repeated messages are merged, unknown fields are skipped. Only maps differ: a repeated entry is
//! reported twice, because a repeated credential is malformed.
//!
//! This module does not know the meaning of headers.

/// The bytes are not a valid `CheckRequest`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid CheckRequest")]
pub struct NotACheckRequest;

/// Receives the entries of a request.
pub trait MessageVisitor<'a> {
    /// Called for each entry of `attributes.request.http.headers` and `….header_map`, in the order of the message.
    fn header(&mut self, name: &'a [u8], value: &'a [u8]);

    /// Called for each entry of `attributes.context_extensions`, in the order of the message. Only Envoy's
    /// configuration sets them.
    fn context(&mut self, _name: &'a [u8], _value: &'a [u8]) {}
}

/// The scalars of a request. Empty if missing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RequestLine<'a> {
    /// `attributes.request.http.method`.
    pub method: &'a [u8],
    /// `attributes.request.http.path`, with the query.
    pub path: &'a [u8],
    /// `attributes.request.http.host`.
    pub host: &'a [u8],
}

/// Walks a `CheckRequest`, and reports its entries to `visitor`.
///
/// # Errors
///
/// Fails if the message is truncated, or a field has another wire type. Every protobuf decoder rejects these, too.
///
/// # Security
///
/// Time and memory are at most proportional to the length of the message, and the use of stack is bounded.
pub fn walk<'a>(
    message: &'a [u8],
    visitor: &mut impl MessageVisitor<'a>,
) -> Result<RequestLine<'a>, NotACheckRequest> {
    let mut target = RequestLine::default();
    // CheckRequest.attributes = 1, AttributeContext.request = 4, Request.http = 2.
    let mut check = WireFields(message);
    while let Some((field, value)) = check.next()? {
        if field == 1 {
            attributes(value.bytes()?, &mut target, visitor)?;
        }
    }
    Ok(target)
}

fn attributes<'a>(
    message: &'a [u8],
    target: &mut RequestLine<'a>,
    visitor: &mut impl MessageVisitor<'a>,
) -> Result<(), NotACheckRequest> {
    // AttributeContext.context_extensions = 10.
    let mut attributes = WireFields(message);
    while let Some((field, value)) = attributes.next()? {
        if field == 4 {
            let mut request = WireFields(value.bytes()?);
            while let Some((field, value)) = request.next()? {
                if field == 2 {
                    http_request(value.bytes()?, target, visitor)?;
                }
            }
        } else if field == 10 {
            let (name, content) = map_entry(value.bytes()?)?;
            visitor.context(name, content);
        }
    }
    Ok(())
}

/// `HttpRequest`: method = 2, headers = 3, path = 4, host = 5, `header_map` = 13.
fn http_request<'a>(
    message: &'a [u8],
    target: &mut RequestLine<'a>,
    visitor: &mut impl MessageVisitor<'a>,
) -> Result<(), NotACheckRequest> {
    let mut http = WireFields(message);
    while let Some((field, value)) = http.next()? {
        match field {
            2 => target.method = value.bytes()?,
            3 => {
                let (name, content) = map_entry(value.bytes()?)?;
                visitor.header(name, content);
            }
            4 => target.path = value.bytes()?,
            5 => target.host = value.bytes()?,
            13 => header_map(value.bytes()?, visitor)?,
            _ => {}
        }
    }
    Ok(())
}

/// `HeaderMap`: headers = 1.
fn header_map<'a>(message: &'a [u8], visitor: &mut impl MessageVisitor<'a>) -> Result<(), NotACheckRequest> {
    let mut map = WireFields(message);
    while let Some((field, value)) = map.next()? {
        if field == 1 {
            header_value(value.bytes()?, visitor)?;
        }
    }
    Ok(())
}

/// An entry of `map<string, string>`: key = 1, value = 2.
#[expect(clippy::inline_always, reason = "a call for each header costs 1 % of a check")]
#[inline(always)]
fn map_entry(message: &[u8]) -> Result<(&[u8], &[u8]), NotACheckRequest> {
    if let Some(plain) = plain_map_entry(message) {
        return Ok(plain);
    }
    let (mut name, mut content): (&[u8], &[u8]) = (&[], &[]);
    let mut entry = WireFields(message);
    while let Some((field, value)) = entry.next()? {
        match field {
            1 => name = value.bytes()?,
            2 => content = value.bytes()?,
            _ => {}
        }
    }
    Ok((name, content))
}

/// Decodes the usual form of an entry: a name of less than 128 bytes, a value of less than 16,384 bytes, and no other
/// field. `None` for other forms.
fn plain_map_entry(message: &[u8]) -> Option<(&[u8], &[u8])> {
    const NAME: u8 = 1 << 3 | 2;
    const CONTENT: u8 = 2 << 3 | 2;
    let [NAME, len @ ..0x80, rest @ ..] = message else { return None };
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (len, content) = match rest {
        [CONTENT, len @ ..0x80, content @ ..] => (usize::from(*len), content),
        [CONTENT, low, high @ ..0x80, content @ ..] => {
            (usize::from(low & 0x7f) | usize::from(*high) << 7, content)
        }
        _ => return None,
    };
    (content.len() == len).then_some((name, content))
}

/// `HeaderValue`: key = 1, value = 2, `raw_value` = 3. Envoy sets one of the values. A header with both is reported
/// twice, because it is ambiguous which one counts.
fn header_value<'a>(
    message: &'a [u8],
    visitor: &mut impl MessageVisitor<'a>,
) -> Result<(), NotACheckRequest> {
    let (mut name, mut content, mut raw): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
    let mut header = WireFields(message);
    while let Some((field, value)) = header.next()? {
        match field {
            1 => name = value.bytes()?,
            2 => content = value.bytes()?,
            3 => raw = value.bytes()?,
            _ => {}
        }
    }
    if raw.is_empty() || !content.is_empty() {
        visitor.header(name, content);
    }
    if !raw.is_empty() {
        visitor.header(name, raw);
    }
    Ok(())
}

/// The value of a field.
#[derive(Clone, Copy)]
pub(super) enum WireValue<'a> {
    Bytes(&'a [u8]),
    /// A number or a group, which none of the fields that are read has.
    Other,
}

impl<'a> WireValue<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], NotACheckRequest> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Other => Err(NotACheckRequest),
        }
    }
}

/// An iterator over the fields of a message.
pub(super) struct WireFields<'a>(pub(super) &'a [u8]);

impl<'a> WireFields<'a> {
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u32, WireValue<'a>)>, NotACheckRequest> {
        // Fast path: nearly every field has a small number and a length below 128.
        if let [tag @ 8..0x80, len @ ..0x80, rest @ ..] = self.0
            && tag & 7 == 2
            && let Some((value, rest)) = rest.split_at_checked(usize::from(*len))
        {
            self.0 = rest;
            return Ok(Some((u32::from(tag >> 3), WireValue::Bytes(value))));
        }
        self.any()
    }

    fn any(&mut self) -> Result<Option<(u32, WireValue<'a>)>, NotACheckRequest> {
        if self.0.is_empty() {
            return Ok(None);
        }
        // A long header, or the messages around all headers: a small number, and a length of two bytes.
        if let [tag @ 8..0x80, low @ 0x80..=0xff, high @ 1..0x80, rest @ ..] = self.0
            && tag & 7 == 2
            && let Some((value, rest)) =
                rest.split_at_checked(usize::from(low & 0x7f) | usize::from(*high) << 7)
        {
            self.0 = rest;
            return Ok(Some((u32::from(tag >> 3), WireValue::Bytes(value))));
        }
        let (field, wire_type) = tag(&mut self.0)?;
        if wire_type == 2 {
            return Ok(Some((field, WireValue::Bytes(length_delimited(&mut self.0)?))));
        }
        skip(&mut self.0, field, wire_type)?;
        Ok(Some((field, WireValue::Other)))
    }
}

fn tag(message: &mut &[u8]) -> Result<(u32, u8), NotACheckRequest> {
    let tag = u32::try_from(varint(message)?).map_err(|_| NotACheckRequest)?;
    let wire_type = (tag & 7) as u8;
    if tag >> 3 == 0 { Err(NotACheckRequest) } else { Ok((tag >> 3, wire_type)) }
}

/// Reads a varint: at most ten bytes, of which the tenth adds one bit.
fn varint(message: &mut &[u8]) -> Result<u64, NotACheckRequest> {
    let mut number = 0_u64;
    for (place, &byte) in message.iter().take(10).enumerate() {
        if place == 9 && byte > 1 {
            return Err(NotACheckRequest);
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            *message = &message[place + 1..];
            return Ok(number);
        }
    }
    Err(NotACheckRequest)
}

fn length_delimited<'a>(message: &mut &'a [u8]) -> Result<&'a [u8], NotACheckRequest> {
    let len = usize::try_from(varint(message)?).map_err(|_| NotACheckRequest)?;
    let (value, rest) = message.split_at_checked(len).ok_or(NotACheckRequest)?;
    *message = rest;
    Ok(value)
}

/// The maximum depth of nested groups, the same as prost's.
const MAX_DEPTH: usize = 100;

/// Skips a number or a group. Nested groups are tracked in a list instead of by recursion.
fn skip(message: &mut &[u8], field: u32, wire_type: u8) -> Result<(), NotACheckRequest> {
    let mut open = Vec::new();
    let (mut field, mut wire_type) = (field, wire_type);
    loop {
        match wire_type {
            0 => drop(varint(message)?),
            1 => *message = message.get(8..).ok_or(NotACheckRequest)?,
            2 => drop(length_delimited(message)?),
            3 if open.len() < MAX_DEPTH => open.push(field),
            4 if open.last() == Some(&field) => drop(open.pop()),
            5 => *message = message.get(4..).ok_or(NotACheckRequest)?,
            _ => return Err(NotACheckRequest),
        }
        if open.is_empty() {
            return Ok(());
        }
        (field, wire_type) = tag(message)?;
    }
}

#[cfg(test)]
mod tests;
