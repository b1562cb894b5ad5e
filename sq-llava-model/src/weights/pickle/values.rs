//! The values that a pickle is made of, and what the known calls make of them.

use std::cell::RefCell;
use std::rc::Rc;

use crate::weights::tensor::StoredType;

/// Dimensions of a tensor, as in PyTorch.
const MAX_DIMENSIONS: usize = 64;

/// A value, or what is wrong with the stream.
pub type Read<T> = Result<T, String>;

/// A tensor as the pickle describes it.
#[derive(Debug)]
pub struct TensorRecord {
    pub storage: Rc<str>,
    pub dtype: StoredType,
    /// First element in the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

#[derive(Debug, Clone)]
pub enum Value {
    Mark,
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<Tuple>),
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    /// `module name`.
    Global(Rc<str>),
    Storage(Rc<str>, StoredType),
    Tensor(Rc<TensorRecord>),
    /// None, flags, floats and everything that no tensor is made of.
    Opaque,
}

/// Its items and how many levels of tuples it holds, itself included.
#[derive(Debug, Default)]
pub struct Tuple {
    pub items: Vec<Value>,
    pub depth: usize,
}

/// What a known call makes.
pub(super) fn call(name: &str, arguments: &[Value]) -> Read<Value> {
    match name {
        "torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor" => {
            let [
                Value::Storage(key, dtype),
                Value::Int(offset),
                shape,
                strides,
                ..,
            ] = arguments
            else {
                return Err("a tensor of an unknown form".into());
            };
            Ok(Value::Tensor(Rc::new(TensorRecord {
                storage: key.clone(),
                dtype: *dtype,
                offset: usize::try_from(*offset).map_err(|e| e.to_string())?,
                shape: sizes(shape)?,
                strides: sizes(strides)?,
            })))
        }
        "torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state" => {
            Ok(arguments.first().cloned().unwrap_or(Value::Opaque))
        }
        "torch._tensor _rebuild_from_type_v2" => match arguments {
            [Value::Global(inner), _, Value::Tuple(inner_arguments), ..]
                if &**inner != "torch._tensor _rebuild_from_type_v2" =>
            {
                call(inner, &inner_arguments.items)
            }
            _ => Err("a tensor of an unknown form".into()),
        },
        "collections OrderedDict" => {
            let mut items = Vec::new();
            if let Some(Value::List(list)) = arguments.first() {
                for pair in list.borrow().iter() {
                    match pair {
                        Value::Tuple(pair) if pair.items.len() == 2 => {
                            items.push((pair.items[0].clone(), pair.items[1].clone()));
                        }
                        Value::List(pair) if pair.borrow().len() == 2 => {
                            let pair = pair.borrow();
                            items.push((pair[0].clone(), pair[1].clone()));
                        }
                        _ => return Err("a dictionary of an unknown form".into()),
                    }
                }
            }
            Ok(Value::Dict(Rc::new(RefCell::new(items))))
        }
        "torch Size" => Ok(arguments.first().cloned().unwrap_or(Value::Opaque)),
        // Another rebuilt tensor (quantised, sparse …) would be lost without a word.
        tensor if tensor.contains("_rebuild_") => {
            Err(format!("tensors of {tensor} are not supported"))
        }
        _ => Ok(Value::Opaque),
    }
}

fn sizes(value: &Value) -> Read<Vec<usize>> {
    let Value::Tuple(items) = value else {
        return Err("a tensor without a shape".into());
    };
    if items.items.len() > MAX_DIMENSIONS {
        return Err(format!("a tensor of {} dimensions", items.items.len()));
    }
    items
        .items
        .iter()
        .map(|item| match item {
            Value::Int(n) => usize::try_from(*n).map_err(|e| e.to_string()),
            _ => Err("a size that is not a number".into()),
        })
        .collect()
}

/// Keys with their values.
pub(super) fn pairs(items: Vec<Value>) -> Read<Vec<(Value, Value)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a dictionary with a key without a value".into());
    }
    let mut items = items.into_iter();
    let mut out = Vec::new();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        out.push((key, value));
    }
    Ok(out)
}

/// A little-endian two's complement number; those over 64 bits are of no tensor.
pub(super) fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Opaque;
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut full = [if negative { 0xff } else { 0 }; 8];
    full[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(full))
}
