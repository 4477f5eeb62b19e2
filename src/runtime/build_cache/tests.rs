//! The store with a fake builder, in threads and in processes of its own.

mod moved;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use super::key::{KeyTarget, ranges};
use super::layout::{ENTRIES, STAGING};
use super::parameters::digests;
use super::*;
use crate::model::compute::Attention;
use crate::model::directory::EngineDirectory;
use crate::model::graph::Graph;
use crate::model::manifest::DType;

fn ingredients(seed: &str) -> Ingredients {
    Ingredients {
        key_version: 1,
        graph: crate::model::weights::hash_bytes(seed.as_bytes()),
        weights: crate::model::weights::hash_bytes(b"weights"),
        profiles: BTreeMap::from([("image".into(), [64, 256, 1024])]),
        target: KeyTarget { provider: "FakeProvider".into(), device: "drum".into(), ..KeyTarget::default() },
    }
}

/// Writes what providers write: a small model, and a large file beside it.
fn build(folder: &Path) -> Result<String> {
    fs::write(folder.join("model.onnx"), "refers to model.bin").unwrap();
    fs::write(folder.join("model.bin"), vec![7; 5000]).unwrap();
    Ok("model.onnx".into())
}

fn no_build(_: &Path) -> Result<String> {
    panic!("must not be built")
}

struct Place {
    store: BuildStore,
    _folder: tempfile::TempDir,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    Place { store: BuildStore::open(folder.path().join("store")).unwrap(), _folder: folder }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Place {
    fn build(&self, seed: &str) -> (Key, StoreOutcome) {
        let ingredients = ingredients(seed);
        let (found, outcome) = self.store.find_or_build("block_000.onnx", &ingredients, true, build).unwrap();
        assert_eq!(fs::read(found.model()).unwrap(), b"refers to model.bin");
        (ingredients.key().unwrap(), outcome)
    }

    fn staged(&self) -> Vec<String> {
        names(&self.store.folder.join(STAGING))
    }

    fn entry(&self, key: &Key) -> PathBuf {
        key.folder(&self.store.folder)
    }
}

#[test]
fn builds_once_and_then_loads() {
    let place = place();
    let (key, outcome) = place.build("a");
    assert!(matches!(outcome, StoreOutcome::Built { damaged: None, .. }), "{outcome:?}");
    let (found, outcome) = place.store.find_or_build("block_000.onnx", &ingredients("a"), true, no_build).unwrap();
    assert_eq!(outcome, StoreOutcome::Loaded);
    assert_eq!((found.record.files.len(), found.record.ingredients.clone()), (2, ingredients("a")));
    assert_eq!(names(&place.entry(&key)), ["model.bin", "model.onnx", "record.json"]);
    assert!(place.staged().is_empty());
    let missing = place.store.find_or_build("block_001.onnx", &ingredients("b"), false, no_build).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotBuilt);
    assert!(missing.to_string().contains("block_001.onnx: the build"), "{missing}");
    assert!(matches!(place.store.find(&ingredients("b").key().unwrap()), Lookup::Missing));
}

#[test]
fn every_ingredient_is_in_the_key() {
    type Change = fn(&mut Ingredients);
    let changes: &[(&str, Change)] = &[
        ("key version", |i| i.key_version += 1),
        ("graph", |i| i.graph.replace_range(..1, "0")),
        ("weights", |i| i.weights.replace_range(..1, "0")),
        ("dimension", |i| i.profiles = BTreeMap::from([("text".into(), [64, 256, 1024])])),
        ("smallest extent", |i| i.profiles.get_mut("image").unwrap()[0] = 63),
        ("usual extent", |i| i.profiles.get_mut("image").unwrap()[1] = 257),
        ("largest extent", |i| i.profiles.get_mut("image").unwrap()[2] = 1025),
        ("no profile", |i| i.profiles.clear()),
        ("provider", |i| i.target.provider += "2"),
        ("option", |i| {
            i.target.options.insert("fp16".into(), "1".into());
        }),
        ("value of an option", |i| {
            i.target.options.insert("fp16".into(), "0".into());
        }),
        ("session", |i| {
            i.target.session.insert("session.x".into(), "1".into());
        }),
        ("ONNX Runtime", |i| i.target.onnxruntime = "1.32.0".into()),
        ("SDK", |i| i.target.sdk = "10.13".into()),
        ("driver", |i| i.target.driver = "580.1".into()),
        ("device", |i| i.target.device = "trumpet".into()),
    ];
    let original = Ingredients { graph: "f".repeat(64), weights: "f".repeat(64), ..ingredients("a") };
    let mut keys = BTreeSet::from([original.key().unwrap()]);
    assert!(keys.contains(&original.clone().key().unwrap()));
    for (what, change) in changes {
        let mut changed = original.clone();
        change(&mut changed);
        assert!(keys.insert(changed.key().unwrap()), "{what}");
    }
    // A field that is added to the ingredients must be added here.
    let Ingredients { key_version: _, graph: _, weights: _, profiles: _, target } = original;
    let KeyTarget { provider: _, options: _, session: _, onnxruntime: _, sdk: _, driver: _, device: _ } = target;
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-flux")
}

