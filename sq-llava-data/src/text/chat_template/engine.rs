//! Jinja as transformers sets it up for chat templates. A template sees its variables and nothing
//! else: there is no loader, and its steps are counted.

use jiff::Zoned;
use jiff::fmt::strtime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::{json, python};

/// Steps after which a template counts as endless.
const FUEL: u64 = 2_000_000;

/// Name of the template in its environment.
pub(super) const NAME: &str = "chat_template";

/// An environment with one template; `now` is what the template takes for the time.
pub(super) fn environment(source: String, now: Zoned) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_debug(false);
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    // Python's strings and dicts have a length and items too.
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::Seq, ValueKind::Map, ValueKind::String];
        value.is_undefined() || kinds.contains(&value.kind())
    });
    environment.add_function(
        "raise_exception",
        |reason: &Value| -> Result<Value, Error> {
            let reason = format!("{}{reason}", python::TEMPLATE_ERROR);
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        },
    );
    environment.add_function("strftime_now", move |format: &str| {
        strtime::format(format, &now).map_err(|error| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now: {error}"),
            )
        })
    });
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}
