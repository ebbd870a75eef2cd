//! LETTER's pair of files: `*.index.json` (item to SID tokens) and `*.inter.json` (user to items in time order).

use anyhow::Result;

use super::folder::Folder;
use super::read::{self, Id, Names, Users};
use super::{Log, Sequence, Source};

pub(super) fn import(folder: &Folder) -> Result<Source> {
    let log_path = folder.need("inter.json", "index.json")?;
    let index_path = folder.need("index.json", "inter.json")?;
    let mut items = read::index(&index_path)?;
    if let Some(path) = folder.find("item.json")? {
        read::texts(&path, &mut items)?;
    }
    let items = read::checked(&index_path, items)?;
    let names = Names::new(&index_path, &items);

    let mut users = Users::default();
    let mut sequences = Vec::new();
    read::json_entries(&log_path, |user, ids: Vec<Id>| {
        let items = names
            .items(&ids)
            .map_err(|error| format!("user {user:?}: {error}"))?;
        sequences.push(Sequence::untimed(users.insert(&user)?, items));
        Ok(())
    })?;
    Ok(Source {
        name: folder.name(),
        items,
        users: users.names,
        log: Log::Sequences(sequences),
        warnings: Vec::new(),
    })
}
