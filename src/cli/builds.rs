//! `dbcache-trt builds`: what is in the build cache, whether it is whole, and what may go.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dbcache_trt::{BuildCache, BuildState, BuildStore, Error, ErrorKind, GcOptions, Removed, StoredBuild};
use serde_json::{Value, json};

use super::args::{BuildsArgs, BuildsCommand, GcArgs, StoreArgs};
use super::print::{line, note};

pub fn run(args: &BuildsArgs) -> anyhow::Result<()> {
    match &args.command {
        BuildsCommand::List(args) => list(args),
        BuildsCommand::Verify(args) => verify(args),
        BuildsCommand::Gc(args) => gc(args),
    }
}

/// The cache that is meant, and its store if there is one yet.
fn open(args: &StoreArgs) -> anyhow::Result<(PathBuf, Option<BuildStore>)> {
    let cache = match args.build_cache.as_ref().or(args.engine_cache.as_ref()) {
        Some(folder) if folder.as_os_str() == "none" => BuildCache::None,
        Some(folder) => BuildCache::Folder(folder.clone()),
        None => BuildCache::User,
    };
    let Some(folder) = cache.folder()? else {
        anyhow::bail!(Error::with_kind(
            ErrorKind::Usage,
            "--build-cache none keeps no builds, so there is nothing to look at; name a folder (./none for one of that name)",
        ));
    };
    tell_of_older(&folder);
    let store = BuildStore::open_existing(&folder)?;
    Ok((folder, store))
}

/// Says that a folder beside this one holds what an older version compiled.
pub fn tell_of_older(folder: &Path) {
    if let Some(older) = BuildStore::older_beside(folder) {
        let older = older.display();
        note(format_args!("note: {older} holds builds of an older version, which nothing uses any more; delete it"));
    }
}

fn list(args: &StoreArgs) -> anyhow::Result<()> {
    let (folder, store) = open(args)?;
    let entries = store.map(|store| store.list()).transpose()?;
    show(args, &folder, entries.as_deref())
}

fn verify(args: &StoreArgs) -> anyhow::Result<()> {
    let (folder, store) = open(args)?;
    let entries = store.map(|store| store.verify()).transpose()?;
    show(args, &folder, entries.as_deref())?;
    let is_damaged = |entry: &&StoredBuild| matches!(entry.state, BuildState::Damaged(_));
    match entries.iter().flatten().filter(is_damaged).count() {
        0 => Ok(()),
        damaged => anyhow::bail!(Error::with_kind(
            ErrorKind::Check,
            format!(
                "{damaged} damaged in {}; they are never loaded, and `dbcache-trt builds gc --verify` removes them",
                folder.display()
            ),
        )),
    }
}

fn show(args: &StoreArgs, folder: &Path, entries: Option<&[StoredBuild]>) -> anyhow::Result<()> {
    let list = entries.unwrap_or_default();
    if args.json {
        let builds: Vec<Value> = list.iter().map(StoredBuild::to_json).collect();
        let json =
            json!({ "version": 1, "folder": folder.to_string_lossy(), "exists": entries.is_some(), "builds": builds });
        return line(serde_json::to_string_pretty(&json)?);
    }
    if entries.is_none() {
        return line(format_args!("{}: nothing is compiled yet", folder.display()));
    }
    for entry in list {
        let about = match (&entry.state, entry.name(), entry.target()) {
            (BuildState::Foreign, ..) => "foreign: not a build, and left alone".to_owned(),
            (BuildState::Damaged(reason), ..) => format!("DAMAGED: {reason}"),
            (BuildState::Whole, Some(name), Some(target)) => {
                let seconds = entry.build_seconds().unwrap_or_default();
                format!("{name} for {target}, built in {seconds:.1} s, used {}", ago(entry.used_s))
            }
            (BuildState::Whole, ..) => "whole".to_owned(),
        };
        line(format_args!("{:.12}  {:>9}  {about}", entry.key, size(entry.bytes)))?;
    }
    let bytes: u64 = list.iter().map(|entry| entry.bytes).sum();
    line(format_args!("{} builds, {} in {}", list.len(), size(bytes), folder.display()))
}

fn gc(args: &GcArgs) -> anyhow::Result<()> {
    let (folder, store) = open(&args.store)?;
    let options = GcOptions {
        max_age: args.max_age,
        max_bytes: args.max_size,
        unreferenced: args.unreferenced,
        keys: args.key.clone(),
        verify: args.verify,
        dry_run: args.dry_run,
    };
    let report = store.map(|store| store.gc(&options)).transpose()?.unwrap_or_default();
    let freed: u64 = report.removed.iter().map(|removed| removed.bytes).sum();
    if args.store.json {
        let removed =
            |removed: &Removed| json!({ "name": removed.name, "reason": removed.reason, "bytes": removed.bytes });
        return line(serde_json::to_string_pretty(&json!({
            "version": 1,
            "folder": folder.to_string_lossy(),
            "dry_run": args.dry_run,
            "removed": report.removed.iter().map(removed).collect::<Vec<_>>(),
            "in_use": report.in_use,
            "kept": report.kept,
            "kept_bytes": report.kept_bytes,
        }))?);
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for removed in &report.removed {
        line(format_args!("{verb} {}  {:>9}  {}", brief(&removed.name), size(removed.bytes), removed.reason))?;
    }
    for name in &report.in_use {
        line(format_args!("in use, left alone: {}", brief(name)))?;
    }
    if report.removed.is_empty() {
        return line(format_args!(
            "nothing to remove; {} builds ({}) are in {}",
            report.kept,
            size(report.kept_bytes),
            folder.display()
        ));
    }
    line(format_args!(
        "{verb} {} ({}); {} builds ({}) stay in {}",
        report.removed.len(),
        size(freed),
        report.kept,
        size(report.kept_bytes),
        folder.display()
    ))
}

/// A key without its tail; paths stay whole.
fn brief(name: &str) -> &str {
    if name.contains('/') { name } else { name.get(..12).unwrap_or(name) }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn ago(time_s: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    match now.saturating_sub(time_s) {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}