fn of_graph(graph: &Graph, memory: Option<&Path>) -> Ingredients {
    let digests = digests(ranges(graph).unwrap(), memory).unwrap();
    Ingredients::new(graph, &digests, BTreeMap::new(), KeyTarget::default()).unwrap()
}

fn copy_of_tiny() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in names(&tiny()) {
        fs::copy(tiny().join(&name), copy.path().join(&name)).unwrap();
    }
    copy
}

/// Two blocks of one kind, whose graphs are the same but for the places of their parameters.
fn twins(directory: &EngineDirectory) -> (usize, usize) {
    let blocks = &directory.manifest.blocks;
    let second = (1..blocks.len()).find(|block| blocks[*block].kind == blocks[0].kind).unwrap();
    (0, second)
}

#[test]
fn blocks_whose_weights_are_swapped_swap_their_keys() {
    let copy = copy_of_tiny();
    let directory = EngineDirectory::open(copy.path(), None).unwrap();
    let (a, b) = twins(&directory);
    let (before_a, before_b) =
        (of_graph(&directory.experts[0].blocks[a], None), of_graph(&directory.experts[0].blocks[b], None));
    assert_ne!(before_a.weights, before_b.weights);

    // The parameters of the two blocks change places in the weights file; its header, size and manifest stay.
    let (of_a, of_b) =
        (ranges(&directory.experts[0].blocks[a]).unwrap(), ranges(&directory.experts[0].blocks[b]).unwrap());
    let file = of_a[0].file.clone();
    let mut bytes = fs::read(&file).unwrap();
    for (x, y) in of_a.iter().zip(&of_b) {
        for i in 0..x.bytes as usize {
            bytes.swap(x.offset as usize + i, y.offset as usize + i);
        }
    }
    fs::write(&file, bytes).unwrap();
    let directory = EngineDirectory::open(copy.path(), None).unwrap();
    let (after_a, after_b) =
        (of_graph(&directory.experts[0].blocks[a], None), of_graph(&directory.experts[0].blocks[b], None));
    assert_eq!((&after_a.weights, &after_b.weights), (&before_b.weights, &before_a.weights));
    assert_eq!((&after_a.graph, &after_b.graph), (&before_a.graph, &before_b.graph));
    let keys: BTreeSet<Key> =
        [before_a, before_b, after_a, after_b].iter().map(|ingredients| ingredients.key().unwrap()).collect();
    assert_eq!(keys.len(), 4);

    // One graph with the parameters of either block: nothing differs but the content that the references lead to.
    let mut of_the_other = directory.experts[0].blocks[a].clone();
    let mut model = crate::model::onnx::decode(&of_the_other.bytes).unwrap();
    let parameters = model.graph.as_mut().unwrap().initializer.iter_mut().filter(|t| !t.external_data.is_empty());
    for (tensor, range) in parameters.zip(&of_b) {
        let offset = tensor.external_data.iter_mut().find(|entry| entry.key.as_deref() == Some("offset")).unwrap();
        offset.value = Some(range.offset.to_string());
    }
    of_the_other.bytes = prost::Message::encode_to_vec(&model);
    let (own, other) = (of_graph(&directory.experts[0].blocks[a], None), of_graph(&of_the_other, None));
    assert_eq!(own.graph, other.graph);
    assert_ne!(own.key().unwrap(), other.key().unwrap());
}

