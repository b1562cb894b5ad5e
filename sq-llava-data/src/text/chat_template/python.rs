//! What Python's strings, lists and dicts can do, and how Python words an error.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::text::sample::{is_space, strip};

/// How the error of `raise_exception` begins.
pub(super) const TEMPLATE_ERROR: &str = "TemplateError: ";

/// `str.rstrip()`.
pub(super) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// The filter `trim`, which makes a string of anything.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> String {
    let text = value.to_string();
    match chars {
        None => strip(&text).to_owned(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    }
}

/// Methods of Python's types: those here, and else those of minijinja's own list.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => match value.as_str() {
            Some(text) => string_method(text, name, args)?,
            None => None,
        },
        ValueKind::Seq | ValueKind::Iterable => list_method(value, name, args)?,
        ValueKind::Map if name == "copy" => Some(value.clone()),
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let found = match name {
        "strip" | "lstrip" | "rstrip" => strip_method(text, name, args)?,
        "split" | "rsplit" => split(text, name == "rsplit", args)?,
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            split_lines(text, keep)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, separator, name == "rpartition")
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if name == "index" {
                text.find(what)
            } else {
                text.rfind(what)
            };
            let missing = || {
                Error::new(
                    ErrorKind::InvalidOperation,
                    "ValueError: substring not found",
                )
            };
            Value::from(text[..at.ok_or_else(missing)?].chars().count())
        }
        "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
        "casefold" => Value::from(text.to_lowercase()),
        _ => return Ok(None),
    };
    Ok(Some(found))
}

fn strip_method(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (chars,): (Option<&Value>,) = from_args(args)?;
    let chars = chars.and_then(Value::as_str).map(str::to_owned);
    let of = move |c: char| match &chars {
        None => is_space(c),
        Some(chars) => chars.contains(c),
    };
    Ok(Value::from(match name {
        "strip" => text.trim_matches(of),
        "lstrip" => text.trim_start_matches(of),
        _ => text.trim_end_matches(of),
    }))
}

fn partition(text: &str, separator: &str, from_right: bool) -> Value {
    let parts = match from_right {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    let parts = match (parts, from_right) {
        (Some((before, after)), _) => [before, separator, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(value) => Some(value.clone()),
        None => named.get::<Option<Value>>("sep")?,
    };
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    let pieces = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
    let separator = separator.filter(|value| !value.is_none());
    let mut parts: Vec<&str> = match separator.as_ref().map(Value::as_str) {
        Some(Some("")) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "ValueError: empty separator",
            ));
        }
        Some(Some(separator)) if from_right => text.rsplitn(pieces, separator).collect(),
        Some(Some(separator)) => text.splitn(pieces, separator).collect(),
        Some(None) => {
            let reason = "TypeError: must be str or None";
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        None => words(text, pieces, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts
        .into_iter()
        .map(Value::from)
        .collect::<Vec<_>>()
        .into())
}

/// Words between spaces, at most `pieces`; from the right they come last first.
fn words(text: &str, pieces: usize, from_right: bool) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = match from_right {
            true => rest.trim_end_matches(is_space),
            false => rest.trim_start_matches(is_space),
        };
        if rest.is_empty() {
            return found;
        }
        let cut = match from_right {
            true => rest.rsplit_once(is_space).map(|(rest, word)| (word, rest)),
            false => rest.split_once(is_space),
        };
        match cut.filter(|_| found.len() + 1 < pieces) {
            Some((word, others)) => {
                found.push(word);
                rest = others;
            }
            None => {
                found.push(rest);
                return found;
            }
        }
    }
}

fn split_lines(text: &str, keep_ends: bool) -> Value {
    const ENDS: [char; 10] = [
        '\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        let width = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push(Value::from(
            &rest[..if keep_ends { at + width } else { at }],
        ));
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    Value::from(lines)
}

fn list_method(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match name {
        "copy" => Some(value.clone()),
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *what);
            let missing = || {
                let reason = format!("ValueError: {what} is not in list");
                Error::new(ErrorKind::InvalidOperation, reason)
            };
            Some(Value::from(at.ok_or_else(missing)?))
        }
        _ => None,
    })
}

/// Python's name of a type that minijinja names.
pub(super) fn type_name(kind: &str) -> &str {
    match kind {
        "string" => "str",
        "sequence" | "iterator" => "list",
        "map" => "dict",
        "none" => "NoneType",
        "number" => "int",
        "undefined" => "Undefined",
        other => other,
    }
}

/// Methods that change a value are not for templates.
fn no_method(kind: &str, method: &str) -> String {
    let changes = match kind {
        "list" => "append clear extend insert pop remove reverse sort",
        "dict" => "clear pop popitem setdefault update",
        _ => "",
    };
    if changes.split(' ').any(|name| name == method) {
        return format!(
            "SecurityError: access to attribute '{method}' of '{kind}' object is unsafe."
        );
    }
    match kind {
        "Undefined" => format!("UndefinedError: what has the method {method} is undefined"),
        _ => format!("UndefinedError: '{kind} object' has no attribute '{method}'"),
    }
}

/// An error in one line, in Python's words where templates run into it.
pub(super) fn error_text(error: &Error) -> String {
    let mut root = error;
    while let Some(source) = std::error::Error::source(root).and_then(|e| e.downcast_ref()) {
        root = source;
    }
    let detail = root.detail().unwrap_or_default();
    let told = ["TemplateError: ", "TypeError: ", "ValueError: "];
    if told.iter().any(|name| detail.starts_with(name)) {
        return detail.to_owned();
    }
    let operands = detail
        .strip_prefix("tried to use + operator on unsupported types ")
        .and_then(|types| types.split_once(" and "));
    if let Some((kind, method)) = detail.split_once(" has no method named ") {
        return no_method(type_name(kind), method);
    }
    match operands {
        Some(("string", right)) if right != "undefined" => format!(
            "TypeError: can only concatenate str (not \"{}\") to str",
            type_name(right)
        ),
        Some(("sequence" | "iterator", right)) if right != "undefined" => format!(
            "TypeError: can only concatenate list (not \"{}\") to list",
            type_name(right)
        ),
        Some((left, right)) if left != "undefined" && right != "undefined" => format!(
            "TypeError: unsupported operand type(s) for +: '{}' and '{}'",
            type_name(left),
            type_name(right)
        ),
        _ => {
            let undefined = root.kind() == ErrorKind::UndefinedError
                || operands.is_some_and(|(left, right)| [left, right].contains(&"undefined"));
            let name = if undefined { "UndefinedError: " } else { "" };
            format!("{name}{error:#}").replace('\n', " ")
        }
    }
}
