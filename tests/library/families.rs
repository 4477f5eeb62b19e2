//! Every family of models: tiny engines with random weights, compared with what diffusers and cache-dit computed
//! (`tests/data/families/README.md`): each part of the transformer alone, the chain of all blocks, whole generations
//! without a cache, and cached ones.

use std::collections::BTreeSet;

use crate::common::family::{Family, Tensors};
use crate::common::relative_l1;
use dbcache_trt::cache::{Branch, PolicyConfig};
use dbcache_trt::{ComputeChoice, EngineOptions, Inputs, ModelPart, Output};
use ndarray::ArrayD;
use serde_json::Value;

/// One block, all of them, or the final graph (relative L1, as all that follow): sums in another order.
const BLOCK_TOLERANCE: f64 = 1e-5;
/// Embed, which holds sines of angles up to 1000, known to 6e-5 in f32.
const EMBED_TOLERANCE: f64 = 1e-4;
/// Ten steps without and with a cache.
const LATENT_RELATIVE_L1: f64 = 1e-4;

/// The same in f16, chosen at load, against f32: rounding to 11 bits is 2e-4 of each operand on average, and products of
/// tiny models have few terms that average it away.
const F16_LATENT_RELATIVE_L1: f64 = 2e-3;
/// Diffs in f16 may be off by this much: decisions with a smaller margin to the threshold may differ.
const F16_DIFF: f64 = 1e-3;

/// What does not agree; all of it is shown at once.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare(&mut self, at: &str, ours: &Tensors, theirs: &Tensors, tolerance: f64) {
        for (name, theirs) in theirs {
            match ours.get(name) {
                Some(ours) if ours.shape() == theirs.shape() => {
                    let error = relative_l1(ours, theirs);
                    self.expect(error <= tolerance, || format!("{at}: `{name}` differs by {error:e}"));
                }
                ours => {
                    let (ours, theirs) = (ours.map(ArrayD::shape), theirs.shape());
                    self.0.push(format!("{at}: `{name}` has the shape {ours:?}, not {theirs:?}"));
                }
            }
        }
    }

    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }

    fn none(self) {
        assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
    }
}

#[test]
fn every_part_of_the_transformer() {
    let mut differences = Differences::default();
    for family in Family::all() {
        let cases: BTreeSet<usize> = family
            .vectors
            .keys()
            .filter_map(|name| name.strip_prefix("case")?.split('.').next()?.parse().ok())
            .collect();
        assert!(cases.len() >= 2, "{}: {cases:?}", family.name);
        for case in cases {
            check_parts(
                &family,
                0,
                &format!("case{case}"),
                &family.under(&format!("case{case}.in.")),
                &mut differences,
            );
        }
        // A second transformer, on the inputs of the first case.
        let has_two = !family.manifest["low_noise"].is_null();
        assert_eq!(has_two, !family.under("second.").is_empty(), "{}", family.name);
        if has_two {
            check_parts(&family, 1, "second.case0", &family.under("case0.in."), &mut differences);
        }
    }
    differences.none();
}

fn check_parts(family: &Family, expert: usize, case: &str, inputs: &Tensors, differences: &mut Differences) {
    let blocks = family.engine.info().blocks;
    let at = |part: &str| format!("{}, {case}, {part}", family.name);
    let embedded = family.under(&format!("{case}.embed."));
    // What the first block does not take was not recorded.
    let embed = family.engine.probe(expert, &ModelPart::Embed, inputs).unwrap_or_default();
    let start: Tensors = embed.into_iter().chain(inputs.clone()).chain(embedded.clone()).collect();
    let mut flowing = start.clone();
    let mut probe = |part: ModelPart, tensors: &Tensors, theirs: &Tensors, at: String, tolerance: f64| match family
        .engine
        .probe(expert, &part, tensors)
    {
        Ok(ours) => differences.compare(&at, &ours, theirs, tolerance),
        Err(error) => differences.0.push(format!("{at}: {error}")),
    };
    probe(ModelPart::Embed, inputs, &embedded, at("embed"), EMBED_TOLERANCE);
    let mut last = Tensors::new();
    for block in 0..blocks {
        let theirs = family.under(&format!("{case}.block{block}."));
        assert!(!theirs.is_empty(), "{}", at(&format!("block {block}")));
        let name = at(&format!("block {block}"));
        probe(ModelPart::Blocks(block..block + 1), &flowing, &theirs, name, BLOCK_TOLERANCE);
        last.extend(theirs.clone());
        flowing.extend(theirs);
    }
    let prediction = family.vectors[&format!("{case}.prediction")].clone();
    let name = family.manifest["final"]["outputs"][0].as_str().unwrap().to_owned();
    let prediction = Tensors::from([(name, prediction)]);
    probe(ModelPart::Final, &flowing, &prediction, at("final"), BLOCK_TOLERANCE);
    // All blocks, each on what the one before gave here.
    probe(ModelPart::Blocks(0..blocks), &start, &last, at("chain"), BLOCK_TOLERANCE);
}

