//! An engine whose model is no longer where it was exported from: `--weights` finds the files by their content.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::damage::{Copy, WEIGHTS};
use crate::common::shell::{Ran, Shell};
use crate::common::{copy_files, data, sha256};
use dbcache_trt::{EngineOptions, Model, Profile, read_tensors, write_stages, write_tensors};
use serde_json::{Value, json};

/// Two components of one layout, in files of one name: only their places and contents tell them apart.
const COMPONENTS: [&str; 2] = ["transformer", "transformer_2"];
const FILE: &str = "diffusion_pytorch_model.safetensors";
const REPOSITORY: &str = "hub/models--some--model";
const SNAPSHOT: &str = "hub/models--some--model/snapshots/0123abc";

/// A model of two transformers in every layout that a user has, and engines that were exported from places that are gone.
struct Place {
    shell: Shell,
}

impl Place {
    fn new() -> Self {
        let place = Self { shell: Shell::new() };
        let recorded = read_tensors(&data("families/wan_two/vectors.safetensors")).unwrap();
        let given =
            recorded.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("in.")?.into(), tensor.clone())));
        write_tensors(&place.path("two.safetensors"), &given.collect()).unwrap();
        for (k, component) in COMPONENTS.iter().enumerate() {
            let weights = packed(k);
            place.file(&format!("all/model/{component}/{FILE}"), &weights);
            place.file(&format!("renamed/{}/{FILE}", ["b", "a"][k]), &weights);
            place.file(&format!("named/{component}.safetensors"), &weights);
            place.file(&format!("{REPOSITORY}/blobs/{}", sha256(&weights)), &weights);
            let blob = format!("../../../blobs/{}", sha256(&weights));
            place.link(&blob, &format!("{SNAPSHOT}/{component}/{FILE}"));
            place
                .link(&format!("../../all/model/{component}/{FILE}"), &format!("linked/files/{component}.safetensors"));
            place.link(&format!("../../all/model/{component}"), &format!("linked/folders/{component}"));
        }
        // What else lies around there.
        place.file("all/model/vae/diffusion_pytorch_model.safetensors", b"of another component");
        place.file("all/model/model_index.json", b"{}");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shell.path(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    fn link(&self, target: &str, name: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        symlink(target, self.path(name)).unwrap();
    }

    /// An engine whose weights the manifest puts at these (folder, file).
    fn engine(&self, name: &str, weights: [(Value, String); 2], is_hashed: bool) {
        let engine = Copy::family("wan_two");
        for (k, (folder, file)) in weights.into_iter().enumerate() {
            if !folder.is_null() {
                fs::remove_file(engine.path(&format!("{}.safetensors", COMPONENTS[k]))).unwrap();
            }
            engine.set(&format!("/weights/{k}/folder"), folder);
            engine.set(&format!("/weights/{k}/file"), json!(file));
            if !is_hashed {
                engine.set(&format!("/weights/{k}/sha256"), Value::Null);
            }
        }
        fs::create_dir(self.path(name)).unwrap();
        copy_files(engine.folder.path(), &self.path(name), |_| true);
    }

    /// As exported from a folder, from a cache, and by a system whose paths are written otherwise.
    fn exported(&self, from: &str, is_hashed: bool) -> String {
        let name = format!("from-{from}-{is_hashed}");
        let weights = [0, 1].map(|k| match from {
            "folder" => (json!(format!("/gone/model/{}", COMPONENTS[k])), FILE.to_owned()),
            "drive" => (json!(format!("C:\\gone\\model\\{}", COMPONENTS[k])), FILE.to_owned()),
            "cache" => (json!("/gone/hub/models--some--model/blobs"), sha256(&packed(k))),
            _ => panic!("{from}"),
        });
        if !self.path(&name).exists() {
            self.engine(&name, weights, is_hashed);
        }
        name
    }

    fn run(&self, options: &str) -> Ran {
        let all = format!("{options} --inputs two.safetensors --steps 4");
        self.shell.run(&all.split_whitespace().collect::<Vec<_>>())
    }
}

