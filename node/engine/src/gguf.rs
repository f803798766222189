//! Reads the header of a GGUF file (versions 2 and 3, little-endian).
//! Invariant: no length from the file is believed before it was compared with the bytes that are left, so a hostile file
//! costs at most a small multiple of its own size, and never a panic.
//! Source: the GGUF specification, `docs/gguf.md` of ggml.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
};

use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml},
};

use crate::error::LoadError;

const MAGIC: [u8; 4] = *b"GGUF";
/// Most metadata keys, and most tensors; real files have some dozens and some thousands.
const ENTRIES_MAX: u64 = 65_536;
/// Longest string in bytes; the longest in real files are chat templates.
const STRING_MAX: u64 = 4 << 20;
/// Longest array in elements; the longest in real files are merges.
const ARRAY_MAX: u64 = 4 << 20;
/// Dimensions of a tensor, as in ggml.
const DIMENSIONS_MAX: u32 = 4;
/// Where tensors begin if `general.alignment` is absent, in bytes.
const ALIGNMENT_DEFAULT: u64 = 32;

/// A metadata value. Numbers are widened; arrays hold one type each.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    /// Outermost dimension first: [rows, columns].
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: GgmlDType,
    /// From the file's start, in bytes.
    start: u64,
    /// In bytes.
    length: usize,
}

/// The header of a GGUF and the source its tensors are read from.
pub(crate) struct Gguf<R> {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    source: R,
}

fn malformed(what: impl Into<String>) -> LoadError {
    LoadError::Malformed(what.into())
}

/// The type that ggml gives `number`, of those that candle computes with.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// Counts down the bytes that are left while the header is read.
struct Header<'a, R> {
    source: &'a mut R,
    at: u64,
    size: u64,
}

impl<R: Read> Header<'_, R> {
    fn left(&self) -> u64 {
        self.size.saturating_sub(self.at)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        if self.left() < N as u64 {
            return Err(malformed(format!("it ends at byte {} within the header", self.size)));
        }
        let mut buffer = [0; N];
        self.source.read_exact(&mut buffer)?;
        self.at += N as u64;
        Ok(buffer)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn string(&mut self) -> Result<String, LoadError> {
        let length = self.u64()?;
        if length > STRING_MAX || length > self.left() {
            return Err(malformed(format!(
                "a string of {length} bytes, but {} are left (most: {STRING_MAX})",
                self.left()
            )));
        }
        let mut buffer = vec![0; length as usize];
        self.source.read_exact(&mut buffer)?;
        self.at += length;
        String::from_utf8(buffer).map_err(|_| malformed("a string is not UTF-8"))
    }

    fn bool(&mut self) -> Result<bool, LoadError> {
        match self.bytes::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(malformed(format!("a bool is {other}"))),
        }
    }

    fn integer(&mut self, kind: u32) -> Result<i128, LoadError> {
        Ok(match kind {
            0 => self.bytes::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.bytes()?).into(),
            2 => u16::from_le_bytes(self.bytes()?).into(),
            3 => i16::from_le_bytes(self.bytes()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.bytes()?).into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.bytes()?).into(),
            other => return Err(malformed(format!("unknown value type {other}"))),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, LoadError> {
        if kind == 6 { Ok(f32::from_le_bytes(self.bytes()?).into()) } else { Ok(f64::from_le_bytes(self.bytes()?)) }
    }

    fn value(&mut self) -> Result<Value, LoadError> {
        match self.u32()? {
            kind @ (6 | 12) => self.float(kind).map(Value::Float),
            7 => self.bool().map(Value::Bool),
            8 => self.string().map(Value::Text),
            9 => self.array(),
            kind => self.integer(kind).map(Value::Integer),
        }
    }

    fn array(&mut self) -> Result<Value, LoadError> {
        let kind = self.u32()?;
        let length = self.u64()?;
        let smallest: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(malformed("an array of arrays")),
            other => return Err(malformed(format!("unknown value type {other}"))),
        };
        if length > ARRAY_MAX || length.saturating_mul(smallest) > self.left() {
            return Err(malformed(format!(
                "an array of {length} elements, but {} bytes are left (most: {ARRAY_MAX})",
                self.left()
            )));
        }
        let range = 0..length;
        Ok(match kind {
            6 | 12 => Value::Floats(range.map(|_| self.float(kind)).collect::<Result<_, _>>()?),
            7 => Value::Bools(range.map(|_| self.bool()).collect::<Result<_, _>>()?),
            8 => Value::Texts(range.map(|_| self.string()).collect::<Result<_, _>>()?),
            _ => {
                let wide = |n: i128| i64::try_from(n).map_err(|_| malformed("an array holds a number above 2^63"));
                Value::Integers(range.map(|_| self.integer(kind).and_then(wide)).collect::<Result<_, _>>()?)
            }
        })
    }

    /// One tensor's name and place; `start` is still relative to the tensor data.
    fn tensor(&mut self) -> Result<(String, TensorInfo), LoadError> {
        let name = self.string()?;
        let rank = self.u32()?;
        if rank == 0 || rank > DIMENSIONS_MAX {
            return Err(LoadError::bad_tensor(&name, format!("it has {rank} dimensions (1 to {DIMENSIONS_MAX})")));
        }
        let mut shape = Vec::new();
        let mut elements = 1usize;
        for _ in 0..rank {
            let dimension = usize::try_from(self.u64()?).ok().filter(|d| *d > 0);
            let grown = dimension.and_then(|d| elements.checked_mul(d));
            let (Some(dimension), Some(grown)) = (dimension, grown) else {
                return Err(LoadError::bad_tensor(&name, "its dimensions are zero or overflow"));
            };
            elements = grown;
            shape.push(dimension);
        }
        shape.reverse();
        let number = self.u32()?;
        let start = self.u64()?;
        let dtype =
            dtype(number).ok_or_else(|| LoadError::bad_tensor(&name, format!("its type {number} is not supported")))?;
        let columns = shape[shape.len() - 1];
        if columns % dtype.block_size() != 0 {
            return Err(LoadError::bad_tensor(
                &name,
                format!("rows of {columns} values do not fill blocks of {}", dtype.block_size()),
            ));
        }
        let length = (elements / dtype.block_size())
            .checked_mul(dtype.type_size())
            .ok_or_else(|| LoadError::bad_tensor(&name, "its dimensions overflow"))?;
        Ok((name, TensorInfo { shape, dtype, start, length }))
    }
}

