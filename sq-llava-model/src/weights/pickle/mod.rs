//! The part of Python's pickle that files of weights use. Nothing is executed: the few calls that
//! rebuild tensors are known by name, every other object stays opaque.

mod values;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use values::{Read, call, long, pairs};
pub(super) use values::{TensorRecord, Tuple, Value};

use super::tensor::StoredType;

/// Values that a stream may make, copies included; those of the largest models make 100,000.
const MAX_VALUES: usize = 1_000_000;

/// Bytes of the name of a class or function.
const MAX_NAME: usize = 1024;

/// Tuples inside tuples; a tensor's description has three levels.
const MAX_TUPLE_DEPTH: usize = 32;

/// A reader of one or more consecutive pickles. Lists and dictionaries that it gave out are empty
/// once it is dropped.
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: BTreeMap<u32, Value>,
    storage_types: BTreeMap<String, StoredType>,
    /// Every list and dictionary, so that those deep in each other are not freed recursively and
    /// those that hold themselves are freed at all.
    containers: Vec<Value>,
    /// Values made so far.
    made: usize,
}

impl<'a> Pickle<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            stack: Vec::new(),
            memo: BTreeMap::new(),
            storage_types: BTreeMap::new(),
            containers: Vec::new(),
            made: 0,
        }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    /// Element types of the storages met so far.
    pub fn storage_types(&self) -> &BTreeMap<String, StoredType> {
        &self.storage_types
    }

    pub fn read(&mut self) -> Read<Value> {
        self.stack.clear();
        self.memo.clear();
        loop {
            let op = self.take(1)?[0];
            if op == b'.' {
                return self.pop();
            }
            self.charge(1)?;
            self.step(op)?;
        }
    }

    /// Counts values before they are made: an instruction makes one, or copies a whole list.
    fn charge(&mut self, values: usize) -> Read<()> {
        self.made = self.made.saturating_add(values);
        if self.made > MAX_VALUES {
            return Err("too many values".into());
        }
        Ok(())
    }

    fn step(&mut self, op: u8) -> Read<()> {
        match op {
            // Protocol, frame.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.stack.push(Value::Mark),
            b'N' | 0x88 | 0x89 => self.stack.push(Value::Opaque),
            b'G' => self.opaque(8)?,
            b'K' | b'M' | b'J' | 0x8a => {
                let number = self.integer(op)?;
                self.stack.push(number);
            }
            // Text of 1, 4 and 8 bytes of length, and the byte strings of Python 2.
            0x8c | b'U' => self.text(1)?,
            b'X' | b'T' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' => self.bytes(1)?,
            b'B' => self.bytes(4)?,
            0x8e => self.bytes(8)?,
            b'0' => drop(self.pop()?),
            b'2' => {
                let top = self.top()?.clone();
                self.stack.push(top);
            }
            b'q' => self.remember(Some(1))?,
            b'r' => self.remember(Some(4))?,
            0x94 => self.remember(None)?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name);
            }
            0x93 => self.global_of_texts()?,
            b'R' | 0x81 => self.call(op)?,
            // State for the object below; no tensor has any that matters.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(&id)?;
                self.stack.push(storage);
            }
            _ => self.gather(op)?,
        }
        Ok(())
    }

    /// The instructions that make or fill tuples, lists and dictionaries.
    fn gather(&mut self, op: u8) -> Read<()> {
        match op {
            b')' => self.stack.push(Value::Tuple(Rc::default())),
            b']' | 0x8f => self.list(Vec::new()),
            b'}' => self.dict(Vec::new()),
            0x85..=0x87 => {
                let from = self.index(usize::from(op - 0x84))?;
                let items = self.stack.split_off(from);
                self.tuple(items)?;
            }
            b't' => {
                let items = self.down_to_mark()?;
                self.tuple(items)?;
            }
            b'l' => {
                let items = self.down_to_mark()?;
                self.list(items);
            }
            b'd' => {
                let items = pairs(self.down_to_mark()?)?;
                self.dict(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.down_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let from = self.index(2)?;
                let items = self.stack.split_off(from);
                self.set(items)?;
            }
            b'u' => {
                let items = self.down_to_mark()?;
                self.set(items)?;
            }
            other => return Err(format!("unknown instruction 0x{other:02x}")),
        }
        Ok(())
    }

    fn integer(&mut self, op: u8) -> Read<Value> {
        Ok(match op {
            b'K' => Value::Int(self.take(1)?[0].into()),
            b'M' => Value::Int(self.unsigned(2)? as i64),
            b'J' => Value::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            _ => {
                let length = self.take(1)?[0].into();
                long(self.take(length)?)
            }
        })
    }

    /// Bytes that nothing here reads.
    fn opaque(&mut self, length: usize) -> Read<()> {
        self.take(length)?;
        self.stack.push(Value::Opaque);
        Ok(())
    }

    fn bytes(&mut self, width: usize) -> Read<()> {
        let length = self.unsigned(width)?;
        self.opaque(length)
    }

    /// Keeps the top of the stack, in the slot that stands in so many bytes or in the next.
    fn remember(&mut self, width: Option<usize>) -> Read<()> {
        let slot = match width {
            Some(width) => self.unsigned(width)?,
            None => self.memo.len(),
        };
        let top = self.top()?.clone();
        self.memo.insert(slot as u32, top);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Read<()> {
        let slot = self.unsigned(width)? as u32;
        let value = self.memo.get(&slot).cloned();
        self.stack.push(value.ok_or("an unknown reference")?);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) {
        self.stack
            .push(Value::Global(format!("{module} {name}").into()));
    }

    fn global_of_texts(&mut self) -> Read<()> {
        let (Value::Text(name), Value::Text(module)) = (self.pop()?, self.pop()?) else {
            return Err("a global without a name".into());
        };
        if module.len() + name.len() > MAX_NAME {
            return Err("a global with too long a name".into());
        }
        self.global(&module, &name);
        Ok(())
    }

    /// What a function or class gives for its arguments: a value where it is known.
    fn call(&mut self, op: u8) -> Read<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let value = match (op, &callee, &arguments) {
            (b'R', Value::Global(name), Value::Tuple(arguments)) => {
                if let Some(Value::List(list)) = arguments.items.first() {
                    self.charge(list.borrow().len())?;
                }
                call(name, &arguments.items)?
            }
            _ => Value::Opaque,
        };
        if matches!(value, Value::Dict(_)) {
            self.containers.push(value.clone());
        }
        self.stack.push(value);
        Ok(())
    }

    /// `('storage', torch.FloatStorage, '0', 'cpu', 1024)`.
    fn storage(&mut self, id: &Value) -> Read<Value> {
        let Value::Tuple(parts) = id else {
            return Err("a storage without a description".into());
        };
        let (Some(Value::Global(kind)), Some(Value::Text(key))) =
            (parts.items.get(1), parts.items.get(2))
        else {
            return Err("a storage without kind and key".into());
        };
        let dtype = match kind.rsplit(' ').next().unwrap_or_default() {
            "DoubleStorage" => StoredType::F64,
            "FloatStorage" => StoredType::F32,
            "HalfStorage" => StoredType::F16,
            "BFloat16Storage" => StoredType::BF16,
            "LongStorage" | "ComplexFloatStorage" => StoredType::Other(8),
            "IntStorage" => StoredType::Other(4),
            "ShortStorage" => StoredType::Other(2),
            "CharStorage" | "ByteStorage" | "BoolStorage" | "UntypedStorage" => {
                StoredType::Other(1)
            }
            other => return Err(format!("storage of unknown kind {other}")),
        };
        // One storage is named by many tensors.
        if self.storage_types.get(&**key) != Some(&dtype) {
            self.storage_types.insert(key.to_string(), dtype);
        }
        Ok(Value::Storage(key.clone(), dtype))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Read<()> {
        let inner = items.iter().map(|item| match item {
            Value::Tuple(tuple) => tuple.depth,
            _ => 0,
        });
        let depth = 1 + inner.max().unwrap_or(0);
        if depth > MAX_TUPLE_DEPTH {
            return Err("tuples too deep in each other".into());
        }
        self.stack
            .push(Value::Tuple(Rc::new(Tuple { items, depth })));
        Ok(())
    }

    fn list(&mut self, items: Vec<Value>) {
        let list = Value::List(Rc::new(RefCell::new(items)));
        self.containers.push(list.clone());
        self.stack.push(list);
    }

    fn dict(&mut self, items: Vec<(Value, Value)>) {
        let dict = Value::Dict(Rc::new(RefCell::new(items)));
        self.containers.push(dict.clone());
        self.stack.push(dict);
    }

    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("it ends too early")?;
        self.at += length;
        Ok(taken)
    }

    fn unsigned(&mut self, width: usize) -> Read<usize> {
        let bytes = self.take(width)?;
        let value = bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(value).map_err(|e| e.to_string())
    }

    fn text(&mut self, width: usize) -> Read<()> {
        let length = self.unsigned(width)?;
        let text = String::from_utf8_lossy(self.take(length)?);
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn line(&mut self) -> Read<&'a str> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n');
        let line = self.take(length.ok_or("it ends too early")? + 1)?;
        std::str::from_utf8(&line[..line.len() - 1]).map_err(|e| e.to_string())
    }

    fn pop(&mut self) -> Read<Value> {
        Ok(self.stack.pop().ok_or("an empty stack")?)
    }

    fn top(&self) -> Read<&Value> {
        Ok(self.stack.last().ok_or("an empty stack")?)
    }

    /// Index of the value `depth` below the top.
    fn index(&self, depth: usize) -> Read<usize> {
        Ok(self
            .stack
            .len()
            .checked_sub(depth)
            .ok_or("an empty stack")?)
    }

    fn down_to_mark(&mut self) -> Read<Vec<Value>> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark));
        let items = self.stack.split_off(mark.ok_or("no mark")? + 1);
        self.stack.pop();
        Ok(items)
    }

    fn append(&mut self, items: Vec<Value>) -> Read<()> {
        if let Value::List(list) = self.top()? {
            list.borrow_mut().extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Read<()> {
        if let Value::Dict(dict) = self.top()? {
            dict.borrow_mut().extend(pairs(items)?);
        }
        Ok(())
    }
}

impl Drop for Pickle<'_> {
    fn drop(&mut self) {
        for container in &self.containers {
            // What is taken out holds containers that the list here keeps alive.
            match container {
                Value::List(list) => drop(list.take()),
                Value::Dict(dict) => drop(dict.take()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_and_cycles_end_well() {
        // Lists in lists, from the outside in and from the inside out.
        let mut outside = vec![b']'; 400_000];
        outside.extend(vec![b'a'; 399_999]);
        outside.push(b'.');
        assert!(matches!(Pickle::new(&outside).read(), Ok(Value::List(_))));
        // A list that holds itself.
        assert!(Pickle::new(b"]q\0h\0a.").read().is_ok());
        let mut tuples = vec![b')'];
        tuples.extend(vec![0x85; 100_000]);
        tuples.push(b'.');
        assert!(
            Pickle::new(&tuples)
                .read()
                .unwrap_err()
                .contains("too deep")
        );
    }

    #[test]
    fn fault_25_nothing_is_multiplied() {
        let fails = |bytes: &[u8], why: &str| {
            let error = Pickle::new(bytes).read().err();
            assert!(error.as_ref().is_some_and(|e| e.contains(why)), "{error:?}");
        };
        // A list of 100,000 pairs, out of which an OrderedDict is made again and again.
        let mut lists = b"]q\0(".to_vec();
        lists.extend(b"K\x01K\x02\x86".repeat(100_000));
        lists.extend(b"e0");
        lists.extend(b"ccollections\nOrderedDict\nh\0\x85R".repeat(10_000));
        lists.push(b'.');
        fails(&lists, "too many values");
        // A shape of 100,000 sides, for many tensors.
        let mut sides = b"(".to_vec();
        sides.extend(b"K\x01".repeat(100_000));
        sides.extend(b"tq\0(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQq\x01");
        sides.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(h\x01K\0h\0h\0tR");
        sides.push(b'.');
        fails(&sides, "100000 dimensions");
        // The name of a class out of two long texts.
        let mut name = b"X\xa0\x86\x01\0".to_vec();
        name.extend(vec![b'a'; 100_000]);
        name.extend(b"q\0");
        name.extend(b"h\0h\0\x93".repeat(1000));
        name.push(b'.');
        fails(&name, "too long a name");
    }

    #[test]
    fn calls_are_not_made() {
        // os.system("true") gives nothing at all.
        let read = Pickle::new(b"cos\nsystem\nX\x04\0\0\0true\x85R.").read();
        assert!(matches!(read, Ok(Value::Opaque)));
    }
}
