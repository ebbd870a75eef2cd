//! The nearest of a codebook's centroids, for many points at once.

use std::ops::Range;

use anyhow::Result;

use crate::device::{ALIGN_WORDS, Buffer, DeviceRef, Slice, Stream};
use crate::kernels::matmul::{Dims, linear};
use crate::kernels::nearest::nearest;
use crate::kernels::residual::{Lookup, residual};

/// Products held at a time; points are taken in parts where there are more.
const PRODUCTS: usize = 1 << 22;

/// Room to compare points of `width` with up to so many centroids.
pub struct Search {
    width: usize,
    /// Points compared at a time.
    part: usize,
    products: Buffer,
    norms: Buffer,
    /// One row of zeros, and for every centroid the index of it: the distance to the origin is the norm.
    origin: Buffer,
    at_origin: Buffer,
    unmoved: Buffer,
}

impl Search {
    /// For up to `rows` points and `centroids` centroids.
    pub fn new(device: &DeviceRef, rows: usize, centroids: usize, width: usize) -> Result<Search> {
        let part = (PRODUCTS / centroids / ALIGN_WORDS).max(1) * ALIGN_WORDS;
        let part = part.min(rows.next_multiple_of(ALIGN_WORDS));
        Ok(Search {
            width,
            part,
            products: Buffer::new(device, "products with centroids", part * centroids)?,
            norms: Buffer::new(device, "norms of centroids", centroids)?,
            origin: Buffer::new(device, "origin", width)?,
            at_origin: Buffer::new(device, "index of the origin", centroids)?,
            unmoved: Buffer::new(device, "centroids", centroids * width)?,
        })
    }

    /// Records the nearest of `centroids` [count, width] for each of `x` [rows, width] into `code` [rows].
    pub fn record(
        &self,
        s: &mut Stream,
        x: Slice,
        centroids: Slice,
        code: Slice,
        (rows, count): (usize, usize),
    ) {
        self.record_norms(s, centroids, count);
        for part in self.parts(rows) {
            self.record_products(s, x, centroids, part.clone(), count);
            let (from, rows) = (part.start, part.len());
            let (products, norms) = (self.products.all(), self.norms.all());
            nearest(s, products, norms, code.part(from, rows), rows, count);
        }
    }

    /// `2 x c - |c|^2` of each point and centroid, [rows, count]: larger where nearer.
    pub fn closeness(
        &self,
        x: Slice,
        centroids: Slice,
        (rows, count): (usize, usize),
    ) -> Result<Vec<f32>> {
        let device = self.products.device();
        let mut s = Stream::new();
        self.record_norms(&mut s, centroids, count);
        let mut closeness = Vec::with_capacity(rows * count);
        for part in self.parts(rows) {
            self.record_products(&mut s, x, centroids, part.clone(), count);
            device.run(&s)?;
            s.clear();
            let products = self.products.first(part.len() * count);
            let read = device.read(&[products, self.norms.first(count)])?;
            let [products, norms] = [0, 1].map(|i| bytemuck::cast_slice::<u32, f32>(&read[i]));
            for row in products.chunks_exact(count) {
                closeness.extend(row.iter().zip(norms).map(|(p, norm)| 2.0 * p - norm));
            }
        }
        Ok(closeness)
    }

    fn parts(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let part = self.part;
        let begins = (0..rows).step_by(part);
        begins.map(move |begin| begin..(begin + part).min(rows))
    }

    fn record_norms(&self, s: &mut Stream, centroids: Slice, count: usize) {
        let origin = Lookup {
            table: self.origin.all(),
            index: self.at_origin.all(),
        };
        let (unmoved, norms) = (self.unmoved.all(), self.norms.all());
        residual(s, centroids, origin, unmoved, norms, count, self.width);
    }

    fn record_products(
        &self,
        s: &mut Stream,
        x: Slice,
        centroids: Slice,
        part: Range<usize>,
        count: usize,
    ) {
        let x = x.part(part.start * self.width, part.len() * self.width);
        let dims = Dims {
            m: part.len(),
            n: count,
            k: self.width,
        };
        linear(s, x, centroids, None, self.products.all(), dims);
    }
}
