//! A row as the JSON object that the same sample is in LLaVA's file.

use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::schema::PictureColumn;

/// The row's object. The column of pictures becomes their paths; a picture without one is
/// [`UNNAMED`].
///
/// # Errors
/// What cannot be written so.
pub(super) fn object(row: &Row, pictures: Option<&PictureColumn>) -> Result<Vec<u8>, String> {
    let mut object = Map::new();
    for (name, field) in row.get_column_iter() {
        let value = match pictures {
            Some(column) if column.name == *name => names(field),
            _ => value(field).map_err(|reason| format!("column {name}: {reason}"))?,
        };
        object.insert(name.clone(), value);
    }
    if let Some(column) = pictures.filter(|column| !object.contains_key(&column.name)) {
        object.insert(column.name.clone(), UNNAMED.into());
    }
    serde_json::to_vec(&object).map_err(|e| e.to_string())
}

/// Stands for the name of a picture without a path, which the row does not know.
pub(super) const UNNAMED: &str = "(embedded)";

fn names(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Str(path) => path.as_str().into(),
        Field::ListInternal(list) => list.elements().iter().map(names).collect(),
        Field::Group(picture) => {
            let path = picture
                .get_column_iter()
                .find_map(|(name, field)| match field {
                    Field::Str(path) if name == "path" && !path.is_empty() => Some(path.as_str()),
                    _ => None,
                });
            path.unwrap_or(UNNAMED).into()
        }
        _ => UNNAMED.into(),
    }
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float(n) => (*n).into(),
        Field::Double(n) => (*n).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err("bytes that are no text".into()),
        },
        Field::ListInternal(list) => list
            .elements()
            .iter()
            .map(value)
            .collect::<Result<_, _>>()?,
        Field::Group(row) => group(row)?,
        // Dates, decimals and maps are nothing that a sample is made of.
        other => other.to_string().into(),
    })
}

/// A struct. One of lists, as `datasets.Sequence` makes of structs, is a list of structs.
fn group(row: &Row) -> Result<Value, String> {
    let mut lists: Vec<(&String, &[Field])> = Vec::new();
    for (name, field) in row.get_column_iter() {
        if let Field::ListInternal(list) = field {
            lists.push((name, list.elements()));
        }
    }
    if lists.is_empty() || lists.len() < row.len() {
        let pairs = row
            .get_column_iter()
            .map(|(name, field)| Ok((name.clone(), value(field)?)));
        return Ok(Value::Object(pairs.collect::<Result<_, String>>()?));
    }
    let len = lists[0].1.len();
    if lists.iter().any(|(_, list)| list.len() != len) {
        return Err("a struct of lists of different lengths".into());
    }
    let element = |at: usize| -> Result<Value, String> {
        let pairs = lists
            .iter()
            .map(|(name, list)| Ok(((*name).clone(), value(&list[at])?)));
        Ok(Value::Object(pairs.collect::<Result<_, String>>()?))
    };
    (0..len).map(element).collect()
}
