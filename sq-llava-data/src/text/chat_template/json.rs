//! `tojson` as transformers has it: Python's `json.dumps` without HTML escapes.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

use super::python;

struct Layout {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// The filter; its options are `ensure_ascii`, `indent`, `separators` and `sort_keys`, in this
/// order or by name.
pub(super) fn tojson(value: &Value, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = options.into_values();
    let (given, named) = from_args::<(&[Value], Kwargs)>(&options)?;
    let argument = |at: usize, name: &str| match given.get(at) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?.filter(|indent| !indent.is_none());
    let indent = indent.map(|indent| match (indent.as_str(), indent.as_usize()) {
        (Some(text), _) => text.to_owned(),
        (None, width) => " ".repeat(width.unwrap_or_default().min(64)),
    });
    let separators = argument(2, "separators")?.filter(|pair| !pair.is_none());
    let (item, key) = match separators {
        Some(pair) => (
            pair.get_item_by_index(0)?.to_string(),
            pair.get_item_by_index(1)?.to_string(),
        ),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let layout = Layout {
        ensure_ascii: is_true(argument(0, "ensure_ascii")?),
        indent,
        item,
        key,
        sort_keys: is_true(argument(3, "sort_keys")?),
    };
    named.assert_all_used()?;
    let mut out = String::new();
    layout.write(value, 0, &mut out)?;
    Ok(out)
}

impl Layout {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = value.try_iter()?;
                self.container(('[', ']'), depth, out, |out, first| {
                    let Some(item) = items.next() else {
                        return Ok(false);
                    };
                    self.begin_item(first, depth, out);
                    self.write(&item, depth + 1, out).map(|()| true)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let mut keys = keys.into_iter();
                self.container(('{', '}'), depth, out, |out, first| {
                    let Some(key) = keys.next() else {
                        return Ok(false);
                    };
                    self.begin_item(first, depth, out);
                    match key.kind() {
                        ValueKind::String => self.string(key.as_str().unwrap_or_default(), out),
                        _ => {
                            out.push('"');
                            self.write(&key, depth + 1, out)?;
                            out.push('"');
                        }
                    }
                    out.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1, out)
                        .map(|()| true)
                })?;
            }
            _ => {
                let name = python::type_name(&value.kind().to_string()).to_owned();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("TypeError: Object of type {name} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn container(
        &self,
        (open, close): (char, char),
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(&mut String, bool) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let mut empty = true;
        while item(out, empty)? {
            empty = false;
        }
        if !empty {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn begin_item(&self, first: bool, depth: usize, out: &mut String) {
        if !first {
            out.push_str(&self.item);
        }
        self.line(depth + 1, out);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                let units = c.encode_utf16(&mut [0; 2]).to_vec();
                out.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
}

/// A number as Python writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if !number.is_finite() {
        let infinity = if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        return if number.is_nan() { "NaN" } else { infinity }.into();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>().unwrap_or_default() {
        -4..16 => {
            let plain = number.to_string();
            if plain.contains('.') {
                plain
            } else {
                plain + ".0"
            }
        }
        exponent => format!(
            "{digits}e{}{:02}",
            if exponent < 0 { '-' } else { '+' },
            exponent.abs()
        ),
    }
}
