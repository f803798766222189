//! Quantised matrices, and products with many rows at once.
//! Invariant: a row's product does not depend on the rows beside it, so that a batch gives what each sequence gives alone.
//! (For Q8_0 to the last bit everywhere, see [`crate::q8`]; for the others on x86-64: elsewhere candle picks kernels by the
//! number of rows, and last digits may differ.)

use std::sync::Arc;

use candle_core::{
    Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor, ggml_file::qtensor_from_ggml},
};

use crate::{error::LoadError, q8};

/// Matrices in F32, F16 or BF16 are quantised to this on load: unquantised products collapse at two rows and more.
const LOADED_AS: GgmlDType = GgmlDType::Q8_0;
/// Q4K products switch to AMX, which rounds otherwise, at 32 rows.
const ROWS_MAX_Q4K: usize = 31;

/// Keeps `tensor` as it is if it is quantised, and quantises it otherwise.
pub(crate) fn quantised(name: &str, tensor: QTensor) -> Result<QTensor, LoadError> {
    match tensor.dtype() {
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
            let (_, columns) = tensor.shape().dims2()?;
            if columns % LOADED_AS.block_size() != 0 {
                return Err(LoadError::bad_tensor(
                    name,
                    format!("rows of {columns} values do not fill blocks of {}", LOADED_AS.block_size()),
                ));
            }
            Ok(QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, LOADED_AS)?)
        }
        _ => Ok(tensor),
    }
}

/// A quantised matrix of [rows, columns]; a product takes vectors of `columns` numbers and gives vectors of `rows`.
struct Matrix {
    kind: Kind,
    rows: usize,
    columns: usize,
}

enum Kind {
    /// Our own kernels.
    Q8(q8::Matrix),
    /// Candle's.
    Other(QMatMul, GgmlDType),
}

impl Matrix {
    fn new(tensor: &Arc<QTensor>) -> Result<Self, LoadError> {
        let (rows, columns) = tensor.shape().dims2()?;
        let kind = match tensor.dtype() {
            GgmlDType::Q8_0 => Kind::Q8(q8::Matrix::new(&tensor.data()?, rows, columns)),
            other => Kind::Other(QMatMul::from_arc(tensor.clone())?, other),
        };
        Ok(Self { kind, rows, columns })
    }

    fn multiply(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        let (product, dtype) = match &self.kind {
            Kind::Q8(matrix) => return Ok(matrix.multiply(x)),
            Kind::Other(product, dtype) => (product, *dtype),
        };
        let n = x.len() / self.columns;
        let multiply = |x: &[f32]| -> candle_core::Result<Vec<f32>> {
            let x = Tensor::from_slice(x, (x.len() / self.columns, self.columns), &Device::Cpu)?;
            product.forward(&x)?.flatten_all()?.to_vec1()
        };
        // Candle has another kernel for one row of Q6K than for several: one row is computed as two.
        if dtype == GgmlDType::Q6K && n == 1 {
            let mut twice = multiply(&[x, x].concat())?;
            twice.truncate(self.rows);
            return Ok(twice);
        }
        if dtype == GgmlDType::Q4K && n > ROWS_MAX_Q4K {
            let parts = x.chunks(ROWS_MAX_Q4K * self.columns).map(multiply).collect::<candle_core::Result<Vec<_>>>()?;
            return Ok(parts.concat());
        }
        multiply(x)
    }
}

/// Matrices that are applied to the same vectors; as one product where they are quantised alike.
pub(crate) struct Stack {
    parts: Vec<Matrix>,
    rows: usize,
}

impl Stack {
    /// Stacks `tensors`, which must have equally many columns.
    pub(crate) fn new(tensors: Vec<QTensor>) -> Result<Self, LoadError> {
        let alike = tensors.windows(2).all(|w| w[0].dtype() == w[1].dtype());
        let parts = if alike && tensors.len() > 1 {
            let (_, columns) = tensors[0].shape().dims2()?;
            let (mut raw, mut rows) = (Vec::new(), 0);
            for tensor in &tensors {
                // Blocks never cross rows, so the rows of one matrix can follow those of another.
                raw.extend_from_slice(&tensor.data()?);
                rows += tensor.shape().dims2()?.0;
            }
            vec![Matrix::new(&Arc::new(qtensor_from_ggml(
                tensors[0].dtype(),
                &raw,
                vec![rows, columns],
                &Device::Cpu,
            )?))?]
        } else {
            tensors.into_iter().map(|t| Matrix::new(&Arc::new(t))).collect::<Result<_, _>>()?
        };
        let rows = parts.iter().map(|p| p.rows).sum();
        Ok(Self { parts, rows })
    }

