//! MP4 and WebM through ffmpeg: what it is given, what it leaves, and what is said when it is missing or fails. The program
//! is a script that stands in for it. (Formats that need no program: `src/media/video.rs`.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dbcache_trt::{CancelToken, ErrorKind, Image, Video, VideoFormat};

fn video() -> Video {
    let frame = |k: u8| Image { width: 4, height: 2, rgb: (0..24).map(|i| i + 100 * k).collect() };
    Video { frames: vec![frame(0), frame(1)], fps: 12.5 }
}

/// Runs this test program again, for one test, with another PATH: the environment of a process is not to be changed.
fn with_path(test: &str, path: &Path) {
    let program = std::env::current_exe().unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    let output = Command::new(program)
        .args([&format!("{module}::{test}"), "--exact", "--ignored"])
        .env("PATH", path)
        .env("VIDEO_TEST_FOLDER", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn script(folder: &Path, text: &str) {
    let path = folder.join("ffmpeg");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn folder() -> std::path::PathBuf {
    std::env::var_os("VIDEO_TEST_FOLDER").unwrap().into()
}

#[test]
fn ffmpeg_gets_every_frame() {
    let folder = tempfile::tempdir().unwrap();
    // The last argument is the file.
    script(
        folder.path(),
        "#!/bin/sh\necho \"$@\" > \"${0%/*}/arguments\"\nfor last; do :; done\n/bin/cat > \"$last\"\n",
    );
    with_path("encodes", folder.path());
    let arguments = fs::read_to_string(folder.path().join("arguments")).unwrap();
    for words in ["-f rawvideo -pix_fmt rgb24 -s 4x2 -r 12.5 -i -", "libvpx-vp9", "-f webm", "yuv420p"] {
        assert!(arguments.contains(words), "{arguments}");
    }
}

#[test]
#[ignore = "run by `ffmpeg_gets_every_frame` with a PATH of its own"]
fn encodes() {
    for name in ["a.mp4", "a.webm"] {
        let path = folder().join(name);
        assert_eq!(video().write(&path, &[]).unwrap(), std::slice::from_ref(&path));
        let frames = [video().frames[0].rgb.clone(), video().frames[1].rgb.clone()].concat();
        assert_eq!(fs::read(&path).unwrap(), frames);
    }
}

#[test]
fn a_missing_ffmpeg_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    with_path("misses", folder.path());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "run by `a_missing_ffmpeg_is_an_error_with_a_remedy` with a PATH of its own"]
fn misses() {
    let error = video().write(&folder().join("a.mp4"), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("ffmpeg is not installed") && error.to_string().contains(".gif"), "{error}");
}

#[test]
fn a_failing_ffmpeg_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    script(folder.path(), "#!/bin/sh\necho 'Unknown encoder' >&2\nexit 1\n");
    with_path("fails", folder.path());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1); // the script
}

#[test]
#[ignore = "run by `a_failing_ffmpeg_leaves_nothing` with a PATH of its own"]
fn fails() {
    // It says so before the work as well.
    let path = folder().join("a.mp4");
    let error = VideoFormat::Mp4.check(&path, None, &CancelToken::default()).unwrap_err();
    assert!(error.to_string().contains("ffmpeg failed") && error.to_string().contains("Unknown encoder"), "{error}");
    for (fps, is_made) in [(None, true), (Some(50.0), true), (Some(50.5), false)] {
        assert_eq!(VideoFormat::Gif.check(&path, fps, &CancelToken::default()).is_ok(), is_made, "{fps:?}");
    }
    let error = video().write(&folder().join("a.mp4"), &[]).unwrap_err();
    assert!(error.to_string().contains("ffmpeg failed") && error.to_string().contains("Unknown encoder"), "{error}");
}

#[test]
fn a_hanging_ffmpeg_is_stopped_with_the_generation() {
    let folder = tempfile::tempdir().unwrap();
    script(folder.path(), "#!/bin/sh\necho $$ > \"${0%/*}/pid\"\nexec /bin/sleep 1000\n");
    with_path("is_cancelled", folder.path());
    let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "ffmpeg still runs");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2); // the script and its number
}

#[test]
#[ignore = "run by `a_hanging_ffmpeg_is_stopped_with_the_generation` with a PATH of its own"]
fn is_cancelled() {
    // More than a pipe holds, so that what is written waits for the program as well.
    let frame = Image { width: 512, height: 512, rgb: vec![7; 512 * 512 * 3] };
    let video = Video { frames: vec![frame; 3], fps: 8.0 };
    let cancel = CancelToken::default();
    let pid = folder().join("pid");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !fs::read_to_string(&pid).is_ok_and(|text| text.ends_with("\n")) {
                std::thread::sleep(Duration::from_millis(5));
            }
            cancel.cancel();
        });
        let error = video.write_until(&folder().join("a.mp4"), &[], &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    });
    // A token that is set already stops all formats.
    for name in ["a.gif", "a.png", "a_%04d.png", "a"] {
        let error = video.write_until(&folder().join(name), &[], &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{name}");
    }
}
