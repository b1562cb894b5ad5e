//! JSON as a template sees it: lists and dicts that print as Python prints them.

use std::fmt::{self, Write};
use std::sync::{Arc, LazyLock};

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, Serde};
use regex::Regex;
use serde_json::Value as Json;

/// What Python's `repr` writes as an escape: other characters, and spaces but the usual one.
static OTHERS_AND_SPACES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").expect("a valid pattern"));

/// A template's value of JSON.
pub(super) fn value_of(json: &Json) -> Value {
    match json {
        Json::Array(items) => Value::from_object(List(items.iter().map(value_of).collect())),
        Json::Object(fields) => {
            let field = |(key, value): (&String, &Json)| (key.as_str().into(), value_of(value));
            Value::from_object(Dict(fields.iter().map(field).collect()))
        }
        scalar => Value::from(Serde(scalar)),
    }
}

#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (i, item) in self.0.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            write_repr(item, f)?;
        }
        f.write_char(']')
    }
}

#[derive(Debug)]
struct Dict(Vec<(Arc<str>, Value)>);

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let field = self.0.iter().find(|(name, _)| &**name == key);
        field.map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = self.0.iter().map(|(name, _)| Value::from(name.clone()));
        Enumerator::Values(keys.collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            write_quoted(name, f)?;
            f.write_str(": ")?;
            write_repr(value, f)?;
        }
        f.write_char('}')
    }
}

fn write_repr(value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value.as_str() {
        Some(text) => write_quoted(text, f),
        None => write!(f, "{value}"),
    }
}

/// Python's `repr` of a string.
fn write_quoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    f.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '\\' => f.write_str("\\\\")?,
            c if c == quote => write!(f, "\\{c}")?,
            c if is_printable(c) => f.write_char(c)?,
            c => match u32::from(c) {
                code @ ..=0xff => write!(f, "\\x{code:02x}")?,
                code @ ..=0xffff => write!(f, "\\u{code:04x}")?,
                code => write!(f, "\\U{code:08x}")?,
            },
        }
    }
    f.write_char(quote)
}

/// Python's `str.isprintable`.
fn is_printable(c: char) -> bool {
    c == ' ' || !OTHERS_AND_SPACES.is_match(c.encode_utf8(&mut [0; 4]))
}
