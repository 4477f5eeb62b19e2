//! Builds and timings on another machine, and what is said of builds for something else.

use super::*;
use crate::runtime::build_cache::differences::{Differences, MissingBuilds};
use crate::runtime::driver::Gpu;
use crate::runtime::provider::gpu_target::GpuTarget;

/// What TensorRT compiles for on a machine whose option `device` leads to this GPU.
fn on_gpu(name: &str, capability: (i32, i32), is_hardware_compatible: bool) -> GpuTarget {
    let gpu = Gpu { name: name.into(), memory_bytes: None, compute_capability: Some(capability) };
    GpuTarget::of(&gpu, is_hardware_compatible).unwrap()
}

fn for_device(device: &str) -> Ingredients {
    let mut ingredients = ingredients("a");
    ingredients.target.device = device.into();
    ingredients
}

#[test]
fn a_build_is_taken_on_another_machine_with_the_same_gpu_and_refused_by_name_on_another() {
    let place = place();
    let [h200, same, l40s] = [("NVIDIA H200", (9, 0)), ("NVIDIA H200", (9, 0)), ("NVIDIA L40S", (8, 9))]
        .map(|(name, capability)| for_device(&on_gpu(name, capability, false).device));
    place.store.find_or_build("block_000.onnx", &h200, true, build).unwrap();
    let (_, outcome) = place.store.find_or_build("block_000.onnx", &same, false, no_build).unwrap();
    assert_eq!(outcome, StoreOutcome::Loaded);
    let similar = place.store.similar(&[&same, &l40s, &ingredients("b")], "GPU").unwrap();
    let told: Vec<Option<String>> = similar.iter().map(|found| found.as_ref().map(ToString::to_string)).collect();
    let refused =
        "for the GPU `NVIDIA H200, compute capability 9.0`; this one is `NVIDIA L40S, compute capability 8.9`";
    assert_eq!(told, [None, Some(refused.to_owned()), None]);

    // With hardware compatibility the two are one.
    let [h200, l40s] = [("NVIDIA H200", (9, 0)), ("NVIDIA L40S", (8, 9))]
        .map(|(name, capability)| for_device(&on_gpu(name, capability, true).device));
    place.store.find_or_build("block_000.onnx", &h200, true, build).unwrap();
    let (_, outcome) = place.store.find_or_build("block_000.onnx", &l40s, false, no_build).unwrap();
    assert_eq!(outcome, StoreOutcome::Loaded);
}

/// The nearest build is the one that is told of.
#[test]
fn the_build_that_differs_least_is_named() {
    let place = place();
    let mut far = for_device("horn");
    far.target.onnxruntime = "1.30".into();
    for held in [far, for_device("trumpet")] {
        place.store.find_or_build("block_000.onnx", &held, true, build).unwrap();
    }
    let mut other_provider = for_device("drum");
    other_provider.target.provider = "OtherProvider".into();
    let similar = place.store.similar(&[&for_device("drum"), &other_provider], "device").unwrap();
    let told: Vec<Option<String>> = similar.iter().map(|found| found.as_ref().map(ToString::to_string)).collect();
    assert_eq!(told, [Some("for the device `trumpet`; this one is `drum`".to_owned()), None]);
}

#[test]
fn what_differs_is_told_old_against_new() {
    type Change = fn(&mut Ingredients);
    let cases: &[(Change, &str)] = &[
        (|i| i.target.device = "trumpet".into(), "for the GPU `drum`; this one is `trumpet`"),
        (|i| i.target.driver = "590".into(), "for the driver `580`; this one is `590`"),
        (|i| i.target.onnxruntime = "1.32".into(), "for ONNX Runtime `1.31`; this one is `1.32`"),
        (|i| i.target.sdk = "a 1, b 3".into(), "for the compiler `b 2`; this one is `b 3`"),
        (
            |i| drop(i.target.options.insert("level".into(), "5".into())),
            "for the provider's settings `level=3`; this one is `level=5`",
        ),
        (
            |i| i.target.options = BTreeMap::from([("fp16".into(), "1".into())]),
            "for the provider's settings `no fp16, level=3`; this one is `fp16=1, no level`",
        ),
        (
            |i| drop(i.target.session.insert("embed".into(), "0".into())),
            "for the session's settings `no embed`; this one is `embed=0`",
        ),
        (
            |i| i.profiles.get_mut("image").unwrap()[2] = 4096,
            "for the profile `image=64..1024, usually 256`; this one is `image=64..4096, usually 256`",
        ),
        (
            |i| i.profiles = BTreeMap::from([("image".into(), [64, 64, 64])]),
            "for the profile `image=64..1024, usually 256`; this one is `image=64`",
        ),
        (|i| i.profiles.clear(), "for the profile `image=64..1024, usually 256`; this one is `any image`"),
        (|i| i.key_version = 2, "for the version of keys `1`; this one is `2`"),
        (
            |i| {
                i.target.device = "trumpet".into();
                i.target.onnxruntime = "1.32".into();
            },
            "for the GPU `drum` and ONNX Runtime `1.31`; here they are `trumpet` and `1.32`",
        ),
    ];
    let mut held = ingredients("a");
    held.target.options.insert("level".into(), "3".into());
    [held.target.driver, held.target.onnxruntime, held.target.sdk] = ["580", "1.31", "a 1, b 2"].map(str::to_owned);
    for (change, words) in cases {
        let mut wanted = held.clone();
        change(&mut wanted);
        assert_eq!(Differences::between(&held, &wanted, "GPU").to_string(), *words);
    }
}

#[test]
fn missing_builds_are_counted_by_what_the_cache_holds() {
    for (held_for, lines) in [
        (&[][..], &[][..]),
        (&[None, None], &[]),
        (&[Some("for x")], &["1 build is missing: the cache holds it for x"]),
        (&[Some("for x"), Some("for x")], &["2 builds are missing: the cache holds them for x"]),
        (
            &[Some("for y"), None, Some("for x"), Some("for y")],
            &[
                "4 builds are missing: the cache holds 1 of them for x",
                "4 builds are missing: the cache holds 2 of them for y",
            ],
        ),
    ] {
        let mut missing = MissingBuilds::default();
        held_for.iter().for_each(|held_for| missing.add(*held_for));
        assert_eq!(missing.lines(), lines);
    }
}

/// What one machine has timed serves another with the same GPU, and builds for several GPUs share no timings.
#[test]
fn timings_are_found_on_another_machine_with_the_same_gpu() {
    let place = place();
    let key = ingredients("a").key().unwrap();
    let take = |name: &str, capability: (i32, i32), is_hardware_compatible: bool| {
        let gpu = on_gpu(name, capability, is_hardware_compatible);
        timing::Timing::take(&place.store, &key, &for_device(&gpu.timed_on).target).unwrap()
    };
    let first = take("NVIDIA H200", (9, 0), false);
    fs::write(first.folder().join("sm90.timing"), "measured").unwrap();
    first.give_back().unwrap();
    for is_hardware_compatible in [false, true] {
        let again = take("NVIDIA H200", (9, 0), is_hardware_compatible);
        assert_eq!(fs::read(again.folder().join("sm90.timing")).unwrap(), b"measured");
        assert!(names(take("NVIDIA H100", (9, 0), is_hardware_compatible).folder()).is_empty());
    }
}
