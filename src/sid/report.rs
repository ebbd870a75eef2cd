//! What a person wants to know of the semantic IDs of a catalog before training on them: `vstar sid report`.

use std::fmt;

use serde::Serialize;

use crate::catalog::{Catalog, Collisions};

/// Figures of a catalog's SIDs; prints as aligned text, serialises as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub items: usize,
    pub sids: usize,
    pub collisions: Collisions,
}

impl Report {
    /// Counts everything.
    pub fn of(catalog: &Catalog) -> Report {
        Report {
            items: catalog.items(),
            sids: catalog.sids(),
            collisions: catalog.collisions(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Collisions {
            sids,
            items,
            largest,
        } = self.collisions;
        writeln!(f, "items           {}", self.items)?;
        writeln!(
            f,
            "SIDs            {} distinct; {items} items share {sids}, at most {largest} on one",
            self.sids
        )
    }
}
