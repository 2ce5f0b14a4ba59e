//! The foreign functions: those of Envoy 1.40 that the module calls, and those of the module that Envoy calls. The only
//! file with `unsafe`.
//!
//! The declarations follow the comments of Envoy's `abi.h` (`v0.2.0`). No pointer of Envoy is kept after the hook that
//! got it: a [`Stream`] exists only as a borrowed argument, and every text of Envoy is copied before the next call.
#![expect(unsafe_code, reason = "the ABI of Envoy is that of C")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use crate::exchange::{ContextPolicy, Exchange, FilterAction};
use crate::filter::{Counters, Filter, decide};

/// The version of the ABI.
const VERSION: &CStr = c"v0.2.0";

/// A text of Envoy or of the module.
#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer {
    start: *const u8,
    len: usize,
}

impl Buffer {
    const NONE: Self = Self { start: ptr::null(), len: 0 };

    /// Returns the bytes.
    ///
    /// # Safety
    ///
    /// The pointer is null, or valid for its length as long as the result is used.
    unsafe fn bytes<'b>(self) -> &'b [u8] {
        if self.start.is_null() {
            return &[];
        }
        // SAFETY: the caller guarantees it.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    fn of(text: &[u8]) -> Self {
        Self { start: text.as_ptr(), len: text.len() }
    }

    /// Returns a copy.
    ///
    /// # Safety
    ///
    /// The pointer is null, or valid for its length.
    unsafe fn copied(self) -> Vec<u8> {
        // SAFETY: the caller guarantees it.
        unsafe { self.bytes() }.to_vec()
    }
}

/// A header, or a field of metadata.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pair {
    name: Buffer,
    value: Buffer,
}

fn pairs(texts: &[(&str, &str)]) -> Vec<Pair> {
    let of = |text: &str| Buffer::of(text.as_bytes());
    texts.iter().map(|(name, value)| Pair { name: of(name), value: of(value) }).collect()
}

const REQUEST_HEADER: u32 = 0;
const CONTINUE: u32 = 0;
const STOP: u32 = 1;

type Envoy = *mut c_void;
type Ours = *const c_void;

unsafe extern "C" {
    fn envoy_dynamic_module_callback_is_validation_mode() -> bool;
    fn envoy_dynamic_module_callback_http_get_headers_size(stream: Envoy, kind: u32) -> usize;
    fn envoy_dynamic_module_callback_http_get_headers(stream: Envoy, kind: u32, headers: *mut Pair) -> bool;
    fn envoy_dynamic_module_callback_http_get_header(
        stream: Envoy,
        kind: u32,
        name: Buffer,
        value: *mut Buffer,
        index: usize,
        count: *mut usize,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_header(
        stream: Envoy,
        kind: u32,
        name: Buffer,
        value: Buffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_clear_route_cache(stream: Envoy);
    fn envoy_dynamic_module_callback_get_most_specific_route_config(stream: Envoy) -> Ours;
    fn envoy_dynamic_module_callback_http_send_response(
        stream: Envoy,
        status: u32,
        headers: *const Pair,
        count: usize,
        body: Buffer,
        details: Buffer,
    );
    fn envoy_dynamic_module_callback_http_set_dynamic_metadata_string_batch(
        stream: Envoy,
        namespace: Buffer,
        fields: *const Pair,
        count: usize,
    );
    fn envoy_dynamic_module_callback_http_set_dynamic_metadata_bool(
        stream: Envoy,
        namespace: Buffer,
        name: Buffer,
        value: bool,
    );
    fn envoy_dynamic_module_callback_http_filter_config_define_counter(
        config: Envoy,
        name: Buffer,
        labels: *const Buffer,
        count: usize,
        id: *mut usize,
    ) -> u32;
    fn envoy_dynamic_module_callback_http_filter_increment_counter(
        stream: Envoy,
        id: usize,
        labels: *const Buffer,
        count: usize,
        by: u64,
    ) -> u32;
    // POSIX functions of the C library.
    fn sigfillset(set: *mut Signals) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const Signals, old: *mut Signals) -> c_int;
}

/// `sigset_t` of glibc on Linux.
#[repr(C)]
struct Signals([u64; 16]);

/// Runs `start` with all signals blocked. A thread that `start` creates inherits the mask, so it never runs a signal
/// handler of Envoy.
pub(crate) fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    const SIG_SETMASK: c_int = 2;
    let (mut all, mut before) = (Signals([0; 16]), Signals([0; 16]));
    // SAFETY: both point to a set of the size that the C library has on Linux.
    let blocked = unsafe {
        sigfillset(&raw mut all) == 0 && pthread_sigmask(SIG_SETMASK, &raw const all, &raw mut before) == 0
    };
    let result = start();
    if blocked {
        // SAFETY: as above; the set is the one that was in force.
        unsafe { pthread_sigmask(SIG_SETMASK, &raw const before, ptr::null_mut()) };
    }
    result
}

