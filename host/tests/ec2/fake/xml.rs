//! Answers in EC2's XML.

use std::collections::BTreeMap;

use super::http::Answer;

/// A piece of an answer; pieces are joined with `+`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Xml(String);

impl Xml {
    pub(crate) fn text(self) -> String {
        self.0
    }
}

impl std::ops::Add for Xml {
    type Output = Self;

    fn add(mut self, next: Self) -> Self {
        self.0.push_str(&next.0);
        self
    }
}

/// An element with text.
pub(crate) fn text(name: &str, value: impl std::fmt::Display) -> Xml {
    let value = value.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Xml(format!("<{name}>{value}</{name}>"))
}

/// An element around others.
pub(crate) fn node(name: &str, inner: Xml) -> Xml {
    Xml(format!("<{name}>{}</{name}>", inner.0))
}

/// `<NAME><item>..</item><item>..</item></NAME>`
pub(crate) fn set(name: &str, items: impl IntoIterator<Item = Xml>) -> Xml {
    let items = items.into_iter().map(|item| node("item", item));
    node(name, items.fold(Xml::default(), |all, item| all + item))
}

pub(crate) fn tags(tags: &BTreeMap<String, String>) -> Xml {
    set("tagSet", tags.iter().map(|(key, value)| text("key", key) + text("value", value)))
}

/// The answer of a call that has succeeded.
pub(crate) fn success(action: &str, request: u64, inner: &Xml) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>req-{request}</requestId>{}</{action}Response>",
        inner.0
    );
    Answer { status: 200, body }
}

/// A refusal.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

pub(crate) fn refused(code: &str, message: impl Into<String>) -> Refused {
    Refused { status: 400, code: code.to_owned(), message: message.into() }
}

impl Refused {
    /// In the frame of STS, which is not EC2's.
    pub(crate) fn sts_answer(&self) -> Answer {
        let error = node("Error", text("Code", &self.code) + text("Message", &self.message));
        let body = node("ErrorResponse", error + text("RequestId", "req-sts")).0;
        Answer { status: self.status, body }
    }

    pub(crate) fn answer(&self, request: u64) -> Answer {
        let error = text("Code", &self.code) + text("Message", &self.message);
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors>{}</Errors><RequestID>req-{request}</RequestID></Response>",
            node("Error", error).0
        );
        Answer { status: self.status, body }
    }
}