fn packed(component: usize) -> Vec<u8> {
    fs::read(data("families/wan_two/engine").join(format!("{}.safetensors", COMPONENTS[component]))).unwrap()
}

#[test]
fn weights_are_found_in_every_layout() {
    let place = Place::new();
    place.run(&format!("--engine {} --save-latents right", data("families/wan_two/engine").display())).code(0);
    for (from, is_hashed, folder) in [
        ("folder", false, "all/model"),
        ("folder", false, "all/model/"),
        ("folder", false, "./all/../all/model"),
        ("folder", false, "all"),
        ("folder", false, "named"),
        ("folder", false, SNAPSHOT),
        ("folder", false, REPOSITORY),
        ("folder", false, "linked/files"),
        ("folder", false, "linked/folders"),
        ("folder", true, "renamed"),
        ("drive", false, "all/model"),
        ("drive", false, "all"),
        ("cache", false, "all/model"),
        ("cache", false, "named"),
        ("cache", false, SNAPSHOT),
        ("cache", false, REPOSITORY),
        ("cache", false, "hub"),
        ("cache", false, &format!("{REPOSITORY}/blobs")),
        ("cache", false, "linked/files"),
        ("cache", false, "linked/folders"),
        ("cache", true, "renamed"),
    ] {
        let engine = place.exported(from, is_hashed);
        let out = format!("stages-{}", folder.replace('/', "-"));
        let ran = place.shell.run(&["stages", "--engine", &engine, "--weights", folder, "-o", &out]);
        assert_eq!(ran.code, Some(0), "{from} {is_hashed} {folder}: {ran}");
        for (k, component) in COMPONENTS.iter().enumerate() {
            let found = fs::read(place.path(&out).join(format!("{component}.safetensors"))).unwrap();
            assert!(found == packed(k), "{from} {is_hashed} {folder}: {component} is another file");
        }
        fs::remove_dir_all(place.path(&out)).unwrap();
    }
}

#[test]
fn a_model_that_moved_gives_the_same_latents() {
    let place = Place::new();
    place.run(&format!("--engine {} --save-latents right", data("families/wan_two/engine").display())).code(0);
    for (from, folder) in [("folder", "all/model"), ("cache", SNAPSHOT)] {
        let engine = place.exported(from, false);
        // Of one layout are both transformers: swapped, they would load and give other latents.
        let ran = place.run(&format!("--engine {engine} --weights {folder} --check-outputs right --tolerance 0"));
        ran.code(0).stdout("latents equal those of right");
    }
}

#[test]
fn a_component_is_found_alone_or_within_a_pipeline() {
    let place = Place::new();
    let weights = fs::read(data("tiny-flux").join(WEIGHTS)).unwrap();
    place.file(&format!("pipeline/transformer/{FILE}"), &weights);
    place.file(&format!("pipeline/vae/{FILE}"), b"another");
    place.file("other-names/my-model/weights.safetensors", &weights);
    place.file("copies/a/x.safetensors", &weights);
    place.file("copies/b/x.safetensors", &weights);
    for (recorded, file) in
        [("/gone/transformer", FILE), ("../gone", FILE), ("/gone/blobs", "315b1e"), ("/", "x.safetensors")]
    {
        let engine = Copy::tiny();
        fs::remove_file(engine.path(WEIGHTS)).unwrap();
        engine.set("/weights/0/folder", json!(recorded));
        engine.set("/weights/0/file", json!(file));
        for folder in ["pipeline", "pipeline/transformer", "other-names", "other-names/my-model", "copies", "copies/b"]
        {
            let info = Model::open(
                engine.folder.path(),
                &EngineOptions { weights_folder: Some(place.path(folder)), ..EngineOptions::default() },
            );
            let info = info.unwrap_or_else(|error| panic!("{recorded} {file} {folder}: {error}")).info();
            assert!(
                Path::new(info.weights[0].1.as_ref().unwrap()).starts_with(place.path(folder)),
                "{:?}",
                info.weights
            );
        }
    }
}

