//! The floors of `src/`: a room uses only rooms on floors below its own. So no two of them need each other, and a
//! reader of one knows what can lie under it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tidy::{root, sources};

/// From the ground up. Rooms on one floor do not use each other. `lib.rs` and `main.rs` stand outside of the house.
const FLOORS: [&[&str]; 12] = [
    &["error", "nearest", "units"],
    &["words"],
    &["cache", "collective", "contain", "exit", "files", "folders", "pixels"],
    &["cancel", "model", "packages", "threads"],
    &["media", "runtime", "setup"],
    &["plan", "trace"],
    &["request", "text"],
    &["engine"],
    &["generate"],
    &["info"],
    &["options"],
    &["cli"],
];

/// The room of a file: its folder in `src/`, or its own name.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// What follows each `crate::` in code: a room, or a name that the library gives to its users.
fn named(code: &str) -> BTreeSet<String> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let parts = lines.flat_map(|line| line.split("crate::").skip(1));
    parts.map(|part| part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn nothing_below_names_anything_above() {
    let floor_of: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor))).collect();
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (path, code) in sources("src") {
        let room = room(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let floor = *floor_of.get(room.as_str()).unwrap_or_else(|| panic!("{room} has no floor in this file"));
        for other in named(&code).into_iter().filter(|other| *other != room) {
            match floor_of.get(other.as_str()) {
                Some(below) if *below < floor => {
                    used.entry(room.clone()).or_default().insert(other);
                }
                Some(_) => wrong.push(format!("{} uses {other}, which is not below {room}", path.display())),
                // The face that users see belongs to no floor.
                None => wrong.push(format!("{} names crate::{other}; name the room that has it", path.display())),
            }
        }
    }
    for rooms in FLOORS.iter().rev() {
        for room in *rooms {
            let below = used.remove(*room).unwrap_or_default();
            println!("{room:<10} {}", below.into_iter().collect::<Vec<_>>().join(", "));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
