use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;

/// How many more changes of names this process lives through.
static STEPS_LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

pub(super) fn step() {
    if STEPS_LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
        std::process::abort();
    }
}

const FOLDER: &str = "FILES_TEST_FOLDER";
const STEPS: &str = "FILES_TEST_STEPS";

/// Names with what is found under them, as somebody finds it who follows links.
fn found(folder: &Path) -> BTreeMap<String, String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let visible = names.filter(|name| !name.starts_with('.'));
    visible.filter_map(|name| Some((name.clone(), fs::read_to_string(folder.join(name)).ok()?))).collect()
}

fn hidden(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes())).count()
}

fn video(frames: usize, content: &str) -> BTreeMap<String, String> {
    (0..frames).map(|frame| (format!("x_{frame:04}.png"), format!("{content} {frame}"))).collect()
}

fn write_video(folder: &Path, frames: usize, content: &str, before: usize) -> Result<()> {
    let names =
        |range: std::ops::Range<usize>| range.map(|frame| format!("x_{frame:04}.png").into()).collect::<Vec<_>>();
    let write = |frame, mut file: File| io::Write::write_all(&mut file, format!("{content} {frame}").as_bytes());
    write_together(&folder.join("x_%04d.png"), &names(0..frames), &names(frames..before.max(frames)), write)
}

/// Kills the writer before each change of a name: whole is what is found then, and after the next write.
#[test]
fn several_files_are_all_old_or_all_new() {
    // Frames of the older video, and of the new one.
    for (before, after) in [(0, 3), (3, 3), (2, 4), (5, 2)] {
        let mut ends = Vec::new();
        for steps in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            write_video(folder, before, "old", 0).unwrap();
            fs::write(folder.join("other.txt"), "other").unwrap();
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["files::tests::a_writer_that_is_killed", "--exact", "--ignored"])
                .env(FOLDER, folder)
                .env(STEPS, format!("{steps} {before} {after}"))
                .output()
                .unwrap();
            let mut now = found(folder);
            assert_eq!(now.remove("other.txt").as_deref(), Some("other"));
            let is_new = now == video(after, "new");
            assert!(is_new || now == video(before, "old"), "{before} {after} {steps}: {now:?}");
            ends.push(is_new);

            write_atomically(&folder.join("next"), |file| io::Write::write_all(file, b"")).unwrap();
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                assert!(entry.file_type().unwrap().is_file(), "{:?} after {steps} steps", entry.file_name());
            }
            assert_eq!(hidden(folder), 0);
            let mut then = found(folder);
            then.retain(|name, _| name.starts_with('x'));
            assert_eq!(then, now);
            if child.status.success() {
                break;
            }
        }
        // Both ends were seen, and the change is one moment.
        assert!(ends.len() > 2 * after && !ends[0] && ends[ends.len() - 1] && ends.is_sorted(), "{ends:?}");
    }
}

#[test]
#[ignore = "run by `several_files_are_all_old_or_all_new`, which kills it"]
fn a_writer_that_is_killed() {
    let numbers = std::env::var(STEPS).unwrap();
    let numbers: Vec<usize> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
    STEPS_LEFT.store(numbers[0] as i64, Ordering::Relaxed);
    write_video(Path::new(&std::env::var_os(FOLDER).unwrap()), numbers[2], "new", numbers[1]).unwrap();
}

#[test]
fn a_failed_write_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let path = folder.join("a.png");
    let failing = |_: &mut File| Err(io::Error::other("disk full"));
    assert_eq!(write_atomically(&path, failing).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    assert!(write_atomically(&folder.join("no/such/a.png"), |_| Ok::<(), io::Error>(())).is_err());

    write_video(folder, 4, "old", 0).unwrap();
    let names: Vec<_> = (0..3).map(|frame| format!("x_{frame:04}.png").into()).collect();
    let failing = |frame, _| if frame < 2 { Ok(()) } else { Err(io::Error::other("disk full")) };
    let error = write_together(&folder.join("x_%04d.png"), &names, &["x_0003.png".into()], failing).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("x_0002.png"), "{error}");
    assert_eq!((found(folder), hidden(folder)), (video(4, "old"), 0));
}

#[test]
fn only_what_nobody_writes_is_a_leftover() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let kept = temporary_file(folder).unwrap();
    let partial = Partial::beside(&folder.join("a"), &folder.join("a")).unwrap();
    fs::write(folder.join(".dbcache-trt-dead"), "half").unwrap();
    fs::create_dir_all(folder.join(".dbcache-trt-dead-too/inside")).unwrap();
    fs::write(folder.join(".dbcache-other"), "").unwrap();
    write_atomically(&folder.join("b"), |file| io::Write::write_all(file, b"b")).unwrap();
    assert!(kept.path().exists() && partial.path().exists());
    assert!(folder.join(".dbcache-other").exists());
    assert_eq!(hidden(folder), 2);
    partial.persist(&folder.join("a")).unwrap();
    drop(kept);
    assert_eq!((hidden(folder), folder.join("a").is_dir()), (0, true));
}

#[cfg(unix)]
#[test]
fn links_stay() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("there")).unwrap();
    symlink("there/file", at("dangling")).unwrap();
    symlink("dangling", at("second")).unwrap();
    symlink("circle", at("circle")).unwrap();
    let write = |name: &str| write_atomically(&at(name), |file| io::Write::write_all(file, name.as_bytes()));
    for name in ["dangling", "second"] {
        write(name).unwrap();
        assert_eq!(fs::read_to_string(at("there/file")).unwrap(), name);
        assert!(at(name).is_symlink());
    }
    assert_eq!(write("circle").unwrap_err().kind(), ErrorKind::Io);
    assert!(at("circle").is_symlink());

    // Of several files that are one, none may lie elsewhere.
    symlink("there/file", at("x_0001.png")).unwrap();
    let error = write_video(folder.path(), 2, "new", 0).unwrap_err();
    assert!(error.to_string().contains("x_0001.png"), "{error}");
    assert!(!at("x_0000.png").exists() && hidden(folder.path()) == 0);
}
