//! The library from outside: requests that share one engine do not meet, and every way to stop one.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crate::common::damage::Copy;
use crate::common::{data, emoji, relative_l1, tiny_inputs};
use dbcache_trt::cache::{Branch, PolicyConfig};
use dbcache_trt::trace::{StepRecord, Warning};
use dbcache_trt::{
    CancelToken, Engine, EngineOptions, ErrorKind, Inputs, LibraryOptions, Output, Request, RequestOptions,
    read_tensors,
};
use ndarray::{ArrayD, Axis};
use serde_json::Value;

/// One picture and a batch: kernels may sum in another order.
const LATENT_RELATIVE_L1: f64 = 1e-5;

static TINY: LazyLock<Engine> = LazyLock::new(|| Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap());
static EMOJI: LazyLock<Engine> = LazyLock::new(|| Engine::load(emoji(), &EngineOptions::default()).unwrap());

fn options(cache: &str, steps: usize) -> RequestOptions {
    RequestOptions { cache: cache.parse().unwrap(), steps: Some(steps), ..Default::default() }
}

fn run(engine: &Engine, inputs: &Inputs, options: &RequestOptions) -> Output {
    engine.request(inputs, options).unwrap().run(&mut ()).unwrap()
}

/// Bits of the latents; branch, action, bits of the diff, and blocks of each step.
type Facts = (Vec<u32>, Vec<(Branch, char, Option<u32>, usize)>);

/// Everything that must be equal to the bit.
fn facts(output: &Output) -> Facts {
    let facts = |r: &StepRecord| (r.branch, r.decision.action.letter(), r.diff.map(f32::to_bits), r.blocks_run);
    (output.latents.iter().map(|x| x.to_bits()).collect(), output.trace.records.iter().map(facts).collect())
}

#[test]
fn concurrent_requests_equal_their_solo_runs() {
    let mut other = tiny_inputs(false);
    other
        .tensors
        .insert("latents".into(), read_tensors(&data("oracle/oracle.safetensors")).unwrap()["in.latents_b"].clone());
    let requests = [
        (tiny_inputs(false), options("f1b0w2r0.1", 28)),
        (other, options("f2b2w4r0.05mc2", 40)),
        (tiny_inputs(true), RequestOptions { true_cfg: Some(2.0), ..options("f1b1w2r0.1cds0", 20) }),
    ];
    let solo: Vec<_> = requests.iter().map(|(inputs, options)| facts(&run(&TINY, inputs, options))).collect();
    assert!(solo.iter().all(|(_, records)| records.iter().any(|record| record.1 == 'S')));
    thread::scope(|scope| {
        for ((inputs, options), solo) in requests.iter().zip(&solo) {
            scope.spawn(move || {
                for _ in 0..4 {
                    assert!(facts(&run(&TINY, inputs, options)) == *solo, "{}", options.cache);
                }
            });
        }
        scope.spawn(|| {
            for steps in 1..10 {
                let outcome =
                    TINY.request(&requests[0].0, &options("f1b0w2r0.1", 28)).unwrap().run(&mut break_after(steps));
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
            }
        });
    });
}

