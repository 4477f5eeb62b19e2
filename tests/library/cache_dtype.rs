//! Cached tensors in half precision: half the bytes, the same decisions, latents that hardly differ, no infinity.

use crate::common::{data, emoji, relative_l1, tiny_inputs};
use dbcache_trt::cache::{Branch, PolicyConfig};
use dbcache_trt::{CacheDType, Engine, EngineOptions, ErrorKind, Inputs, Output, RequestOptions};

/// Latents with an f16 cache against those with an f32 cache. Rounding a residual to 11 bits moves it by 2e-4 on
/// average; the scheduler's small steps and the blocks that always run take most of that away.
const F16_LATENT_RELATIVE_L1: f64 = 5e-4;
/// 8 bits: eight times as much.
const BF16_LATENT_RELATIVE_L1: f64 = 4e-3;
/// A forecast over k steps multiplies what its differences lost to rounding by k, here up to 17.
const FORECAST: f64 = 10.0;

fn run(engine: &Engine, inputs: &Inputs, tag: &str, cache_dtype: CacheDType) -> Output {
    let options = RequestOptions { cache: tag.parse().unwrap(), cache_dtype, ..RequestOptions::default() };
    engine.request(inputs, &options).unwrap().run(&mut ()).unwrap()
}

/// Runs the tags with every dtype; all skip something, so what was kept was used.
fn check(engine: &Engine, inputs: &Inputs, tags: &[&str]) {
    for tag in tags {
        let stream = run(engine, inputs, tag, CacheDType::Stream);
        assert!(stream.trace.skipped() > 0, "{tag}");
        for (dtype, tolerance) in
            [(CacheDType::F16, F16_LATENT_RELATIVE_L1), (CacheDType::Bf16, BF16_LATENT_RELATIVE_L1)]
        {
            let narrow = run(engine, inputs, tag, dtype);
            let error = relative_l1(&narrow.latents, &stream.latents);
            let is_forecast = narrow.trace.cache_bytes.calibrators > 0;
            let tolerance = if is_forecast { FORECAST * tolerance } else { tolerance };
            println!("{tag} {dtype}: {error:.1e} {}", narrow.trace.decisions(Branch::Cond));
            assert!(error > 0.0 && error <= tolerance, "{tag} {dtype}: {error:e}");
            for branch in [Branch::Cond, Branch::Uncond] {
                assert_eq!(narrow.trace.decisions(branch), stream.trace.decisions(branch), "{tag} {dtype}");
            }
            let (ours, theirs) = (narrow.trace.cache_bytes, stream.trace.cache_bytes);
            for (ours, theirs) in [
                (ours.residuals, theirs.residuals),
                (ours.calibrators, theirs.calibrators),
                (ours.compare, theirs.compare),
            ] {
                assert_eq!(2 * ours, theirs, "{tag} {dtype}");
            }
        }
    }
}

#[test]
fn half_the_bytes_the_same_decisions() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let tags = [
        "f1b0w4r0.3",
        "f4b4w4r0.3",
        "f1b0w4l0.3",
        "f1b0w4r0.3ds2",
        "f1b0w4r0.3_t1",
        "f1b0w4r0.3_t2_hs1",
        "f1b0w4r0.3_foca",
        "prune_f1b0w4r0.3",
        "prune_f1b0w4r0.3_foca",
    ];
    check(&engine, &tiny_inputs(false), &tags);
    let engine = Engine::load(emoji(), &EngineOptions::default()).unwrap();
    check(&engine, &Inputs::prompt("lemon"), &["f8b8r0.2"]);
}

/// A calibrator of outputs keeps the stream itself, which these latents carry far out of f16's range.
#[test]
fn what_is_out_of_range_is_clamped() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let mut inputs = tiny_inputs(false);
    if let Some(latents) = inputs.tensors.get_mut("latents") {
        latents.mapv_inplace(|number| number * 1e7);
    }
    for tag in ["f1b0w4scm:1111000000000000000000000000:static_t1_hs1", "f1b0w2l0.5", "prune_f1b0w2r0.5"] {
        let output = run(&engine, &inputs, tag, CacheDType::F16);
        assert!(output.latents.iter().all(|number| number.is_finite()), "{tag}");
    }
}

#[test]
fn it_is_refused_where_it_has_no_effect() {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default()).unwrap();
    let inputs = tiny_inputs(false);
    for cache_dtype in [CacheDType::F16, CacheDType::Bf16] {
        let options = RequestOptions { cache: PolicyConfig::None, cache_dtype, ..RequestOptions::default() };
        let error = engine.request(&inputs, &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("`cache-dtype`"), "{error}");
        assert_eq!(cache_dtype.to_string().parse::<CacheDType>().unwrap(), cache_dtype);
    }
    assert!("f32".parse::<CacheDType>().unwrap_err().to_string().contains("`f16`"));
}