#[test]
fn whole_generations() {
    let mut differences = Differences::default();
    for family in Family::all() {
        let uncached = family.packed(&family.vectors["out.uncached"]);
        check_generation(&family, PolicyConfig::None, "uncached", &Value::Null, &mut differences);
        let cases = family.cases();
        assert!(!cases.is_empty(), "{}", family.name);
        for (case, cache) in cases {
            let name = case["name"].as_str().unwrap();
            // Where head and tail overlap in a list, cache-dit runs blocks twice; that is refused here.
            let kept = ["Fn_compute_blocks", "Bn_compute_blocks"].map(|key| case["config"][key].as_u64().unwrap_or(0));
            let of_lists = family.manifest["lists"].as_array().unwrap().iter();
            if of_lists.map(|list| list["blocks"].as_u64().unwrap()).any(|blocks| kept[0] + kept[1] > blocks) {
                let refused = family.engine.request(&family.inputs(), &family.options(cache)).map(drop).unwrap_err();
                assert!(refused.to_string().contains("blocks would run twice"), "{}, {name}: {refused}", family.name);
                continue;
            }
            check_generation(&family, cache, name, &case["lists"], &mut differences);
            // A cache that changes nothing would show nothing.
            let change = relative_l1(&family.packed(&family.vectors[&format!("out.{name}")]), &uncached);
            assert!(change > LATENT_RELATIVE_L1, "{}, {name}: {change:e}", family.name);
        }
    }
    differences.none();
}

/// From a prompt: tokenizers and text graphs, among them T5 with and without masks and texts behind each other, then as
/// above. Prompt and negative prompt have different lengths, far below what the models can read.
#[test]
fn whole_generations_from_prompts() {
    let mut differences = Differences::default();
    for pipeline in Family::pipelines() {
        check_generation(&pipeline, PolicyConfig::None, "uncached", &Value::Null, &mut differences);
        let uncached = pipeline.packed(&pipeline.vectors["out.uncached"]);
        for (case, cache) in pipeline.cases() {
            let name = case["name"].as_str().unwrap();
            check_generation(&pipeline, cache, name, &case["lists"], &mut differences);
            let change = relative_l1(&pipeline.packed(&pipeline.vectors[&format!("out.{name}")]), &uncached);
            assert!(change > LATENT_RELATIVE_L1, "{}, {name}: {change:e}", pipeline.name);
        }
        // A text that does not reach the transformer would show here.
        let inputs = Inputs { prompt: Some("red".into()), ..pipeline.inputs() };
        let other =
            pipeline.engine.request(&inputs, &pipeline.options(PolicyConfig::None)).unwrap().run(&mut ()).unwrap();
        let change = relative_l1(&other.latents, &uncached);
        assert!(change > LATENT_RELATIVE_L1, "{}, another prompt: {change:e}", pipeline.name);
    }
    differences.none();
}

/// Transformers that compute in f16 give what was recorded in f32, up to their rounding, and decide the same.
#[test]
fn generations_in_f16() {
    let mut differences = Differences::default();
    for family in Family::loaded(&EngineOptions { compute: ComputeChoice::Fp16, ..EngineOptions::default() }) {
        let uncached = ("uncached".to_owned(), PolicyConfig::None, Value::Null);
        let mut cases = family.cases();
        cases.retain(|(case, _)| case["margin"].as_f64().is_some_and(|margin| margin > F16_DIFF));
        let cached = cases
            .into_iter()
            .map(|(case, cache)| (case["name"].as_str().unwrap().to_owned(), cache, case["lists"].clone()));
        let mut decided = 0;
        for (name, cache, lists) in std::iter::once(uncached).chain(cached) {
            let at = format!("{}, {name}, f16", family.name);
            let request = match family.engine.request(&family.inputs(), &family.options(cache)) {
                // As in `whole_generations`.
                Err(error) if error.to_string().contains("blocks would run twice") => continue,
                request => request.unwrap(),
            };
            let output = request.run(&mut ()).unwrap();
            let error = relative_l1(&output.latents, &family.packed(&family.vectors[&format!("out.{name}")]));
            println!("{at}: {error:.1e}");
            let is_near = LATENT_RELATIVE_L1 / 10.0 < error && error <= F16_LATENT_RELATIVE_L1;
            differences.expect(is_near, || format!("{at}: latents differ by {error:e}"));
            check_decisions(&output, &lists, &at, &mut differences);
            decided += output.trace.skipped();
        }
        assert!(decided > 0, "{}", family.name);
    }
    differences.none();
}

fn check_decisions(output: &Output, lists: &Value, at: &str, differences: &mut Differences) {
    for (index, list) in lists.as_array().into_iter().flatten().enumerate() {
        for (key, recorded) in list["branches"].as_object().into_iter().flatten() {
            let branch = if key == "cond" { Branch::Cond } else { Branch::Uncond };
            let ours = output.trace.decisions_each(branch).get(index).cloned().unwrap_or_default();
            let theirs = recorded["decisions"].as_str().unwrap();
            differences.expect(ours == theirs, || format!("{at}, list {index}, {key}: decided {ours}, not {theirs}"));
        }
    }
}

fn check_generation(family: &Family, cache: PolicyConfig, name: &str, lists: &Value, differences: &mut Differences) {
    let at = format!("{}, {name}", family.name);
    let request = family.engine.request(&family.inputs(), &family.options(cache));
    let output = match request.and_then(|request| request.run(&mut ())) {
        Ok(output) => output,
        Err(error) => return differences.0.push(format!("{at}: {error}")),
    };
    check_decisions(&output, lists, &at, differences);
    let theirs = family.packed(&family.vectors[&format!("out.{name}")]);
    let error = relative_l1(&output.latents, &theirs);
    differences.expect(error <= LATENT_RELATIVE_L1, || format!("{at}: latents differ by {error:e}"));
}