    /// Length of a resulting vector.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// `x` holds vectors one after another; each result is all parts' results one after another.
    pub(crate) fn multiply(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        if let [only] = &self.parts[..] {
            return only.multiply(x);
        }
        let mut all = vec![0.0; x.len() / self.parts[0].columns * self.rows];
        let mut at = 0;
        for part in &self.parts {
            let y = part.multiply(x)?;
            for (to, from) in all.chunks_exact_mut(self.rows).zip(y.chunks_exact(part.rows)) {
                to[at..at + part.rows].copy_from_slice(from);
            }
            at += part.rows;
        }
        Ok(all)
    }
}

/// The vectors of tokens, and the matrix that turns a vector into logits; often one and the same.
pub(crate) struct Vocabulary {
    embedding: Matrix,
    /// For what our own kernels do not hold.
    tensor: Arc<QTensor>,
    output: Option<Matrix>,
}

impl Vocabulary {
    pub(crate) fn new(embedding: QTensor, output: Option<QTensor>) -> Result<Self, LoadError> {
        let tensor = Arc::new(embedding);
        let output = output.map(|o| Matrix::new(&Arc::new(o))).transpose()?;
        Ok(Self { embedding: Matrix::new(&tensor)?, tensor, output })
    }

    /// The vectors of `ids`, one after another.
    pub(crate) fn embed(&self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        match &self.embedding.kind {
            Kind::Q8(matrix) => Ok(ids.iter().flat_map(|id| matrix.row(*id as usize)).collect()),
            Kind::Other(..) => self.tensor.embedding(&Tensor::new(ids, &Device::Cpu)?)?.flatten_all()?.to_vec1(),
        }
    }

    /// The logits after each vector in `x`, one after another.
    pub(crate) fn logits(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        self.output.as_ref().unwrap_or(&self.embedding).multiply(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, salt: u64) -> Vec<f32> {
        let mut reader = blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; n];
        reader.fill(&mut bytes);
        bytes.iter().map(|b| (f32::from(*b) - 127.5) / 64.0).collect()
    }

    /// For every way of storing weights: the product of 40 rows is the products of each, of tens, and of stacked parts.
    #[test]
    fn rows_do_not_see_each_other() {
        use GgmlDType::{F16, Q4_0, Q4K, Q5K, Q6K, Q8_0};
        for dtype in [Q8_0, Q4_0, Q4K, Q5K, Q6K, F16] {
            let make = |rows: usize, salt| {
                let tensor = Tensor::from_vec(noise(rows * 256, salt), (rows, 256), &Device::Cpu).expect("shape");
                quantised("t", QTensor::quantize(&tensor, dtype).expect("quantise")).expect("quantised")
            };
            let stack = Stack::new(vec![make(64, 1), make(32, 2)]).expect("stack");
            let x = noise(40 * 256, 3);
            let all = stack.multiply(&x).expect("all");
            for size in [1, 2, 10, 20] {
                let parts: Vec<f32> =
                    x.chunks(size * 256).flat_map(|part| stack.multiply(part).expect("part")).collect();
                assert!(parts == all, "{dtype:?} in parts of {size}");
            }
            let (first, second) =
                (Stack::new(vec![make(64, 1)]).expect("one"), Stack::new(vec![make(32, 2)]).expect("two"));
            let (a, b) = (first.multiply(&x).expect("a"), second.multiply(&x).expect("b"));
            let joined: Vec<f32> = a.chunks(64).zip(b.chunks(32)).flat_map(|(a, b)| [a, b].concat()).collect();
            assert!(joined == all, "{dtype:?} stacked");
        }
    }
}
