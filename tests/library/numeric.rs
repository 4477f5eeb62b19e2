//! NaN and infinity are found on the step where they appear, and traced to the graph that gives them.

use crate::common::damage::{Copy, WEIGHTS};
use crate::common::tiny_inputs;
use dbcache_trt::{Engine, EngineOptions, ErrorKind, RequestOptions, StagesChoice};
use half::f16;
use ndarray::{Axis, concatenate};
use safetensors::SafeTensors;

/// A copy of the model of which one parameter, an f16 tensor, begins with this number.
fn patched(parameter: &str, number: f16) -> Copy {
    let copy = Copy::tiny();
    copy.lie(WEIGHTS, |bytes| {
        let base = bytes.as_ptr() as usize;
        let at = SafeTensors::deserialize(bytes).unwrap().tensor(parameter).unwrap().data().as_ptr() as usize - base;
        bytes[at..at + 2].copy_from_slice(&number.to_le_bytes());
    });
    copy
}

fn fail(copy: &Copy, stages: StagesChoice, cache: &str, is_guided: bool) -> String {
    let options = EngineOptions { stages, ..EngineOptions::default() };
    let engine = Engine::load(copy.folder.path(), &options).unwrap();
    let true_cfg = is_guided.then_some(2.0);
    let options = RequestOptions { cache: cache.parse().unwrap(), steps: Some(4), true_cfg, ..Default::default() };
    let error = engine.request(&tiny_inputs(is_guided), &options).unwrap().run(&mut ()).expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::Numeric);
    error.to_string()
}

#[test]
fn the_first_block_that_is_not_finite_is_named() {
    let per_block = StagesChoice::PerBlock;
    // The model has 4 double blocks, then 8 single ones.
    for (parameter, number, words) in [
        ("transformer_blocks.2.attn.to_out.0.bias", f16::NAN, "block 2, the first whose `hidden_states` holds NaN"),
        ("transformer_blocks.0.ff.net.2.bias", f16::INFINITY, "block 0, the first whose `hidden_states` holds inf"),
        ("single_transformer_blocks.3.proj_out.bias", f16::NAN, "block 7, the first whose `hidden_states` holds NaN"),
        (
            "transformer_blocks.1.ff_context.net.2.bias",
            f16::NAN,
            "block 1, the first whose `encoder_hidden_states` holds",
        ),
        ("x_embedder.bias", f16::NAN, "it comes from embed, the first whose `hidden_states` holds NaN"),
        ("proj_out.bias", f16::NAN, "it comes from the final graph: all blocks give finite numbers"),
    ] {
        let copy = patched(parameter, number);
        for cache in ["none", "f1b0w2r0.9", "prune_f1b0w2r0.3"] {
            let message = fail(&copy, per_block, cache, true);
            assert!(message.starts_with("step 0: cond: the prediction holds "), "{parameter} {cache}: {message}");
            assert!(message.contains(words) && message.contains("`verify`"), "{parameter} {cache}: {message}");
        }
    }
}

#[test]
fn pictures_that_decide_for_themselves_are_looked_at_too() {
    let copy = patched("transformer_blocks.2.attn.to_out.0.bias", f16::NAN);
    let engine = Engine::load(copy.folder.path(), &EngineOptions::default()).unwrap();
    let mut inputs = tiny_inputs(false);
    inputs.tensors.values_mut().filter(|tensor| tensor.ndim() > 1).for_each(|tensor| {
        *tensor = concatenate(Axis(0), &[tensor.view(), tensor.view()]).unwrap();
    });
    let cache = "f1b0w2r0.9".parse().unwrap();
    let options = RequestOptions { cache, per_sample: true, ..Default::default() };
    let message = engine.request(&inputs, &options).unwrap().run(&mut ()).expect_err("it runs").to_string();
    assert!(
        message.starts_with("step 0: cond: the prediction holds ") && message.contains("blocks 1..5 (one stage)"),
        "{message}"
    );
}

#[test]
fn a_diff_that_is_not_finite_and_a_fused_stage_are_explained_too() {
    let copy = patched("transformer_blocks.0.attn.to_out.0.bias", f16::NAN);
    // Nothing is warmed up, so the second step would compare; the first one fails before that.
    let message = fail(&copy, StagesChoice::PerBlock, "f1b0w0r0.9cf1", true);
    assert!(message.starts_with("step 0: uncond: ") && message.contains("block 0"), "{message}");
    let message = fail(&copy, StagesChoice::Fused, "none", false);
    assert!(
        message.contains("it comes from embed and blocks 0..12 and final (one stage), whose prediction"),
        "{message}"
    );
    let message = fail(&copy, StagesChoice::Fused, "f2b2w0r0.9", false);
    assert!(message.contains("it comes from blocks 0..2 (one stage), the first whose `hidden_states`"), "{message}");
}

#[test]
fn latents_that_overflow_are_found_after_the_update() {
    let engine = Engine::load(crate::common::data("tiny-flux"), &EngineOptions::default()).unwrap();
    let options = RequestOptions { steps: Some(4), true_cfg: Some(f32::MAX), ..Default::default() };
    let error = engine.request(&tiny_inputs(true), &options).unwrap().run(&mut ()).expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::Numeric);
    let message = error.to_string();
    assert!(message.starts_with("step 0: the latents hold ") && message.contains("less guidance"), "{message}");
}

#[test]
fn sums_that_overflow_in_a_diff_are_no_fault_of_the_blocks() {
    let engine = Engine::load(crate::common::data("tiny-flux"), &EngineOptions::default()).unwrap();
    let cache = "f1b0w1l0.9".parse().unwrap();
    let options = RequestOptions { cache, steps: Some(4), true_cfg: Some(1e38), ..Default::default() };
    let error = engine.request(&tiny_inputs(true), &options).unwrap().run(&mut ()).expect_err("it runs");
    let message = error.to_string();
    let words = "step 1: cond: before blocks 1..12: what is compared is not finite";
    assert!(message.starts_with(words) && message.contains("it comes from what the cache compares"), "{message}");
}

#[test]
fn large_numbers_are_no_error() {
    let copy = patched("transformer_blocks.2.attn.to_out.0.bias", f16::MAX);
    let engine = Engine::load(copy.folder.path(), &EngineOptions::default()).unwrap();
    let options = RequestOptions { steps: Some(2), ..Default::default() };
    assert!(engine.request(&tiny_inputs(false), &options).unwrap().run(&mut ()).is_ok());
}