impl<R: Read + Seek> Gguf<R> {
    /// Reads the header and checks that every tensor lies within the file.
    pub(crate) fn read(mut source: R) -> Result<Self, LoadError> {
        let size = source.seek(SeekFrom::End(0))?;
        source.seek(SeekFrom::Start(0))?;
        let mut header = Header { source: &mut source, at: 0, size };
        if header.bytes::<4>()? != MAGIC {
            return Err(malformed("it does not begin with `GGUF`"));
        }
        let version = header.u32()?;
        if !(2..=3).contains(&version) {
            return Err(malformed(format!("version {version}; 2 and 3 are supported")));
        }
        let (tensor_count, key_count) = (header.u64()?, header.u64()?);
        if tensor_count > ENTRIES_MAX || key_count > ENTRIES_MAX {
            return Err(malformed(format!("{tensor_count} tensors and {key_count} keys (most: {ENTRIES_MAX} each)")));
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..key_count {
            let key = header.string()?;
            let value = header.value()?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(LoadError::bad_key(&key, "it appears twice"));
            }
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, info) = header.tensor()?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(LoadError::bad_tensor(&name, "it appears twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT_DEFAULT,
            Some(Value::Integer(n)) if (1..=1 << 20).contains(n) => *n as u64,
            Some(other) => return Err(LoadError::bad_key("general.alignment", format!("it is {other:?}"))),
        };
        let data = header.at.div_ceil(alignment) * alignment;
        for (name, info) in &mut tensors {
            let start = data
                .checked_add(info.start)
                .filter(|s| s.checked_add(info.length as u64).is_some_and(|end| end <= size));
            info.start = start.ok_or_else(|| {
                LoadError::bad_tensor(name, format!("its {} bytes lie beyond the file's end", info.length))
            })?;
        }
        Ok(Self { metadata, tensors, source })
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(LoadError::bad_key(key, "it is not a string")),
        }
    }