/// A request during one hook, and whether its headers end it.
struct Stream(Envoy, bool);

impl Exchange for Stream {
    fn each_header(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        // SAFETY: Envoy's own pointer, within its hook.
        let count = unsafe { envoy_dynamic_module_callback_http_get_headers_size(self.0, REQUEST_HEADER) };
        let mut headers = vec![Pair { name: Buffer::NONE, value: Buffer::NONE }; count];
        // SAFETY: as above; Envoy writes as many headers as it has just counted.
        let found = unsafe {
            envoy_dynamic_module_callback_http_get_headers(self.0, REQUEST_HEADER, headers.as_mut_ptr())
        };
        for header in headers.into_iter().filter(|_| found) {
            // SAFETY: Envoy's texts are valid until the headers change, and `each` cannot change them.
            unsafe { each(header.name.bytes(), header.value.bytes()) };
        }
    }

    fn has_body(&self) -> bool {
        !self.1
    }

    fn values(&self, name: &str) -> Vec<Vec<u8>> {
        let mut values = Vec::new();
        loop {
            let (mut value, mut count) = (Buffer::NONE, 0_usize);
            // SAFETY: Envoy's own pointer, within its hook; the name is read before the call returns, and the two
            // results are ours.
            let found = unsafe {
                envoy_dynamic_module_callback_http_get_header(
                    self.0,
                    REQUEST_HEADER,
                    Buffer::of(name.as_bytes()),
                    &raw mut value,
                    values.len(),
                    &raw mut count,
                )
            };
            if !found {
                return values;
            }
            // SAFETY: Envoy's text is valid until the headers change, which they do not before this copy is made.
            values.push(unsafe { value.copied() });
            if values.len() >= count {
                return values;
            }
        }
    }

    fn set_header(&mut self, name: &str, value: Option<&str>) -> bool {
        let value = value.map_or(Buffer::NONE, |value| Buffer::of(value.as_bytes()));
        // SAFETY: Envoy's own pointer, within its hook; Envoy copies both texts.
        unsafe {
            envoy_dynamic_module_callback_http_set_header(
                self.0,
                REQUEST_HEADER,
                Buffer::of(name.as_bytes()),
                value,
            )
        }
    }

    fn set_metadata(&mut self, namespace: &str, fields: &[(&str, &str)]) {
        let (namespace, fields) = (Buffer::of(namespace.as_bytes()), pairs(fields));
        // SAFETY: as above; the count is that of the fields.
        unsafe {
            envoy_dynamic_module_callback_http_set_dynamic_metadata_string_batch(
                self.0,
                namespace,
                fields.as_ptr(),
                fields.len(),
            );
        }
    }

    fn set_flag(&mut self, namespace: &str, name: &str, value: bool) {
        let (namespace, name) = (Buffer::of(namespace.as_bytes()), Buffer::of(name.as_bytes()));
        // SAFETY: as above.
        unsafe {
            envoy_dynamic_module_callback_http_set_dynamic_metadata_bool(self.0, namespace, name, value);
        };
    }

    fn route(&self) -> Option<ContextPolicy> {
        // SAFETY: Envoy's own pointer, within its hook. The result is compared and never read.
        let config = unsafe { envoy_dynamic_module_callback_get_most_specific_route_config(self.0) };
        context_policy_of(config)
    }

    fn clear_route_cache(&mut self) {
        // SAFETY: as above.
        unsafe { envoy_dynamic_module_callback_http_clear_route_cache(self.0) };
    }

    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &str, details: &str) {
        let (headers, body, details) =
            (pairs(headers), Buffer::of(body.as_bytes()), Buffer::of(details.as_bytes()));
        // SAFETY: as above; the count is that of the headers.
        unsafe {
            envoy_dynamic_module_callback_http_send_response(
                self.0,
                status.into(),
                headers.as_ptr(),
                headers.len(),
                body,
                details,
            );
        }
    }

    fn count(&mut self, counter: usize) {
        // SAFETY: as above; the counter is one that Envoy has given, and has no labels.
        unsafe {
            envoy_dynamic_module_callback_http_filter_increment_counter(self.0, counter, ptr::null(), 0, 1)
        };
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    VERSION.as_ptr()
}