fn break_after(records: usize) -> impl FnMut(&StepRecord) -> ControlFlow<()> {
    let mut seen = 0;
    move |_| {
        seen += 1;
        if seen == records { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn the_same_request_gives_the_same_bits() {
    let options = RequestOptions { guidance: Some(2.0), seed: 9, ..options("f1b0w2r0.3", 8) };
    let (one, two) = (run(&EMOJI, &Inputs::prompt("lemon"), &options), run(&EMOJI, &Inputs::prompt("lemon"), &options));
    assert!(facts(&one) == facts(&two));
    assert_eq!(one.images, two.images);
}

#[test]
fn a_batch_is_its_pictures() {
    let batch = RequestOptions { batch: Some(2), seed: 7, ..options("none", 4) };
    let both = run(&EMOJI, &Inputs::prompt("red apple"), &batch);
    assert_eq!((both.images.len(), both.latents.shape()), (2, [2, 64, 192].as_slice()));
    for (k, picture) in both.images.iter().enumerate() {
        let single = RequestOptions { seed: 7 + k as u64, ..options("none", 4) };
        let one = run(&EMOJI, &Inputs::prompt("red apple"), &single);
        let part = both.latents.index_axis(Axis(0), k).insert_axis(Axis(0)).to_owned();
        let error = relative_l1(&part, &one.latents);
        assert!(error <= LATENT_RELATIVE_L1, "{k}: {error:e}");
        assert!(picture.psnr(&one.images[0]).unwrap() > 60.0);
    }
}

#[test]
fn guidance_runs_two_branches() {
    let guided = RequestOptions { guidance: Some(2.0), ..options("none", 2) };
    let plain = run(&EMOJI, &Inputs::prompt("lemon"), &options("none", 2));
    let empty = run(&EMOJI, &Inputs::prompt("lemon"), &guided);
    let inputs = Inputs { negative_prompt: Some("melon".into()), ..Inputs::prompt("lemon") };
    let melon = run(&EMOJI, &inputs, &guided);
    let runs = |output: &Output| [Branch::Cond, Branch::Uncond].map(|branch| output.trace.decisions(branch));
    assert_eq!(runs(&plain), ["CC", ""]);
    assert_eq!((runs(&empty), runs(&melon)), (["CC".into(), "CC".into()], ["CC".into(), "CC".into()]));
    assert!(relative_l1(&empty.latents, &plain.latents) > 0.01);
    assert!(relative_l1(&melon.latents, &empty.latents) > 0.01);
}

#[test]
fn every_way_to_cancel() {
    let inputs = tiny_inputs(false);
    let cancelled = |request: Request, observer: &mut dyn dbcache_trt::Observer| {
        let error = request.run(observer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        error.to_string()
    };
    // Before it runs.
    let long = options("f1b0w2r0.1", 10_000);
    let request = TINY.request(&inputs, &long).unwrap();
    long.cancel.cancel();
    assert!(cancelled(request, &mut |_: &StepRecord| panic!("a step ran")).contains("step 0"));
    // By the observer, which has seen what the trace would hold.
    let cancel = CancelToken::default();
    let long = RequestOptions { cancel: cancel.clone(), ..options("f1b0w2r0.1", 10_000) };
    assert!(cancelled(TINY.request(&inputs, &long).unwrap(), &mut break_after(5)).contains("step 4"));
    assert!(!cancel.is_cancelled());
    // By another thread, within a block; the request runs on a thread that did not make it.
    let request = TINY.request(&inputs, &long).unwrap();
    let running = thread::spawn(move || request.run(&mut ()).unwrap_err().kind());
    thread::sleep(Duration::from_millis(100));
    cancel.cancel();
    assert_eq!(running.join().unwrap(), ErrorKind::Cancelled);
    // By a panic of the observer, which the engine survives.
    let request = TINY.request(&inputs, &options("f1b0w2r0.1", 28)).unwrap();
    let mut panics = |_: &StepRecord| -> ControlFlow<()> { panic!("the observer's own") };
    assert!(catch_unwind(AssertUnwindSafe(|| request.run(&mut panics))).is_err());
    assert_eq!(run(&TINY, &inputs, &options("f1b0w2r0.1", 28)).trace.records.len(), 28);
}

#[test]
fn observers_see_the_trace() {
    let mut seen = Vec::new();
    let mut observer = |record: &StepRecord| {
        seen.push(record.clone());
        ControlFlow::Continue(())
    };
    let request = TINY.request(&tiny_inputs(false), &options("f1b0w2r0.1", 12)).unwrap();
    assert_eq!((request.steps(), request.records(), request.batch()), (12, 12, 1));
    let output = request.run(&mut observer).unwrap();
    assert_eq!(seen, output.trace.records);
}

#[test]
fn a_request_outlives_its_engine() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let request = engine.request(&tiny_inputs(false), &options("f1b0w2r0.1", 28)).unwrap();
    drop(engine);
    let output = request.run(&mut ()).unwrap();
    assert!(facts(&output) == facts(&run(&TINY, &tiny_inputs(false), &options("f1b0w2r0.1", 28))));
}

#[test]
fn one_process_has_one_pool() {
    let threads = TINY.library().threads;
    let library = LibraryOptions { threads: Some(threads + 1), ..Default::default() };
    let other = EngineOptions { library, ..Default::default() };
    let error = Engine::load(data("tiny-flux"), &other).err().unwrap();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Usage, Some("threads")), "{error}");
    for words in [format!("{threads} thread(s)"), format!("the option `threads` is {}", threads + 1)] {
        assert!(error.to_string().contains(&words), "{error}");
    }
    let library = LibraryOptions { threads: Some(threads), ..Default::default() };
    Engine::load(data("tiny-flux"), &EngineOptions { library, ..Default::default() }).unwrap();
}

#[test]
fn numbers_that_are_none_are_refused_by_name() {
    for (name, number) in [("latents", f32::NAN), ("prompt_embeds", f32::INFINITY), ("pooled_projections", f32::NAN)] {
        let mut inputs = tiny_inputs(false);
        inputs.tensors.get_mut(name).unwrap().iter_mut().last().into_iter().for_each(|last| *last = number);
        refused(&TINY, &inputs, &options("none", 2), ErrorKind::Numeric, &format!("input `{name}` holds {number}"));
    }
    let mut inputs = tiny_inputs(false);
    inputs.tensors.insert("sigmas".into(), ArrayD::from_shape_vec(vec![2], vec![1.0, f32::NAN]).unwrap());
    refused(&TINY, &inputs, &RequestOptions::default(), ErrorKind::Numeric, "input `sigmas` holds NaN");
    for sigmas in [[f32::MAX, 0.5], [f32::MAX, f32::MIN], [f32::MIN_POSITIVE, f32::MAX], [0.5, 0.5]] {
        inputs.tensors.insert("sigmas".into(), ArrayD::from_shape_vec(vec![2], sigmas.to_vec()).unwrap());
        refused(&TINY, &inputs, &RequestOptions::default(), ErrorKind::Input, "input `sigmas` must be one row");
    }
    let options = RequestOptions { guidance: Some(f32::NAN), ..Default::default() };
    refused(&TINY, &tiny_inputs(false), &options, ErrorKind::Usage, "the option `guidance` is NaN");
}

fn refused(engine: &Engine, inputs: &Inputs, options: &RequestOptions, kind: ErrorKind, words: &str) {
    let error = engine.request(inputs, options).err().unwrap();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "`{words}` is missing: {error}");
}

