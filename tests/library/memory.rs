//! What a cache keeps: predicted, counted, and measured; and the limit that refuses it.

use crate::common::shell::Shell;
use crate::common::{data, emoji, tiny_inputs};
use dbcache_trt::cache::PolicyConfig;
use dbcache_trt::trace::Trace;
use dbcache_trt::{Engine, EngineOptions, ErrorKind, Inputs, Model, RequestOptions, StagesChoice};
use ndarray::{Axis, concatenate};

/// The small tensors that are not counted: scalars of diffs, and weights of forecasts.
const UNCOUNTED: f64 = 0.05;
/// Text tokens of the recorded inputs.
const TEXT: u64 = 12;

/// One block a stage, so that a run without a cache has the same cuts as one with it.
fn tiny() -> Engine {
    let options = EngineOptions { stages: StagesChoice::PerBlock, ..EngineOptions::default() };
    Engine::load(data("tiny-flux"), &options).unwrap()
}

/// The recorded inputs, `batch` times.
fn inputs(is_guided: bool, batch: usize) -> Inputs {
    let mut inputs = tiny_inputs(is_guided);
    for tensor in inputs.tensors.values_mut() {
        let views = vec![tensor.view(); batch];
        *tensor = concatenate(Axis(0), &views).unwrap();
    }
    inputs
}

fn options(cache: &str, steps: usize, is_guided: bool) -> RequestOptions {
    let cache: PolicyConfig = cache.parse().unwrap();
    RequestOptions { cache, steps: Some(steps), true_cfg: is_guided.then_some(2.0), ..RequestOptions::default() }
}

fn run(engine: &Engine, options: &RequestOptions, batch: usize) -> Trace {
    let request = engine.request(&inputs(options.true_cfg.is_some(), batch), options).unwrap();
    request.run(&mut ()).unwrap().trace
}

