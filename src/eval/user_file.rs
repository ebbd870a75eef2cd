//! `test_users.safetensors`: what an evaluation keeps of every test user, a tensor [users] for each column of [`PerUser`].

use super::per_user::{Bucket, PerUser};
use crate::run::atomic_write;
use anyhow::{Context, Result, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::Path;

/// Stands for a rank beyond the list.
const ABSENT: u32 = u32::MAX;
/// The entry of the metadata that holds the length of the lists.
const BEAM: &str = "beam";

impl PerUser {
    /// Writes the file. A rank of 2^32 - 1 is none, as is a distance that is NaN.
    pub fn save(&self, path: &Path) -> Result<()> {
        let rank: Vec<u32> = self.rank.iter().map(|r| r.unwrap_or(ABSENT)).collect();
        let distance = self.distance.iter().map(|d| d.unwrap_or(f64::NAN));
        let distance: Vec<f64> = distance.collect();
        let bucket: Vec<u8> = self.bucket.iter().map(|&b| b as u8).collect();
        let columns: [(&str, Dtype, &[u8]); 8] = [
            ("target", Dtype::U32, bytemuck::cast_slice(&self.target)),
            ("rank", Dtype::U32, bytemuck::cast_slice(&rank)),
            ("sharing", Dtype::U32, bytemuck::cast_slice(&self.sharing)),
            ("worth", Dtype::F32, bytemuck::cast_slice(&self.worth)),
            ("bucket", Dtype::U8, &bucket),
            ("prefix", Dtype::U32, bytemuck::cast_slice(&self.prefix)),
            ("distance", Dtype::F64, bytemuck::cast_slice(&distance)),
            ("invalid", Dtype::U32, bytemuck::cast_slice(&self.invalid)),
        ];
        let view =
            |(name, dtype, bytes)| Ok((name, TensorView::new(dtype, vec![self.users()], bytes)?));
        let views = columns.into_iter().map(view).collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([(BEAM.to_string(), self.beam.to_string())]);
        atomic_write(path, &safetensors::serialize(views, Some(metadata))?)
    }

    /// Reads the file. Errors: it is not one.
    pub fn load(path: &Path) -> Result<PerUser> {
        let shown = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        parse(&bytes).with_context(|| format!("{shown} does not hold test users"))
    }
}

fn parse(bytes: &[u8]) -> Result<PerUser> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let beam = header.metadata().as_ref().and_then(|m| m.get(BEAM));
    let beam = beam.context("its metadata lack the beam")?.parse()?;
    let tensors = SafeTensors::deserialize(bytes)?;
    let column = |name: &str, dtype: Dtype| -> Result<&[u8]> {
        let tensor = tensors.tensor(name)?;
        ensure!(tensor.dtype() == dtype, "{name} is not {dtype:?}");
        Ok(tensor.data())
    };
    let words =
        |name| Ok::<_, anyhow::Error>(elements(column(name, Dtype::U32)?, u32::from_le_bytes));
    let bucket = |&b: &u8| Bucket::ALL.get(b as usize).copied();
    let bucket = column("bucket", Dtype::U8)?.iter().map(bucket);
    let rank = words("rank")?.into_iter();
    let distance = elements(column("distance", Dtype::F64)?, f64::from_le_bytes).into_iter();
    let users = PerUser {
        target: words("target")?,
        rank: rank.map(|r| Some(r).filter(|&r| r != ABSENT)).collect(),
        sharing: words("sharing")?,
        worth: elements(column("worth", Dtype::F32)?, f32::from_le_bytes),
        bucket: bucket
            .collect::<Option<_>>()
            .context("a bucket is unknown")?,
        prefix: words("prefix")?,
        distance: distance.map(|d| Some(d).filter(|d| !d.is_nan())).collect(),
        invalid: words("invalid")?,
        beam,
    };
    let lengths = [
        users.rank.len(),
        users.sharing.len(),
        users.worth.len(),
        users.bucket.len(),
        users.prefix.len(),
        users.distance.len(),
        users.invalid.len(),
    ];
    ensure!(
        lengths.iter().all(|&n| n == users.users()),
        "its columns differ in length"
    );
    Ok(users)
}

fn elements<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&chunk| read(chunk))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> PerUser {
        PerUser {
            target: vec![3, 0, 7],
            rank: vec![Some(2), None, Some(0)],
            sharing: vec![1, 4, 2],
            worth: vec![0.1, 2.5, 0.0],
            bucket: vec![Bucket::Tail, Bucket::Head, Bucket::Torso],
            prefix: vec![4, 0, 4],
            distance: vec![Some(0.1), None, Some(1.0 / 3.0)],
            invalid: vec![0, 9, 0],
            beam: 20,
        }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.safetensors");
        users().save(&path).unwrap();
        let read = PerUser::load(&path).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", users()));
        let mut other = users();
        other.rank[1] = Some(19);
        other.save(&path).unwrap();
        let read = PerUser::load(&path).unwrap();
        assert_ne!(format!("{read:?}"), format!("{:?}", users()));
        std::fs::write(&path, "nothing").unwrap();
        let message = format!("{:#}", PerUser::load(&path).unwrap_err());
        assert!(message.contains("does not hold test users"), "{message}");
    }
}