#[test]
fn a_moved_model_keeps_its_keys_and_another_checkpoint_does_not() {
    let key = |folder: &Path| {
        let directory = EngineDirectory::open(folder, None).unwrap();
        of_graph(&directory.experts[0].blocks[0], None).key().unwrap()
    };
    let copy = copy_of_tiny();
    assert_eq!(key(copy.path()), key(&tiny()));
    let directory = EngineDirectory::open(copy.path(), None).unwrap();
    let range = &ranges(&directory.experts[0].blocks[0]).unwrap()[0];
    let mut bytes = fs::read(&range.file).unwrap();
    bytes[range.offset as usize] ^= 1;
    fs::write(&range.file, bytes).unwrap();
    assert_ne!(key(copy.path()), key(&tiny()));
}

/// What was compiled of a graph in one dtype never serves another.
#[test]
fn each_compute_dtype_has_a_key_of_its_own() {
    let key = |dtype: DType, attention| {
        let directory = EngineDirectory::open(&tiny(), None).unwrap().computing_in(dtype, attention).unwrap();
        of_graph(&directory.experts[0].blocks[0], None).key().unwrap()
    };
    let [f32, f16, bf16] = [DType::F32, DType::F16, DType::Bf16].map(|dtype| key(dtype, Attention::SoftmaxInF32));
    let as_exported = EngineDirectory::open(&tiny(), None).unwrap();
    assert_eq!(f32, of_graph(&as_exported.experts[0].blocks[0], None).key().unwrap());
    assert_eq!([&f32, &f16, &bf16].into_iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(f16, key(DType::F16, Attention::SoftmaxInF32));
}

#[test]
fn digests_are_remembered_until_the_file_changes() {
    let copy = copy_of_tiny();
    let memory = tempfile::tempdir().unwrap();
    let directory = EngineDirectory::open(copy.path(), None).unwrap();
    let graph = &directory.experts[0].blocks[0];
    let weights = || of_graph(graph, Some(memory.path())).weights;
    let true_weights = of_graph(graph, None).weights;

    assert_eq!(weights(), true_weights);
    assert!(names(memory.path()).is_empty(), "the file is too new to be trusted");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(weights(), true_weights);
    let [name] = &names(memory.path())[..] else { panic!() };
    let remembered = memory.path().join(name);

    // What is remembered is used: a (well-formed) lie comes back.
    let text = fs::read_to_string(&remembered).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["content"]["parameters"][0][2] = "0".repeat(64).into();
    let compact = serde_json::to_vec(&value["content"]).unwrap();
    value["sha256"] = crate::model::weights::hash_bytes(&compact).into();
    fs::write(&remembered, value.to_string()).unwrap();
    assert_ne!(weights(), true_weights);
    // What is damaged is not.
    fs::write(&remembered, text.replacen("[\n", "[ \n", 1).replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert_eq!(weights(), true_weights);

    let range = &ranges(graph).unwrap()[0];
    let mut bytes = fs::read(&range.file).unwrap();
    bytes[range.offset as usize] ^= 1;
    fs::write(&range.file, bytes).unwrap();
    assert_ne!(weights(), true_weights);
    assert_eq!(weights(), of_graph(graph, None).weights);
}

#[test]
fn damaged_builds_are_never_loaded() {
    type Damage = fn(&Path);
    fn flip(path: PathBuf, at: usize) {
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let cases: &[(Damage, &str)] = &[
        (|entry| flip(entry.join("model.onnx"), 0), "model.onnx does not have the SHA-256"),
        (|entry| flip(entry.join("model.bin"), 4999), "model.bin does not have the SHA-256"),
        (|entry| fs::write(entry.join("model.bin"), [7; 4999]).unwrap(), "model.bin has 4999 bytes instead of 5000"),
        (|entry| fs::write(entry.join("model.bin"), "").unwrap(), "model.bin has 0 bytes"),
        (|entry| fs::remove_file(entry.join("model.bin")).unwrap(), "model.bin cannot be opened"),
        (|entry| fs::remove_file(entry.join("model.onnx")).unwrap(), "model.onnx cannot be opened"),
        (|entry| fs::write(entry.join("other.bin"), "").unwrap(), "other.bin does not belong to it"),
        (|entry| fs::create_dir(entry.join("more")).unwrap(), "more does not belong to it"),
        (|entry| fs::remove_file(entry.join("record.json")).unwrap(), "record.json cannot be opened"),
        (|entry| fs::write(entry.join("record.json"), "{}").unwrap(), "record.json does not parse"),
        (
            |entry| {
                let record = entry.join("record.json");
                let text = fs::read_to_string(&record).unwrap();
                fs::write(record, &text[..text.len() / 2]).unwrap();
            },
            "record.json does not parse",
        ),
        (
            |entry| {
                let record = entry.join("record.json");
                let text = fs::read_to_string(&record).unwrap();
                fs::write(record, text.replace("drum", "horn")).unwrap();
            },
            "record.json does not have its own checksum",
        ),
        (
            |entry| {
                let record = entry.join("record.json");
                let text = fs::read_to_string(&record).unwrap();
                fs::write(record, text.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
            },
            "record.json has version 2, this program reads 1",
        ),
        (
            |entry| {
                // Another build, under the name of this one.
                fs::remove_dir_all(entry).unwrap();
                fs::create_dir(entry).unwrap();
                let model = build(entry).unwrap();
                Record::seal(entry, "block_001.onnx", &ingredients("b"), &model, 1.0).unwrap();
            },
            "under another name",
        ),
        (
            |entry| {
                // A well-made record that points out of the store.
                let mut record: Record = sealed::read(&entry.join("record.json")).unwrap();
                record.files.push(entry::StoredFile { file: "../x".into(), bytes: 0, sha256: String::new() });
                sealed::write(&entry.join("record.json"), &record).unwrap();
            },
            "names the file \"../x\"",
        ),
        (
            |entry| {
                fs::remove_dir_all(entry).unwrap();
                fs::write(entry, "a file").unwrap();
            },
            "record.json cannot be opened",
        ),
        #[cfg(unix)]
        (
            |entry| {
                fs::rename(entry.join("model.bin"), entry.with_extension("elsewhere")).unwrap();
                std::os::unix::fs::symlink(entry.with_extension("elsewhere"), entry.join("model.bin")).unwrap();
            },
            "model.bin is not a regular file",
        ),
    ];
    for (damage, reason) in cases {
        let place = place();
        let (key, _) = place.build("a");
        damage(&place.entry(&key));
        match place.store.find(&key) {
            Lookup::Damaged(found) => assert!(found.contains(reason), "{found} instead of {reason}"),
            other => panic!("{reason}: {other:?}"),
        }
        let verified = place.store.verify().unwrap();
        let entry = verified.iter().find(|entry| entry.key == key.as_str()).unwrap();
        assert!(matches!(&entry.state, BuildState::Damaged(found) if found.contains(reason)), "{entry:?}");

        let refused = place.store.find_or_build("block_000.onnx", &ingredients("a"), false, no_build).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotBuilt);
        assert!(refused.to_string().contains(reason), "{refused}");
        let (_, outcome) = place.build("a");
        assert!(
            matches!(&outcome, StoreOutcome::Built { damaged: Some(found), .. } if found.contains(reason)),
            "{outcome:?}"
        );
        assert_eq!(place.build("a").1, StoreOutcome::Loaded);
        assert!(place.staged().is_empty());
    }
}

#[test]
fn a_builder_that_fails_leaves_nothing() {
    type Builder = fn(&Path) -> Result<String>;
    let broken: &[(Builder, &str)] = &[
        (
            |folder| {
                build(folder).unwrap();
                Err(Error::new(ErrorKind::Runtime, "out of memory"))
            },
            "out of memory",
        ),
        (|_| Ok("model.onnx".into()), "the provider wrote no model.onnx"),
        (
            |folder| {
                fs::write(folder.join("model.onnx"), "").unwrap();
                Ok("model.onnx".into())
            },
            "the provider wrote no model.onnx",
        ),
        (
            |folder| {
                fs::create_dir(folder.join("cache")).unwrap();
                build(folder)
            },
            "the provider wrote cache, which a build cannot hold",
        ),
    ];
    for (build, reason) in broken {
        let place = place();
        let error = place.store.find_or_build("x", &ingredients("a"), true, build).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Runtime);
        assert!(error.to_string().contains(reason), "{error}");
        assert!(place.staged().is_empty());
        assert!(place.store.list().unwrap().is_empty());
    }
}

/// A process of its own that asks for one build: run by the tests below.
#[test]
#[ignore = "other tests start it as a process of its own"]
fn process() {
    let store = BuildStore::open(std::env::var_os("STORE").unwrap()).unwrap();
    let hangs = std::env::var_os("HANGS").is_some();
    let (_, outcome) = store
        .find_or_build("block_000.onnx", &ingredients("a"), true, |folder| {
            let model = build(folder)?;
            println!("building");
            std::io::stdout().flush().unwrap();
            if hangs {
                std::thread::sleep(Duration::from_secs(600));
            }
            std::thread::sleep(Duration::from_millis(300));
            Ok(model)
        })
        .unwrap();
    println!("outcome {}", if outcome == StoreOutcome::Loaded { "loaded" } else { "built" });
}

fn start(place: &Place, hangs: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "runtime::build_cache::tests::process", "--ignored", "--nocapture"]);
    command.env("STORE", place.store.folder()).stdout(Stdio::piped());
    if hangs {
        command.env("HANGS", "1");
    }
    command.spawn().unwrap()
}