#[test]
fn prompts_of_any_length() {
    for prompt in ["x".repeat(10 << 20), "lemon ".repeat(2 << 20), "\0".repeat(10 << 20)] {
        refused(&EMOJI, &Inputs::prompt(prompt), &options("none", 1), ErrorKind::Input, "at most 65536 are read");
    }
    refused(&EMOJI, &Inputs::prompt("x\0y"), &options("none", 1), ErrorKind::Input, "does not know the word");

    // A model of words refuses a prompt that is too long, a model of text reads its beginning and says so.
    let long = Inputs::prompt("red ".repeat(9));
    refused(&EMOJI, &long, &options("none", 1), ErrorKind::Input, "the prompt has 9 words; the model takes at most 8");
    let copy = Copy::emoji();
    copy.set("/text/tokenizers/words/unknown_id", Value::Null);
    let engine = Engine::load(copy.folder.path(), &EngineOptions::default()).unwrap();
    let warnings = run(&engine, &long, &options("none", 1)).trace.warnings;
    let cut = "the prompt is cut: tokenizer `words` reads its first 8 tokens";
    assert_eq!(warnings, [Warning::Setting(cut.into())]);
    assert_eq!(run(&engine, &Inputs::prompt("red apple"), &options("none", 1)).trace.warnings, []);
}

#[test]
fn impossible_options_are_refused_before_anything_runs() {
    let with = |change: fn(&mut RequestOptions)| {
        let mut options = RequestOptions::default();
        change(&mut options);
        options
    };
    for (options, kind, words) in [
        (with(|o| o.steps = Some(1_000_000)), ErrorKind::Usage, "the option `steps` is 1000000"),
        (with(|o| o.batch = Some(0)), ErrorKind::Usage, "the batch is 0, but input"),
        (with(|o| o.batch = Some(1_000_000)), ErrorKind::Usage, "the batch is 1000000"),
        (with(|o| o.size = Some((u64::MAX, 16))), ErrorKind::Input, "the option `size` is 18446744073709551615x16"),
        (with(|o| o.size = Some((8, 8))), ErrorKind::Input, "give the size that fits"),
        (
            with(|o| o.cache = PolicyConfig::from_tag("f13b0").unwrap()),
            ErrorKind::Usage,
            "more than the model's 12 blocks",
        ),
    ] {
        refused(&TINY, &tiny_inputs(false), &options, kind, words);
    }
}

/// A host with a loop of its own gets what `run` computes.
#[test]
fn a_host_owns_the_loop() {
    let engine = Engine::load(emoji(), &EngineOptions::default()).unwrap();
    let options = RequestOptions { cache: "f1b0w2r0.9".parse().unwrap(), steps: Some(6), ..RequestOptions::default() };
    let request = || engine.request(&Inputs::prompt("lemon"), &options).unwrap();
    let whole = request().run(&mut ()).unwrap();
    let mut stepwise = request();
    assert!(stepwise.velocity(&ArrayD::zeros(vec![1, 64, 191]), 1.0).is_err());
    assert!(stepwise.velocity(&ArrayD::zeros(vec![1, 64, 192]), f32::NAN).is_err());
    let mut latents = stepwise.latents().unwrap();
    let sigma = |step: usize| 1.0 - step as f32 / 6.0;
    let mut decisions = String::new();
    for step in 0..6 {
        let (velocity, records) = stepwise.velocity(&latents, sigma(step)).unwrap();
        decisions.extend(records.iter().map(|record| record.letter()));
        latents += &(velocity * (sigma(step + 1) - sigma(step)));
    }
    assert_eq!(decisions, whole.trace.decisions(Branch::Cond));
    assert!(relative_l1(&latents, &whole.latents) < 1e-5);
    assert!(stepwise.velocity(&latents, 0.1).is_err(), "a step too many");
    assert_eq!(stepwise.run(&mut ()).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn a_load_can_be_cancelled() {
    let options = EngineOptions::default();
    options.cancel.cancel();
    let error = Engine::load(data("tiny-flux"), &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    // An engine that is loaded does not heed it: it loads more for this policy.
    let options = EngineOptions::default();
    let engine = Engine::load(data("tiny-flux"), &options).unwrap();
    options.cancel.cancel();
    run(&engine, &tiny_inputs(false), &self::options("f3b2w1", 2));
    // A request that loads more stops with its own token.
    let cancelled = self::options("f4b3w1", 2);
    cancelled.cancel.cancel();
    let error = engine.request(&tiny_inputs(false), &cancelled).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}
