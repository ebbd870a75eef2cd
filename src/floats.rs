//! Numbers in files, as f32.

use safetensors::Dtype;

/// Decodes little-endian f16, bf16, f32 or f64; `None` for any other type.
pub fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let (words, _) = bytes.as_chunks::<N>();
        words.iter().map(|&word| decode(word)).collect()
    }
    Some(match dtype {
        Dtype::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}