#[test]
fn processes_that_ask_at_once_build_once() {
    let place = place();
    let children: Vec<Child> = (0..4).map(|_| start(&place, false)).collect();
    let said: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    let count = |words: &str| said.iter().filter(|said| said.contains(words)).count();
    assert_eq!((count("building"), count("outcome built"), count("outcome loaded")), (1, 1, 3), "{said:?}");
    assert!(place.staged().is_empty());
}

#[test]
fn threads_that_ask_at_once_build_once() {
    let place = place();
    let built = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| place.build("a").1)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).filter(|o| *o != StoreOutcome::Loaded).count()
    });
    assert_eq!(built, 1);
}

/// Starts a builder and waits until it is in the middle.
fn builder_in_the_middle(place: &Place) -> Child {
    use std::io::{BufRead, BufReader};
    let mut child = start(place, true);
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("building")).unwrap().unwrap();
    child
}

#[test]
fn a_killed_builder_leaves_nothing_that_counts() {
    for clean_with_gc in [false, true] {
        let place = place();
        let mut child = builder_in_the_middle(&place);
        // While it lives nothing of it is removed.
        let report = place.store.gc(&GcOptions::default()).unwrap();
        assert_eq!((report.removed.len(), report.in_use.len()), (0, 1), "{report:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(place.staged().len(), 1);
        assert!(place.store.list().unwrap().is_empty());
        assert!(matches!(place.store.find(&ingredients("a").key().unwrap()), Lookup::Missing));
        if clean_with_gc {
            let dry = place.store.gc(&GcOptions { dry_run: true, ..GcOptions::default() }).unwrap();
            let report = place.store.gc(&GcOptions::default()).unwrap();
            assert_eq!(dry.removed, report.removed);
            assert_eq!((report.removed.len(), report.removed[0].bytes), (1, 5019), "{report:?}");
            assert!(report.removed[0].name.starts_with("staging/"), "{report:?}");
        } else {
            assert!(matches!(place.build("a").1, StoreOutcome::Built { damaged: None, .. }));
        }
        assert!(place.staged().is_empty());
    }
}

#[test]
fn gc_removes_what_it_is_told() {
    let place = place();
    let engine = copy_of_tiny();
    let hash = crate::model::weights::hash_file(&engine.path().join("manifest.json")).unwrap();
    let keys: Vec<Key> = ["a", "b", "c"].iter().map(|seed| place.build(seed).0).collect();
    let days = |days: u64| Duration::from_secs(days * 86_400);
    for (key, age) in keys.iter().zip([1, 10, 100]) {
        let record = fs::File::options().append(true).open(place.entry(key).join("record.json")).unwrap();
        record.set_modified(SystemTime::now() - days(age)).unwrap();
    }
    place.store.refer(engine.path(), &hash, [keys[1].clone()]).unwrap();
    place.store.refer(engine.path(), &hash, [keys[2].clone()]).unwrap();
    fs::create_dir(place.store.folder.join(ENTRIES).join("not-ours")).unwrap();
    let bytes = place.store.list().unwrap().iter().map(|entry| entry.bytes).max().unwrap();
    let short = keys[0].as_str()[..8].to_owned();
    let all = GcOptions { dry_run: true, ..GcOptions::default() };
    for (options, expected) in [
        (all.clone(), vec![]),
        (GcOptions { max_age: Some(days(50)), ..all.clone() }, vec![2]),
        (GcOptions { max_age: Some(days(5)), ..all.clone() }, vec![1, 2]),
        (GcOptions { max_bytes: Some(2 * bytes), ..all.clone() }, vec![2]),
        (GcOptions { max_bytes: Some(bytes), ..all.clone() }, vec![1, 2]),
        (GcOptions { max_bytes: Some(0), ..all.clone() }, vec![0, 1, 2]),
        (GcOptions { unreferenced: true, ..all.clone() }, vec![0]),
        (GcOptions { unreferenced: true, max_age: Some(days(50)), ..all.clone() }, vec![0, 2]),
        (GcOptions { keys: vec![short], ..all.clone() }, vec![0]),
    ] {
        let report = place.store.gc(&options).unwrap();
        let removed: BTreeSet<&str> = report.removed.iter().map(|removed| removed.name.as_str()).collect();
        assert_eq!(removed, expected.iter().map(|index: &usize| keys[*index].as_str()).collect(), "{options:?}");
        assert_eq!(report.kept, 3 - expected.len(), "{options:?}");
        assert_eq!(place.store.list().unwrap().len(), 4, "a dry run removes nothing");
    }
    // What is being loaded stays.
    let Lookup::Found(found) = place.store.find(&keys[0]) else { panic!() };
    let report = place.store.gc(&GcOptions { max_bytes: Some(0), ..GcOptions::default() }).unwrap();
    assert_eq!((report.in_use, report.removed.len()), (vec![keys[0].to_string()], 2));
    drop(found);
    // Another model in the same place uses other builds.
    fs::write(engine.path().join("manifest.json"), "{}").unwrap();
    let report = place.store.gc(&GcOptions { unreferenced: true, ..GcOptions::default() }).unwrap();
    assert_eq!(report.removed.iter().filter(|removed| removed.name == keys[0].as_str()).count(), 1);
    assert_eq!(
        report.removed.iter().filter(|removed| removed.name.starts_with("references/")).count(),
        1,
        "{report:?}"
    );
    assert_eq!(place.store.list().unwrap().len(), 1, "a folder that is not ours stays");
    for (key, words) in
        [("abc", "holds no build abc"), ("", "the option `key` is empty, and every key begins like that")]
    {
        let error = place.store.gc(&GcOptions { keys: vec![key.into()], ..GcOptions::default() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn other_folders_are_no_stores() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letters.txt"), "").unwrap();
    let error = BuildStore::open(&home).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.to_string().contains("home is not a build cache (holds other files); name a new or empty folder"),
        "{error}"
    );
    assert_eq!(BuildStore::open_existing(&home).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(names(&home), ["letters.txt"]);
    assert!(BuildStore::open_existing(folder.path().join("none")).unwrap().is_none());
    assert!(!folder.path().join("none").exists());
    BuildStore::open(folder.path().join("new/store")).unwrap();
    assert!(BuildStore::open_existing(folder.path().join("new/store")).unwrap().is_some());
    fs::write(folder.path().join("new/store").join(MARKER), "{}").unwrap();
    assert_eq!(BuildStore::open(folder.path().join("new/store")).unwrap_err().kind(), ErrorKind::Usage);
    let older = folder.path().join("engines");
    assert_eq!(BuildStore::older_beside(&folder.path().join("builds")), None);
    fs::create_dir(&older).unwrap();
    fs::write(older.join(super::OLD_MARKER), "{}").unwrap();
    for error in [BuildStore::open(&older).unwrap_err(), BuildStore::open_existing(&older).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("holds builds of an older version"), "{error}");
    }
    assert_eq!(BuildStore::older_beside(&folder.path().join("builds")), Some(older.clone()));
    assert_eq!(BuildStore::older_beside(&older), None);
    let error = BuildStore::open(home.join("letters.txt/store")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn builds_share_what_they_have_timed() {
    let place = place();
    let (key, target) = (ingredients("a").key().unwrap(), ingredients("a").target);
    let take = |target: &KeyTarget| timing::Timing::take(&place.store, &key, target).unwrap();
    let (first, lost) = (take(&target), take(&target));
    fs::write(first.folder().join("sm90.timing"), "measured").unwrap();
    fs::write(lost.folder().join("sm90.timing"), "half a fi").unwrap();
    first.give_back().unwrap();
    drop(lost); // A build that failed.
    let next = take(&target);
    assert_eq!(fs::read(next.folder().join("sm90.timing")).unwrap(), b"measured");
    let changed = |sdk: &str, driver: &str, device: &str| KeyTarget {
        sdk: sdk.into(),
        driver: driver.into(),
        device: device.into(),
        ..target.clone()
    };
    for other in [changed("11", "", "drum"), changed("", "580", "drum"), changed("", "", "horn")] {
        assert!(names(take(&other).folder()).is_empty(), "timings hold for one compiler, driver and device");
    }
    drop(next);
    assert!(place.staged().is_empty());
}