    /// A count from 0 to `most`.
    pub(crate) fn count(&self, key: &str, most: usize) -> Result<Option<usize>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Integer(n)) => match usize::try_from(*n) {
                Ok(n) if n <= most => Ok(Some(n)),
                Ok(_) | Err(_) => Err(LoadError::bad_key(key, format!("{n} is not within 0 and {most}"))),
            },
            Some(_) => Err(LoadError::bad_key(key, "it is not a whole number")),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(f)) if f.is_finite() => Ok(Some(*f as f32)),
            Some(_) => Err(LoadError::bad_key(key, "it is not a finite float")),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(LoadError::bad_key(key, "it is not a bool")),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<&[String], LoadError> {
        match self.value(key) {
            None => Err(LoadError::MissingKey(key.into())),
            Some(Value::Texts(texts)) => Ok(texts),
            Some(_) => Err(LoadError::bad_key(key, "it is not an array of strings")),
        }
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<&[i64]>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Integers(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(LoadError::bad_key(key, "it is not an array of whole numbers")),
        }
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads the tensor `name`, which must have exactly `shape` (outermost dimension first).
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<QTensor, LoadError> {
        let info = self.tensors.get(name).ok_or_else(|| LoadError::bad_tensor(name, "it is absent"))?;
        if info.shape != shape {
            return Err(LoadError::bad_tensor(
                name,
                format!("its shape is {:?}, the metadata ask for {shape:?}", info.shape),
            ));
        }
        // Within the file, as was checked on reading the header.
        let mut raw = vec![0; info.length];
        self.source.seek(SeekFrom::Start(info.start))?;
        self.source.read_exact(&mut raw)?;
        qtensor_from_ggml(info.dtype, &raw, shape.to_vec(), &Device::Cpu)
            .map_err(|e| LoadError::bad_tensor(name, e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// A header with the given counts, followed by `rest`.
    fn file(version: u32, tensors: u64, keys: u64, rest: &[Vec<u8>]) -> Vec<u8> {
        [
            b"GGUF".to_vec(),
            version.to_le_bytes().into(),
            tensors.to_le_bytes().into(),
            keys.to_le_bytes().into(),
            rest.concat(),
        ]
        .concat()
    }

    fn array(kind: u32, length: u64) -> Vec<u8> {
        [9u32.to_le_bytes().to_vec(), kind.to_le_bytes().to_vec(), length.to_le_bytes().to_vec()].concat()
    }

    fn tensor(name: &str, dims: &[u64], dtype: u32, offset: u64) -> Vec<u8> {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        [
            string(name),
            (dims.len() as u32).to_le_bytes().into(),
            dims_bytes,
            dtype.to_le_bytes().into(),
            offset.to_le_bytes().into(),
        ]
        .concat()
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let integer = |n: u32| [4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat();
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("empty", vec![], "ends at byte 0"),
            ("wrong magic", b"GGML\x03\0\0\0".to_vec(), "begin with `GGUF`"),
            ("future version", file(4, 0, 0, &[]), "version 4"),
            ("counts beyond reason", file(3, u64::MAX, u64::MAX, &[]), "18446744073709551615 tensors"),
            ("cut within a key", file(3, 0, 1, &[]), "ends at byte 24"),
            (
                "key longer than the file",
                file(3, 0, 1, &[u64::MAX.to_le_bytes().into()]),
                "a string of 18446744073709551615 bytes",
            ),
            (
                "array longer than the file",
                file(3, 0, 1, &[string("a"), array(4, 1 << 20)]),
                "an array of 1048576 elements",
            ),
            ("array of arrays", file(3, 0, 1, &[string("a"), array(9, 1)]), "an array of arrays"),
            ("unknown type", file(3, 0, 1, &[string("a"), 99u32.to_le_bytes().into()]), "unknown value type 99"),
            (
                "key twice",
                file(3, 0, 2, &[string("a"), integer(1), string("a"), integer(2)]),
                "`a` is wrong: it appears twice",
            ),
            ("alignment 0", file(3, 0, 1, &[string("general.alignment"), integer(0)]), "general.alignment"),
            ("no dimensions", file(3, 1, 0, &[tensor("t", &[], 0, 0)]), "0 dimensions"),
            ("too many dimensions", file(3, 1, 0, &[tensor("t", &[1; 9], 0, 0)]), "9 dimensions"),
            ("dimensions overflow", file(3, 1, 0, &[tensor("t", &[1 << 40, 1 << 40], 0, 0)]), "overflow"),
            ("bytes overflow", file(3, 1, 0, &[tensor("t", &[1 << 62], 0, 0)]), "overflow"),
            ("unknown tensor type", file(3, 1, 0, &[tensor("t", &[32], 77, 0)]), "its type 77"),
            ("half a block", file(3, 1, 0, &[tensor("t", &[33], 8, 0)]), "rows of 33 values"),
            ("beyond the end", file(3, 1, 0, &[tensor("t", &[32], 0, 0)]), "beyond the file's end"),
            ("offset overflows", file(3, 1, 0, &[tensor("t", &[32], 0, u64::MAX)]), "beyond the file's end"),
        ];
        for (what, bytes, want) in cases {
            let message = match Gguf::read(Cursor::new(bytes)) {
                Ok(_) => panic!("{what}: accepted"),
                Err(e) => e.to_string(),
            };
            assert!(message.contains(want), "{what}: {message}");
        }
    }
}