/// Creates a filter from a configuration. If it returns null, Envoy rejects the configuration.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    config: Envoy,
    _name: Buffer,
    text: Buffer,
) -> Ours {
    let made = catch_unwind(|| {
        // SAFETY: Envoy's text, valid during this hook.
        let text = String::from_utf8(unsafe { text.copied() }).ok()?;
        // SAFETY: called on the main thread, as this hook is.
        let validating = unsafe { envoy_dynamic_module_callback_is_validation_mode() };
        let counters = Counters::define(|name| {
            let mut id = 0;
            // SAFETY: Envoy's own pointer, within its hook; the name is copied, and the result is ours.
            let defined = unsafe {
                envoy_dynamic_module_callback_http_filter_config_define_counter(
                    config,
                    Buffer::of(name.as_bytes()),
                    ptr::null(),
                    0,
                    &raw mut id,
                )
            };
            (defined == 0).then_some(id)
        })?;
        Filter::new(&text, counters, !validating)
    });
    made.ok().flatten().map_or(ptr::null(), |filter| Arc::into_raw(filter).cast())
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(filter: Ours) {
    if !filter.is_null() {
        // SAFETY: made by `Arc::into_raw` in `config_new`, and destroyed once.
        let filter = unsafe { Arc::from_raw(filter.cast::<Filter>()) };
        let _ = catch_unwind(AssertUnwindSafe(|| filter.stop()));
    }
}

/// The configurations of routes. Only their addresses count, so there is nothing to free.
static PROMISES: [(u8, ContextPolicy); 2] = [(0, ContextPolicy::Some), (1, ContextPolicy::None)];

/// Returns the configuration of a route by what [`envoy_dynamic_module_on_http_filter_per_route_config_new`] has
/// returned for it.
fn context_policy_of(config: Ours) -> Option<ContextPolicy> {
    if config.is_null() {
        return None;
    }
    let known = PROMISES.iter().find(|known| ptr::from_ref(*known).cast() == config);
    // A pointer that is not ours is in doubt.
    Some(known.map_or(ContextPolicy::Some, |known| known.1))
}

/// Reads the configuration of a route. Null makes Envoy reject it.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_per_route_config_new(_name: Buffer, text: Buffer) -> Ours {
    let parsed = catch_unwind(|| {
        // SAFETY: Envoy's text, valid during this hook.
        let text = String::from_utf8(unsafe { text.copied() }).ok()?;
        let context_policy = ContextPolicy::parse(&text)?;
        PROMISES.iter().find(|known| known.1 == context_policy)
    });
    parsed.ok().flatten().map_or(ptr::null(), |known| ptr::from_ref(known).cast())
}

/// A filter has no state of its own. It is its configuration, which Envoy keeps as long as any of its filters.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_new(config: Ours, _stream: Envoy) -> Ours {
    config
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    stream: Envoy,
    filter: Ours,
    end: bool,
) -> u32 {
    // SAFETY: the pointer is from `config_new`, and Envoy destroys it after the last filter of this configuration.
    let filter = unsafe { &*filter.cast::<Filter>() };
    let mut stream = Stream(stream, end);
    match decide(filter, &mut stream) {
        FilterAction::Ask | FilterAction::Allowed => CONTINUE,
        FilterAction::Denied => STOP,
    }
}

/// Hooks that Envoy requires and that do nothing here.
macro_rules! idle {
    ($($name:ident($($argument:ty),*) $(-> $go_on:ident)?;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($(_: $argument),*) $(-> idle!(@type $go_on))? { $($go_on)? }
    )*};
    (@type $go_on:ident) => { u32 };
}

idle! {
    envoy_dynamic_module_on_http_filter_request_body(Envoy, Ours, bool) -> CONTINUE;
    envoy_dynamic_module_on_http_filter_request_trailers(Envoy, Ours) -> CONTINUE;
    envoy_dynamic_module_on_http_filter_response_headers(Envoy, Ours, bool) -> CONTINUE;
    envoy_dynamic_module_on_http_filter_response_body(Envoy, Ours, bool) -> CONTINUE;
    envoy_dynamic_module_on_http_filter_response_trailers(Envoy, Ours) -> CONTINUE;
    envoy_dynamic_module_on_http_filter_stream_complete(Envoy, Ours);
    envoy_dynamic_module_on_http_filter_destroy(Ours);
    envoy_dynamic_module_on_http_filter_per_route_config_destroy(Ours);
    envoy_dynamic_module_on_http_filter_http_callout_done(Envoy, Ours, u64, u32, Envoy, usize, Envoy, usize);
    envoy_dynamic_module_on_http_filter_http_stream_headers(Envoy, Ours, u64, Envoy, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_data(Envoy, Ours, u64, Envoy, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_trailers(Envoy, Ours, u64, Envoy, usize);
    envoy_dynamic_module_on_http_filter_http_stream_complete(Envoy, Ours, u64);
    envoy_dynamic_module_on_http_filter_http_stream_reset(Envoy, Ours, u64, u32);
    envoy_dynamic_module_on_http_filter_scheduled(Envoy, Ours, u64);
    envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(Envoy, Ours);
    envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(Envoy, Ours);
}
