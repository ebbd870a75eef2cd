//! NumPy's `.npy` (format 1 to 3): the header that stands before an array's values.

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Type, shape and bytes of the array in a file: little-endian floats in C order.
///
/// # Errors
/// Not such a file, another type or order, or a file cut short.
pub(super) fn parse(bytes: &[u8]) -> Result<(Dtype, Vec<usize>, &[u8])> {
    let (header, values) = split(bytes).context("not an npy file, or one cut short")?;
    let descr = field(header, "descr")?;
    let dtype = match descr.trim_matches(['\'', '"']) {
        "<f2" => Dtype::F16,
        "<f4" => Dtype::F32,
        "<f8" => Dtype::F64,
        _ => bail!("values of type {descr:?}: expected little-endian floats ('<f2', '<f4', '<f8')"),
    };
    ensure!(
        field(header, "fortran_order")? == "False",
        "the array is in Fortran order: save it with numpy.ascontiguousarray"
    );
    let shape = field(header, "shape")?.trim_matches(['(', ')']);
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|side| !side.is_empty())
        .map(|side| side.parse().context("a shape that is no list of numbers"))
        .collect::<Result<Vec<usize>>>()?;
    let size = shape
        .iter()
        .try_fold(dtype.bitsize() / 8, |size, &side| size.checked_mul(side));
    ensure!(
        size == Some(values.len()),
        "{} bytes of values, but the header says {shape:?}",
        values.len()
    );
    Ok((dtype, shape, values))
}

/// The header's text, a Python dictionary, and what is behind it.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let [major, _minor, rest @ ..] = bytes.strip_prefix(MAGIC)? else {
        return None;
    };
    let (length, rest) = if *major == 1 {
        let (length, rest) = rest.split_first_chunk()?;
        (u16::from_le_bytes(*length) as usize, rest)
    } else {
        let (length, rest) = rest.split_first_chunk()?;
        (u32::from_le_bytes(*length) as usize, rest)
    };
    let (header, values) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, values))
}

/// The text of a value in the header: up to the comma or brace behind it that is in no bracket.
fn field<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let found = header
        .split_once(&format!("'{key}':"))
        .map(|(_, rest)| rest.trim_start());
    let rest = found.with_context(|| format!("the npy header has no {key:?}"))?;
    let end = match rest.strip_prefix('(') {
        Some(inside) => inside.find(')').map(|at| at + 2),
        None => rest.find([',', '}']),
    };
    Ok(rest[..end.unwrap_or(rest.len())].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as NumPy writes it.
    fn file(header: &str, values: &[u8]) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes()].concat();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(values);
        bytes
    }

    #[test]
    fn a_file_of_numpy() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }     \n";
        let bytes = file(header, &[0, 0, 128, 63, 0, 0, 0, 64]);
        let (dtype, shape, values) = parse(&bytes).unwrap();
        assert_eq!((dtype, shape), (Dtype::F32, vec![2, 1]));
        assert_eq!(crate::floats::decode(dtype, values).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn other_files_are_refused() {
        let refuse = |header: &str, values: &[u8], wanted: &str| {
            let error = parse(&file(header, values)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        };
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}";
        parse(&file(good, &[0; 4])).unwrap();
        refuse(good, &[0; 5], "5 bytes of values");
        refuse(&good.replace("<f4", ">f4"), &[0; 4], "'>f4'");
        refuse(&good.replace("<f4", "<i4"), &[0; 4], "'<i4'");
        refuse(&good.replace("False", "True"), &[0; 4], "Fortran");
        refuse(&good.replace("shape", "form"), &[0; 4], "no \"shape\"");
        let huge = good.replace("(1,)", "(99999999999, 99999999999)");
        refuse(&huge, &[0; 4], "4 bytes of values");
        for cut in [0, 5, 7, 9, 30] {
            assert!(parse(&file(good, &[0; 4])[..cut]).is_err());
        }
    }
}
