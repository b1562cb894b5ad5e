//! Recipes in layers: defaults, a file, changes from the command line.

use crate::error::TrainError;

/// Puts the values of `given` over those of `whole`, table by table.
pub(super) fn merge(whole: &mut toml::Table, given: toml::Table) {
    for (key, value) in given {
        match (whole.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            // A whole number may stand for a decimal one.
            (Some(slot @ toml::Value::Float(_)), toml::Value::Integer(n)) => {
                *slot = toml::Value::Float(n as f64);
            }
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// Applies `a.b=value`; a value that is not TOML is a string.
pub(super) fn apply(table: &mut toml::Table, change: &str) -> Result<(), TrainError> {
    let Some((key, value)) = change.split_once('=') else {
        return Err(TrainError::Recipe(format!(
            "\"{change}\" is not of the form key=value"
        )));
    };
    let (key, value) = (key.trim(), value.trim());
    let value = match format!("value = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("value"),
        Err(_) => None,
    }
    .unwrap_or_else(|| toml::Value::String(value.to_owned()));

    let mut names: Vec<&str> = key.split('.').collect();
    // `split` yields at least one part.
    let last = names.pop().unwrap_or_default();
    if last.is_empty() || names.iter().any(|name| name.is_empty()) {
        return Err(TrainError::Recipe(format!("\"{change}\" has an empty key")));
    }
    let mut table = table;
    for name in names {
        let inner = table
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = match inner {
            toml::Value::Table(inner) => inner,
            _ => {
                return Err(TrainError::Recipe(format!(
                    "\"{key}\": \"{name}\" is not a table"
                )));
            }
        };
    }
    table.insert(last.to_owned(), value);
    Ok(())
}
