//! Which columns of a file are read, and how far down its pictures are.

use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::{ColumnDescriptor, Type, TypePtr};

use crate::source::columns::Columns;

/// The column of pictures.
pub(in crate::source) struct PictureColumn {
    pub name: String,
    /// The leaf with the bytes; `None` where there are only paths.
    pub bytes: Option<usize>,
    pub levels: Levels,
}

/// From which definition level on there is something.
#[derive(Debug, Clone, Copy)]
pub(in crate::source) struct Levels {
    /// A picture.
    pub picture: i16,
    /// Its bytes.
    pub bytes: i16,
}

/// The part of the schema without the bytes of pictures, and the column of these.
///
/// # Errors
/// What is not there.
pub(super) fn read(
    file: &ParquetMetaData,
    columns: &Columns,
) -> Result<(Type, Option<PictureColumn>), String> {
    let schema = file.file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let find = |name: &str| fields.iter().find(|field| field.name() == name);
    let all = || {
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        names.join(", ")
    };
    let (must, may) = columns.wanted();
    if let Some(missing) = must.iter().find(|name| find(name).is_none()) {
        return Err(format!(
            "there is no column `{missing}`; there are {}",
            all()
        ));
    }
    let says = ["conversations", "messages"];
    if may.contains(&says[0]) && says.iter().all(|name| find(name).is_none()) {
        return Err(format!(
            "there is neither `conversations` nor `messages`; there are {}: say which hold question and answer by `columns`",
            all()
        ));
    }
    let images = match &columns.image {
        Some(name) => Some(name.as_str()),
        None => ["image", "images"]
            .into_iter()
            .find(|name| find(name).is_some()),
    };
    let mut kept: Vec<TypePtr> = Vec::new();
    let mut pictures = None;
    for field in fields {
        let name = field.name();
        if Some(name) == images {
            let column = picture_column(file, name);
            kept.extend(without_bytes(file, field, &column)?);
            pictures = Some(column);
        } else if must.contains(&name)
            || (may.contains(&name) && !["image", "images"].contains(&name))
        {
            kept.push(field.clone());
        }
    }
    let text = Type::group_type_builder(schema.name())
        .with_fields(kept)
        .build();
    Ok((text.map_err(|e| e.to_string())?, pictures))
}

fn picture_column(file: &ParquetMetaData, name: &str) -> PictureColumn {
    let schema = file.file_metadata().schema_descr();
    let own = |leaf: &ColumnDescriptor| {
        leaf.path()
            .parts()
            .first()
            .is_some_and(|first| first == name)
    };
    let leaf = schema
        .columns()
        .iter()
        .position(|leaf| own(leaf) && holds_bytes(leaf));
    let levels = leaf.map_or(
        Levels {
            picture: 0,
            bytes: 0,
        },
        |leaf| {
            let leaf = schema.column(leaf);
            let bytes = leaf.max_def_level();
            // Inside a struct, bytes may be missing where the picture is not.
            let inside = leaf.name() == "bytes" && leaf.self_type().is_optional();
            Levels {
                picture: bytes - i16::from(inside && leaf.path().parts().len() > 1),
                bytes,
            }
        },
    );
    PictureColumn {
        name: name.to_owned(),
        bytes: leaf,
        levels,
    }
}

/// Whether a leaf of the column of pictures holds their bytes, rather than paths.
fn holds_bytes(leaf: &ColumnDescriptor) -> bool {
    let text = leaf.converted_type() == ConvertedType::UTF8
        || matches!(leaf.logical_type_ref(), Some(LogicalType::String));
    leaf.physical_type() == Physical::BYTE_ARRAY
        && (leaf.name() == "bytes" || !(text || leaf.name() == "path"))
}

/// What of a column of pictures is read with the text: its paths, which say where pictures are.
/// Without paths it is the bytes themselves, unless every row has one picture.
fn without_bytes(
    file: &ParquetMetaData,
    field: &TypePtr,
    column: &PictureColumn,
) -> Result<Option<TypePtr>, String> {
    let Some(leaf) = column.bytes else {
        return Ok(Some(field.clone()));
    };
    let paths = pruned(field).map_err(|e| e.to_string())?;
    let descriptor = file.file_metadata().schema_descr().column(leaf);
    let every = descriptor.max_rep_level() == 0
        && file.row_groups().iter().all(|group| {
            let statistics = group.column(leaf).statistics();
            statistics.and_then(|s| s.null_count_opt()) == Some(0)
        });
    Ok(match paths {
        Some(paths) => Some(paths),
        None if every => None,
        None => Some(field.clone()),
    })
}

/// A type without the leaves of bytes.
fn pruned(field: &TypePtr) -> parquet::errors::Result<Option<TypePtr>> {
    if field.is_primitive() {
        let info = field.get_basic_info();
        let text = info.converted_type() == ConvertedType::UTF8
            || matches!(info.logical_type_ref(), Some(LogicalType::String));
        return Ok(
            (field.name() != "bytes" && (text || field.name() == "path")).then(|| field.clone()),
        );
    }
    let mut kept = Vec::new();
    for inner in field.get_fields() {
        kept.extend(pruned(inner)?);
    }
    if kept.is_empty() {
        return Ok(None);
    }
    let info = field.get_basic_info();
    let built = Type::group_type_builder(field.name())
        .with_repetition(info.repetition())
        .with_converted_type(info.converted_type())
        .with_logical_type(info.logical_type_ref().cloned())
        .with_fields(kept)
        .build()?;
    Ok(Some(Arc::new(built)))
}