#[test]
fn what_the_engine_holds_itself_may_stay() {
    let place = Place::new();
    let away = |k: usize| (json!(format!("/gone/{}", COMPONENTS[k])), FILE.to_owned());
    let own = |k: usize| (Value::Null, format!("{}.safetensors", COMPONENTS[k]));
    place.engine("half", [own(0), away(1)], false);
    place.engine("whole", [own(0), own(1)], false);
    fs::remove_dir_all(place.path("all/model/transformer")).unwrap();
    let inspect = |engine: &str, folder: &str| place.shell.run(&["inspect", engine, "--weights", folder]);
    inspect("half", "all/model").code(0).stdout("in the directory").stdout("all/model/transformer_2");
    inspect("whole", "named").code(0).stdout("/named");
    inspect("whole", "whole").code(0).stdout("in the directory");
    inspect("whole", "all/model").code(2).stderr("--weights all/model has no effect").stderr("leave it out");
    fs::remove_file(place.path("whole/transformer_2.safetensors")).unwrap();
    inspect("whole", "all/model").code(0).stdout("all/model/transformer_2");
}

#[test]
fn what_is_missing_is_told_with_what_is_there() {
    let place = Place::new();
    let (plain, cached) = (place.exported("folder", false), place.exported("cache", false));
    let hashed = place.exported("cache", true);
    let [first, second] = [packed(0), packed(1)];
    let model = |name: &str, first: &[u8], second: &[u8]| {
        place.file(&format!("{name}/transformer/{FILE}"), first);
        place.file(&format!("{name}/transformer_2/{FILE}"), second);
    };
    model("cut", &first, &second[1..]);
    model("garbage", &first, &vec![0xff; second.len()]);
    let mut other = second.clone();
    other[20] ^= 1;
    model("other", &first, &other);
    let mut changed = [first.clone(), second.clone()];
    changed.iter_mut().for_each(|bytes| *bytes.last_mut().unwrap() ^= 1);
    place.file("changed/a/x.safetensors", &changed[0]);
    place.file("changed/b/x.safetensors", &changed[1]);
    place.file(&format!("half/transformer/{FILE}"), &first);
    place.file(&format!("broken/transformer/{FILE}"), &first);
    place.link("../../blobs/nowhere", &format!("broken/transformer_2/{FILE}"));
    place.file(&format!("loop/transformer/{FILE}"), &first);
    place.link(FILE, &format!("loop/transformer_2/{FILE}"));
    place.link("round", "round");
    place.file(&format!("folder/transformer/{FILE}"), &first);
    place.file(&format!("folder/transformer_2/{FILE}/in"), b"");
    place.file("empty/README.md", b"");
    place.file("a-file", b"");
    for k in 0..10_001 {
        place.file(&format!("home/{k}"), b"");
    }
    place.link("../home", "homes/home");
    place.link(".", "empty/round");
    for (engine, folder, words) in [
        (&plain, "nowhere", vec!["folder nowhere cannot be opened", "--weights"]),
        (&plain, "round", vec!["folder round cannot be opened"]),
        (&plain, "a-file", vec!["a-file is not a folder", "--weights"]),
        (&plain, "empty", vec!["transformer/diffusion_pytorch_model.safetensors", "holds no other .safetensors file"]),
        (&plain, "home", vec!["home cannot be searched", "more than 10000 names", "folder of the model itself"]),
        (&plain, "homes", vec!["homes/home cannot be searched", "more than 10000 names"]),
        (
            &plain,
            "cut",
            vec!["weights `transformer_2.safetensors`", "of 128496 bytes", "transformer_2/diff", "has 128495 bytes"],
        ),
        (&plain, "garbage", vec!["transformer_2/diffusion_pytorch_model.safetensors cannot be read"]),
        (&plain, "other", vec!["other/transformer_2/diffusion_pytorch_model.safetensors has another header"]),
        (
            &plain,
            "half",
            vec!["half/transformer/diffusion_pytorch_model.safetensors is `transformer.safetensors`", "complete"],
        ),
        (&hashed, "half", vec!["weights `transformer_2.safetensors`", "is `transformer.safetensors`"]),
        (
            &cached,
            "renamed",
            vec!["renamed/a/diff", "renamed/b/diff", "have the size and header", "transformer.safetensors"],
        ),
        (&hashed, "changed", vec!["changed/a/x.safetensors has another content"]),
        (
            &plain,
            "half/transformer",
            vec!["fits `transformer.safetensors` and `transformer_2.safetensors`", "complete"],
        ),
        (&cached, "half", vec!["half/transformer/diffusion_pytorch_model.safetensors is `transformer.safetensors`"]),
        (&plain, "broken", vec!["broken/transformer_2/diffusion_pytorch_model.safetensors cannot be opened"]),
        (&plain, "loop", vec!["loop/transformer_2/diffusion_pytorch_model.safetensors cannot be opened"]),
        (&plain, "folder", vec!["transformer_2/diffusion_pytorch_model.safetensors is a folder"]),
        (&plain, "hub", vec!["hub holds no file of 128496 bytes", "transformer/diffusion_pytorch_model.safetensors"]),
    ] {
        let mut ran = place.shell.run(&["inspect", engine, "--weights", folder]).code(4);
        for word in words {
            ran = ran.stderr(word);
        }
    }
}

