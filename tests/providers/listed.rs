//! What providers say of themselves, and what happens where one cannot be used. The tests' own library is ONNX Runtime's for
//! the CPU; one test needs that for GPUs, and is run by hand.

use dbcache_trt::library_places;
use serde_json::json;

use crate::common::data;
use crate::common::shell::Shell;

/// A machine on which setup has installed ONNX Runtime for the CPU and no provider, whatever this one has.
fn without_providers() -> Shell {
    let mut shell = Shell::new();
    let library = library_places(&Default::default()).into_iter().find(|place| place.examine().is_ok());
    let home = shell.path("home");
    shell.variables = vec![("ORT_DYLIB_PATH", library.unwrap().path), ("DBCACHE_TRT_HOME", home)];
    shell
}

#[test]
fn every_provider_is_listed_with_what_is_missing() {
    let shell = without_providers();
    let mut ran = shell.run(&["providers", "--options"]).code(0);
    for words in [
        "cpu          usable, version ",
        "cuda         not usable",
        "is built without it; run `dbcache-trt setup --provider cuda`",
        "driver: ",
        "tensorrt-rtx not usable",
        "openvino     not usable",
        "its plugin is not at ",
        "pip install onnxruntime-ep-webgpu",
        "workspace            most scratch bytes that a kernel may take; bytes, such as 512M or 4G, of at least 1M",
    ] {
        ran = ran.stdout(words);
    }
    let report = shell.run(&["providers", "--json"]).code(0).json();
    assert_eq!(report["version"], 1);
    let providers = report["providers"].as_array().unwrap();
    let names: Vec<&str> = providers.iter().map(|provider| provider["provider"].as_str().unwrap()).collect();
    assert_eq!(names, ["cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino", "webgpu"]);
    assert_eq!((providers[0]["usable"].clone(), providers[0]["missing"].clone()), (json!(true), json!(null)));
    assert!(providers[1..].iter().all(|provider| provider["usable"] == json!(false)));
    assert!(providers.iter().all(|provider| provider["compiled_in"] == json!(true)));
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        for provider in &providers[1..] {
            let name = provider["provider"].as_str().unwrap();
            assert_eq!(provider["remedy"], json!(format!("dbcache-trt setup --provider {name}")));
        }
    }
}

#[test]
fn a_provider_that_cannot_be_used_is_an_error_with_the_remedy() {
    let shell = without_providers();
    let engine = data("tiny-flux").display().to_string();
    for (provider, words) in [
        ("cuda", "the provider `cuda` cannot be used: the ONNX Runtime at "),
        ("tensorrt:fp16", "is built without it; "),
        ("tensorrt,cuda", "; and then: the provider `cuda` cannot be used"),
        ("tensorrt-rtx:device=1", "run `dbcache-trt setup --provider tensorrt-rtx`, or install it"),
        ("tensorrt-rtx,cuda", "; and then: the provider `cuda` cannot be used"),
        ("openvino:library=/no/such.so", "its plugin is not at /no/such.so"),
        ("webgpu", "pip install onnxruntime-ep-webgpu"),
    ] {
        shell.tiny(&format!("--provider {provider}")).code(10).stderr(words);
    }
    for (provider, words) in [
        ("cuda:devise=1", "there is no option `devise` (did you mean `device`?)"),
        ("cuda:device=1,device=2", "`device` is given twice"),
        ("cpu:x", "this provider has none"),
    ] {
        shell.run(&["--engine", &engine, "--provider", provider]).code(2).stderr(words);
    }
    shell.tiny("--allow-fallback").code(2).stderr("--allow-fallback has no effect");
    let place = shell.tiny("--cache f1b0 --cache-place host").code(2);
    place.stderr("--cache-place has no effect: all tensors of the provider `cpu` lie in host memory");
}

/// A list falls back from provider to provider, and says so.
#[test]
fn the_first_of_a_list_that_can_be_used_runs_everything() {
    let shell = without_providers();
    let engine = crate::common::emoji().display().to_string();
    let line = ["--engine", &engine, "--prompt", "lemon", "--steps", "2", "--provider", "tensorrt,cpu", "--json"];
    let report = shell.run(&line).code(0).json();
    let trace = &report["traces"][0];
    assert_eq!(trace["provider"], "cpu");
    let told = trace["warnings"].as_array().unwrap().iter().filter_map(|warning| warning.as_str());
    assert!(told.into_iter().any(|warning| warning.contains("the provider `tensorrt` cannot be used")), "{trace}");
}

/// With the library of onnxruntime-gpu 1.31.1 on a machine without CUDA: what is missing is named one by one.
#[test]
#[ignore = "needs onnxruntime-gpu: ORT_GPU_LIBRARY=…/libonnxruntime.so.1.31.1 cargo test --test providers listed:: -- --ignored"]
fn without_cuda_the_missing_library_is_named() {
    let library = std::env::var("ORT_GPU_LIBRARY").unwrap();
    let shell = Shell::new();
    for (provider, words) in [
        ("cuda", "libonnxruntime_providers_cuda.so needs libcublasLt.so.13"),
        ("tensorrt", "libonnxruntime_providers_tensorrt.so needs libcublas.so.13"),
    ] {
        let ran = shell.tiny(&format!("--provider {provider} --ort-library {library}")).code(10);
        ran.stderr(words).stderr("run `dbcache-trt setup --provider cuda`");
    }
}