#[test]
fn what_is_predicted_is_kept_and_is_what_memory_grows_by() {
    let engine = tiny();
    let mut failures = Vec::new();
    for (tag, is_guided, batch) in [
        ("none", false, 1),
        ("f1b0w2r0.9", false, 1),
        ("f1b0w2r0.9", true, 2),
        ("f4b2w2r0.9", false, 1),
        ("f8b4w2r0.9", false, 1),
        ("f12b0w2r0.9", false, 1),
        ("f1b0w2r0.9ds3", false, 1),
        ("f1b0w2l0.9ic0.1", false, 1),
        ("f1b0w8r0.9mc2_t1", false, 1),
        ("f1b0w8r0.9mc2_t2", true, 1),
        ("f1b0w8r0.9mc2_t3_ce0", false, 2),
        ("f1b0w8r0.9mc2_t1_hs1", false, 1),
        ("f1b0w8r0.9mc2_foca", false, 1),
        ("f1b0w8r0.9mc2_foca_ch0", true, 1),
        ("f1b0w8r0.9mc2_dmd4", false, 1),
        ("f1b0w8r0.9mc2_dmd6", true, 2),
        ("f2b4w2r0.9mc3_id0.2nt0.5", false, 1),
        ("f1b4w8r0.9mc2ds2_id0_t1", false, 1),
        ("f1b0w2r0.9al1", false, 1),
        ("prune_f1b1w2r0.3", false, 1),
        ("f1b1w2r0.9sl1", false, 1),
        ("f2b0w8r0.9mc2sl1_t1", true, 2),
        ("f1b3w2r0.9mc3sl1_id0nt0.5", false, 1),
        ("prune_f1b1w2r0.3sl1", true, 1),
        ("prune_f1b1np3w2r0.3", true, 1),
        ("prune_f0b0w2r0.3ds4", false, 2),
        (
            r#"{"cache_type": "prune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.3, "compare_all_streams": true}"#,
            false,
            1,
        ),
        (
            r#"{"cache_type": "prune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.3, "compare_all_streams": true, "downsample_factor": 3}"#,
            false,
            1,
        ),
        ("prune_f1b1w8r0.4_t1", false, 1),
        ("prune_f1b1w8r0.4_foca", false, 1),
        ("prune_f1b1w8r0.4_dmd4", false, 1),
    ] {
        let options = options(tag, 28, is_guided);
        let predicted = engine.cache_bytes(&RequestOptions { batch: Some(batch), ..options.clone() }, Some(TEXT));
        let predicted = predicted.unwrap();
        let trace = run(&engine, &options, batch);
        if predicted != trace.cache_bytes {
            failures.push(format!("{tag}: predicted {predicted}, kept {}", trace.cache_bytes));
        }
        let uncached = run(&engine, &RequestOptions { cache: PolicyConfig::None, ..options }, batch);
        let growth = trace.tensor_bytes - uncached.tensor_bytes;
        let total = trace.cache_bytes.total();
        if growth < total || (growth - total) as f64 > UNCOUNTED * total as f64 {
            failures.push(format!("{tag}: memory grew by {growth}, counted are {total}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn the_shipped_model_is_predicted_by_its_tokenizer() {
    let engine = Engine::load(emoji(), &EngineOptions::default()).unwrap();
    for (tag, guidance, batch) in [("f8b16w2r0.2", None, 1), ("f1b0w4r0.3mc2_t1", Some(2.0), 2)] {
        let options = RequestOptions { guidance, batch: Some(batch), ..options(tag, 8, false) };
        let predicted = Model::open(emoji(), &EngineOptions::default()).unwrap().cache_bytes(&options, None).unwrap();
        assert_eq!(predicted, engine.cache_bytes(&options, None).unwrap());
        let trace = engine.request(&Inputs::prompt("lemon"), &options).unwrap().run(&mut ()).unwrap().trace;
        assert_eq!(trace.cache_bytes, predicted, "{tag}");
        let refused = engine.cache_bytes(&options, Some(8)).err().unwrap();
        assert!(refused.kind() == ErrorKind::Usage && refused.to_string().contains("tokenizer reads 8 tokens"));
    }
}

#[test]
fn a_limit_refuses_before_anything_is_allocated() {
    let engine = tiny();
    let cached = options("f1b0w2r0.9", 4, true);
    let bytes = engine.cache_bytes(&cached, Some(TEXT)).unwrap().total();
    // Two branches keep more than one: the number of branches counts.
    let alone = engine.cache_bytes(&RequestOptions { true_cfg: None, ..cached.clone() }, Some(TEXT)).unwrap();
    assert!(alone.total() < bytes);
    let with =
        |limit: u64| engine.request(&inputs(true, 1), &RequestOptions { cache_memory: Some(limit), ..cached.clone() });
    assert!(with(bytes).is_ok());
    let error = with(bytes - 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    for words in [bytes.to_string(), (bytes - 1).to_string(), "smaller size or batch".to_owned(), "no cache".to_owned()]
    {
        assert!(error.to_string().contains(&words), "{error}");
    }
    // Without a known text length it is that of the longest text.
    assert!(engine.cache_bytes(&cached, None).unwrap().total() > bytes);
    assert!(engine.cache_bytes(&cached, Some(513)).is_err_and(|error| error.kind() == ErrorKind::Input));
    // What is known of a request refuses what the request refuses.
    let asked = |limit| engine.cache_bytes(&RequestOptions { cache_memory: Some(limit), ..cached.clone() }, Some(TEXT));
    assert_eq!(asked(bytes).unwrap().total(), bytes);
    assert_eq!(asked(bytes - 1).unwrap_err().field(), Some("cache-memory"));
}

/// Nothing is kept, so that no limit could refuse it.
#[test]
fn a_limit_without_effect_is_refused() {
    let engine = tiny();
    let none = RequestOptions { cache_memory: Some(1 << 30), ..options("none", 4, false) };
    let refused = [engine.request(&inputs(false, 1), &none).err(), engine.cache_bytes(&none, Some(TEXT)).err()];
    for error in refused.map(Option::unwrap) {
        assert_eq!((error.kind(), error.field()), (ErrorKind::Usage, Some("cache-memory")));
        let message = error.to_string();
        assert!(message.contains("`none` keeps nothing; leave it out, or choose a cache"), "{message}");
    }
    // Where all blocks always run nothing is reused; what is compared is kept all the same, and counts.
    let idle = |limit| RequestOptions { cache_memory: Some(limit), ..options("f12b0w2", 4, false) };
    assert!(engine.request(&inputs(false, 1), &idle(1 << 30)).is_ok());
    assert!(engine.request(&inputs(false, 1), &idle(1)).is_err());
}

#[test]
fn the_command_predicts_and_limits() {
    let shell = Shell::new();
    let run = |arguments: String| shell.run(&arguments.split_whitespace().collect::<Vec<_>>());
    let (emoji, tiny) = (emoji().display().to_string(), data("tiny-flux").display().to_string());
    let total = |options: &str| {
        let json = run(format!("inspect {emoji} --json --cache f1b0w2r0.2 {options}")).json();
        assert_eq!(json["cache"]["cache"], "f1b0w2i1r0.2");
        json["cache"]["bytes"]["total"].as_u64().unwrap()
    };
    let one = total("");
    assert!(total("--batch 2") == 2 * one && total("--guidance 2") > one);
    assert!(total("--cache-dtype f16") < one);
    let text = run(format!("inspect {emoji} --cache f1b0w2r0.2 --size 64x64 --steps 4")).code(0);
    text.stdout("cache       f1b0w2i1r0.2 keeps at most ").stdout("= residuals ");
    let longest = run(format!("inspect {tiny} --cache f1b0")).code(0).out;
    assert_ne!(longest, run(format!("inspect {tiny} --cache f1b0 --text-length 12 --true-cfg 2")).code(0).out);
    for (arguments, code, words) in [
        (format!("inspect {emoji} --batch 2"), 2, "--cache"),
        (format!("inspect {emoji} --cache f1b0 --size 65x64"), 5, "--size is 65x64"),
        (format!("inspect {emoji} --cache f60b0"), 2, "more than the model's 57 blocks"),
        (format!("inspect {emoji} --cache f1b0 --text-length 8"), 2, "tokenizer reads 8 tokens"),
    ] {
        run(arguments).code(code).stderr(words);
    }
    shell.lemon("--steps 2 --cache f1b0 --cache-memory 1K").code(2).stderr("allows 1024");
    shell.lemon("--steps 2 --cache-memory 1M").code(2).stderr("--cache-memory has no effect: the cache `none` keeps");
    shell.lemon("--steps 2 --cache-memory 1T").code(2).stderr("such as 1048576, 512K");
    shell.lemon("--steps 2 --cache f1b0w1r0.9 --cache-memory 1M").code(0).stdout("memory   cache ");
    shell.run(&["inspect", "out.png", "--cache", "f1b0"]).code(2).stderr("have no effect on a picture");
}
