//! What is said to a client. Writes nothing, and does not know the request.

use std::borrow::Cow;

use serde_json::json;

/// One answer, ready to be written.
pub(crate) struct Answer {
    pub(crate) status: (usize, &'static str),
    pub(crate) body: Cow<'static, str>,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Cow<'static, str>>) -> Self {
        Self { status: (200, "OK"), body: body.into() }
    }

    /// An answer that says in its JSON body what is wrong.
    pub(crate) fn error(code: usize, reason: &'static str, message: &str) -> Self {
        Self { status: (code, reason), body: json!({ "error": message }).to_string().into() }
    }

    pub(crate) fn not_found() -> Self {
        Self::error(404, "Not Found", "no such path on this worker")
    }
}