/// ONNX Runtime takes one folder for a graph, whose files are no links.
#[test]
fn shards_in_two_folders_are_an_error_with_a_remedy() {
    let place = Place::new();
    let engine = Copy::tiny();
    let weights = fs::read(engine.path(WEIGHTS)).unwrap();
    fs::remove_file(engine.path(WEIGHTS)).unwrap();
    engine.manifest(|manifest| {
        let mut second = manifest["weights"][0].clone();
        second["name"] = json!("second.safetensors");
        second["file"] = json!("second.safetensors");
        manifest["weights"].as_array_mut().unwrap().push(second);
    });
    engine.reference_key("location", "second.safetensors");
    place.file("disk-1/x", &weights);
    place.file("disk-2/y", &weights);
    place.link("../disk-1/x", &format!("model/{WEIGHTS}"));
    place.link("../disk-2/y", "model/second.safetensors");
    let inspect = || {
        let engine = engine.folder.path().to_str().unwrap();
        place.shell.run(&["inspect", engine, "--weights", "model"])
    };
    inspect().code(4).stderr("final.onnx").stderr("disk-1").stderr("disk-2").stderr("hard links").stderr("--pack");
    fs::rename(place.path("disk-2/y"), place.path("disk-1/y")).unwrap();
    fs::remove_file(place.path("model/second.safetensors")).unwrap();
    place.link("../disk-1/y", "model/second.safetensors");
    inspect().code(0);
}

/// Components in files of one name: none may be written over another.
#[test]
fn stages_keep_the_components_apart() {
    let place = Place::new();
    let options = EngineOptions { weights_folder: Some(place.path("all/model")), ..EngineOptions::default() };
    let engine = place.path(&place.exported("folder", false));
    write_stages(&engine, &options, &Profile::default(), &place.path("stages")).unwrap();
    let right = place.path("right");
    write_stages(&data("families/wan_two/engine"), &EngineOptions::default(), &Profile::default(), &right).unwrap();
    let list: Value = serde_json::from_slice(&fs::read(right.join("stages.json")).unwrap()).unwrap();
    let named = |key: &str| list[key].as_array().unwrap().clone();
    let graphs = named("graphs").into_iter().map(|graph| graph["file"].clone());
    for name in graphs.chain(named("weights")) {
        let name = name.as_str().unwrap();
        assert_eq!(fs::read(place.path("stages").join(name)).unwrap(), fs::read(right.join(name)).unwrap(), "{name}");
    }
    for (k, component) in COMPONENTS.iter().enumerate() {
        assert_eq!(fs::read(place.path(&format!("all/model/{component}/{FILE}"))).unwrap(), packed(k));
    }
}
