//! LETTER's pair of files: `*.index.json` (item to SID tokens) and `*.inter.json` (user to items in time order).

use anyhow::Result;

use super::read::{self, Id, Users};
use super::{Folder, Imported, Log};

pub(super) fn import(folder: &Folder) -> Result<Imported> {
    let log_path = folder.need("inter.json", "index.json")?;
    let index_path = folder.need("index.json", "inter.json")?;
    let mut items = read::index(&index_path)?;
    if let Some(path) = folder.find("item.json")? {
        read::titles(&path, &mut items)?;
    }
    let catalog = read::catalog(&index_path, items)?;

    let mut users = Users::default();
    let mut sequences = Vec::new();
    read::json_entries(&log_path, |user, ids: Vec<Id>| {
        users.insert(&user)?;
        let items: Result<Vec<u32>, String> = ids
            .iter()
            .map(|id| read::known_item(&catalog, &index_path, &id.0))
            .collect();
        sequences.push(items.map_err(|error| format!("user {user:?}: {error}"))?);
        Ok(())
    })?;
    Ok(Imported {
        catalog,
        users: users.names,
        log: Log::Sequences(sequences),
        warnings: Vec::new(),
    })
}
