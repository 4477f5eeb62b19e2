//! The policies decide as the reference did: recorded diffs in, decisions and reasons out. And every option has a pair
//! of runs that differ in nothing else and decide differently.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dbcache_trt::cache::{
    Action, Branch, CachePolicy, Decision, DecisionPoint, DiffOptions, DiffTensor, Gate, PolicyConfig, PolicyOverrides,
    Reason, RunShape,
};
use serde_json::{Map, Value, json};

/// Recorded runs that this engine cannot repeat, each with words from the reason it gives.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("calib.dmd6", "calibrator"),
    ("calib.foca", "calibrator"),
    ("calib.taylor1", "calibrator"),
    ("calib.taylor1_hidden", "calibrator"),
    ("calib.taylor1_noenc", "calibrator"),
    ("calib.taylor2", "calibrator"),
    ("calibscm.dmd4", "calibrator"),
    ("calibscm.dmd6", "calibrator"),
    ("calibscm.dmd6_rank1", "calibrator"),
    ("calibscm.foca", "calibrator"),
    ("calibscm.taylor1", "calibrator"),
    ("calibscm.taylor2", "calibrator"),
    ("cfg.taylor1", "calibrator"),
    ("gens.N28", "one cache for two generations"),
    ("gens.base", "one cache for two generations"),
    ("legacy.db.ids", "Bn_compute_blocks_ids"),
    ("legacy.db.ids0_nt0.25T", "Bn_compute_blocks_ids"),
    ("legacy.db.ids_M5", "Bn_compute_blocks_ids"),
    ("legacy.db.ids_nt0.2T", "Bn_compute_blocks_ids"),
    ("legacy.db2.alter", "enable_alter_cache"),
    ("legacy.db2.alter2T", "enable_alter_cache"),
    ("legacy.fb.taylor2", "calibrator"),
    ("legacy.prune.F0B0", "DBPrune"),
    ("legacy.prune.M3", "DBPrune"),
    ("legacy.prune.base", "DBPrune"),
    ("legacy.prune.ids", "DBPrune"),
    ("legacy.prune.interval3", "DBPrune"),
    ("legacy.prune2.base", "DBPrune"),
    ("legacy.prune2.dyn", "DBPrune"),
    ("legacy.prune2.l1", "DBPrune"),
    ("prune.B4", "DBPrune"),
    ("prune.F4", "DBPrune"),
    ("prune.base", "DBPrune"),
    ("prune.ids", "DBPrune"),
    ("prunecal.base", "DBPrune"),
    ("prunecal.taylor1", "calibrator"),
    ("prunecfg.base", "DBPrune"),
    ("prunecfg.dyn", "DBPrune"),
    ("prunedyn.base", "DBPrune"),
    ("prunedyn.dyn", "DBPrune"),
    ("prunedyn.dyn_max", "DBPrune"),
    ("prunedyn.dyn_relax1.8", "DBPrune"),
    ("prunelim.M3", "DBPrune"),
    ("prunelim.MC1", "DBPrune"),
    ("prunelim.W9", "DBPrune"),
    ("prunelim.acc", "DBPrune"),
    ("prunelim.base", "DBPrune"),
    ("prunelim.l1", "DBPrune"),
    ("prunemisc.base", "DBPrune"),
    ("prunemisc.down4", "DBPrune"),
    ("prunemisc.scm_dynamic", "DBPrune"),
    ("s50.scm_ultra_static_taylor1", "calibrator"),
    ("scm.dynamic_short", "12 digits, the run has 28 steps"),
    ("scm.static_short", "12 digits, the run has 28 steps"),
    ("split.two_lists", "two block lists"),
];

/// The model of the recorded runs has so many blocks.
const BLOCKS: usize = 12;

/// A recorded run.
struct Case {
    name: String,
    json: Value,
}

/// What was recorded of one step and branch.
struct Recorded<'a> {
    letter: char,
    diff: Option<f64>,
    /// `None` for 0.1.0, which was recorded without reasons.
    reason: Option<&'a str>,
}

impl Case {
    fn steps(&self) -> Result<usize> {
        let steps = self.json["steps"].as_u64().context("steps")?;
        Ok(usize::try_from(steps)?)
    }

    fn run(&self) -> Result<RunShape> {
        let branches = if self.has_branch(Branch::Uncond) { 2 } else { 1 };
        Ok(RunShape { n_blocks: BLOCKS, steps: self.steps()?, branches })
    }

    fn generations(&self) -> usize {
        if self.json["config"]["generations"] == 2 { 2 } else { 1 }
    }

    /// The policy of the run, or why there is none.
    fn policy(&self) -> Result<PolicyConfig> {
        let config = &self.json["config"];
        ensure!(config["calibrator"].is_null(), "a calibrator is not supported yet");
        let lists = config["block_lists"].as_array().map_or(1, Vec::len);
        ensure!(lists == 1, "two block lists are not supported");
        let renews = config["refresh_between"] == true;
        ensure!(self.generations() == 1 || renews, "one cache for two generations is refused by design");
        let mut options = Map::new();
        options.insert("cache_type".into(), self.preset()?.into());
        if self.json["algorithm"] == "fbcache" {
            // The preset's limit is that of `CacheType.default_options`; the run was given its options one by one.
            options.insert("max_cached_steps".into(), json!(-1));
        }
        for given in [&config["given"], &config["extra"]] {
            options.extend(given.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        }
        if renews {
            // Each generation gets a policy of its own, which is what this option is for.
            options.remove("num_inference_steps");
        }
        let policy = PolicyConfig::from_json(&Value::Object(options).to_string())?;
        policy.validate(self.run()?)?;
        Ok(policy)
    }

    /// The preset with the defaults of the release that was recorded.
    fn preset(&self) -> Result<&'static str> {
        match self.json["algorithm"].as_str() {
            Some("DBCache") => Ok("cache-dit"),
            Some("dbcache") => Ok("dbcache"),
            Some("fbcache") => Ok("fb"),
            Some("DBPrune" | "dbprune") => Ok("dbprune"),
            other => bail!("unknown algorithm {other:?}"),
        }
    }

    fn recorded(&self, branch: Branch, step: usize) -> Result<Recorded<'_>> {
        let record = &self.json["branches"][branch.as_str()];
        let letters = record["decisions"].as_str().context("decisions")?;
        let diff = record["diffs"].get(step).with_context(|| format!("no diff of step {step}"))?;
        Ok(Recorded {
            letter: letters.chars().nth(step).context("the run is shorter")?,
            diff: diff.as_f64(),
            reason: record.get("reasons").and_then(|reasons| reasons[step].as_str()),
        })
    }

    fn has_branch(&self, branch: Branch) -> bool {
        self.json["branches"].get(branch.as_str()).is_some()
    }
}

fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/oracle"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let json: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        if json.get("branches").is_some() {
            let name = json["name"].as_str().context("a case has a name")?.to_owned();
            cases.push(Case { name, json });
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(cases.len() == 117, "{} cases instead of 117", cases.len());
    Ok(cases)
}

fn is_unsupported(name: &str) -> bool {
    UNSUPPORTED.iter().any(|(unsupported, _)| *unsupported == name)
}

/// Decides all steps again by the recorded diffs.
fn replay(case: &Case, config: &PolicyConfig) -> Result<()> {
    let steps = case.steps()?;
    for generation in 0..case.generations() {
        let mut branches: Vec<(Branch, Box<dyn CachePolicy>)> = Vec::new();
        for branch in config.branch_order().into_iter().filter(|&branch| case.has_branch(branch)) {
            branches.push((branch, config.policy(case.run()?)?));
        }
        for step in 0..steps {
            let mut cond_diff = None;
            for (branch, policy) in &mut branches {
                let recorded = case.recorded(*branch, generation * steps + step)?;
                let at = DecisionPoint { step, steps, branch: *branch, block: None };
                let shared = cond_diff.filter(|_| *branch == Branch::Uncond && config.shares_cond_diff());
                let diff = check_step(policy.as_mut(), at, &recorded, shared)
                    .with_context(|| format!("generation {generation}, step {step}, branch {branch}"))?;
                if *branch == Branch::Cond {
                    cond_diff = diff;
                }
            }
        }
    }
    Ok(())
}

/// Decides one step; returns the diff that the loop would record.
fn check_step(
    policy: &mut dyn CachePolicy,
    at: DecisionPoint,
    recorded: &Recorded<'_>,
    shared: Option<f64>,
) -> Result<Option<f64>> {
    let (decision, diff) = match policy.gate(at) {
        Gate::Decided(decision) => (decision, None),
        Gate::NeedsDiff => {
            let diff = recorded.diff.context("the policy asks for a diff where the reference compared nothing")?;
            (policy.judge(at, shared.unwrap_or(diff) as f32), Some(shared.unwrap_or(diff)))
        }
    };
    let is_always = decision.reason == Reason::Always;
    let expected_diff = if is_always { Some(-1.0) } else { diff };
    ensure!(recorded.diff == expected_diff, "recorded diff {:?}, here {expected_diff:?}", recorded.diff);
    ensure!(recorded.letter == decision.action.letter(), "recorded {}, here {decision:?}", recorded.letter);
    if let Some(reason) = recorded.reason {
        let here = if is_always { Reason::Below } else { decision.reason };
        ensure!(reason.parse::<Reason>()? == here, "recorded {reason}, here {decision:?}");
    }
    Ok(diff)
}

#[test]
fn recorded_runs_are_decided_again_in_the_same_way() -> Result<()> {
    let mut replayed = 0;
    for case in cases()?.iter().filter(|case| !is_unsupported(&case.name)) {
        let config = case.policy().with_context(|| case.name.clone())?;
        replay(case, &config).with_context(|| case.name.clone())?;
        replayed += 1;
    }
    ensure!(replayed + UNSUPPORTED.len() == 117, "replayed {replayed}");
    Ok(())
}

#[test]
fn unsupported_runs_are_refused_for_the_reason_listed() -> Result<()> {
    let mut found = BTreeSet::new();
    for case in cases()? {
        let Err(error) = case.policy() else { continue };
        found.insert(case.name.clone());
        let listed = UNSUPPORTED.iter().find(|(name, _)| *name == case.name);
        let (_, words) = listed.with_context(|| format!("{} is refused, but not listed: {error}", case.name))?;
        ensure!(error.to_string().contains(words), "{}: `{error}` lacks `{words}`", case.name);
    }
    for (name, _) in UNSUPPORTED {
        ensure!(found.contains(*name), "{name} is supported now: take it off the list");
    }
    Ok(())
}

/// A missing digit counts as 0 in the reference, so its short masks are ours with the zeros written out.
#[test]
fn short_masks_of_the_reference_are_masks_filled_up_with_zeros() -> Result<()> {
    for case in cases()?.iter_mut().filter(|case| case.name.ends_with("_short")) {
        let steps = case.steps()?;
        let mask = case.json["config"]["given"]["steps_computation_mask"].as_array_mut().context("mask")?;
        mask.resize(steps, json!(0));
        replay(case, &case.policy()?).with_context(|| case.name.clone())?;
    }
    Ok(())
}

/// The reference's tags say everything but the options that they never show.
#[test]
fn tags_of_the_reference_are_read_as_the_policy_that_ran() -> Result<()> {
    const NEVER_SHOWN: [&str; 6] = [
        "max_accumulated_residual_diff_threshold",
        "cfg_compute_first",
        "cfg_diff_compute_separate",
        "l1_hidden_states_diff_threshold",
        "important_condition_threshold",
        "downsample_factor",
    ];
    let mut read = 0;
    for case in cases()? {
        let Some(tag) = case.json["tag"].as_str() else { continue };
        let is_shown = |options: &Value| {
            options.as_object().is_none_or(|options| NEVER_SHOWN.iter().all(|name| !options.contains_key(*name)))
        };
        let config = &case.json["config"];
        match (case.policy(), PolicyConfig::from_tag(tag)) {
            (Ok(policy), Ok(from_tag)) if is_shown(&config["given"]) && is_shown(&config["extra"]) => {
                let is_never = |limit: &str| config["given"][limit] == 0;
                if is_never("max_cached_steps") || is_never("max_continuous_cached_steps") {
                    continue; // The reference prints 0 for `never` and for `no limit`.
                }
                ensure!(from_tag == policy, "{tag}: {from_tag} instead of {policy}");
                read += 1;
            }
            (Ok(_), Ok(_)) => {}
            (Ok(_), Err(error)) => bail!("{tag} is refused: {error}"),
            (Err(_), _) => {}
        }
    }
    ensure!(read > 40, "only {read} tags were read");
    Ok(())
}

/// Two policies for each option: they differ in nothing else, and decide differently on the toy model below. The first
/// policy of a pair is the plainer one.
const PAIRS: &[(&str, &str, &str)] = &[
    ("Fn_compute_blocks", "f1b0w3r0.1", "f3b0w3r0.1"),
    ("Bn_compute_blocks", "f1b0w3r0.3", "f1b6w3r0.3"),
    ("residual_diff_threshold", "f1b0w3r0.1", "f1b0w3r0.05"),
    ("max_warmup_steps", "f1b0w3r0.1", "f1b0w6r0.1"),
    ("warmup_interval", "f1b0w6r0.1", "f1b0w6i2r0.1"),
    ("max_cached_steps", "f1b0w3r0.1", "f1b0w3r0.1m4"),
    ("max_continuous_cached_steps", "f1b0w3r0.1", "f1b0w3r0.1mc1"),
    ("max_accumulated_residual_diff_threshold", "f1b0w3r0.1", "f1b0w3r0.1a0.2"),
    ("steps_computation_mask", "f1b0w3r0.1", "f1b0w3r0.1_scm:fast"),
    ("steps_computation_policy", "f1b0w3r0.1_scm:fast", "f1b0w3r0.1_scm:fast:static"),
    ("force_refresh_step_hint", "f1b0w3r0.1", "f1b0w3r0.1fr20"),
    ("force_refresh_step_policy", "f1b0w3r0.1fr20", "f1b0w3r0.1fr20:repeat"),
    ("cfg_compute_first", "f1b0w3r0.1cds0", "f1b0w3r0.1cds0cf1"),
    ("cfg_diff_compute_separate", "f1b0w3r0.1", "f1b0w3r0.1cds0"),
    ("l1_hidden_states_diff_threshold", "f1b0w3r0.1", "f1b0w3r0.1l0.1"),
    ("important_condition_threshold", "f1b0w3r0.1", "f1b0w3r0.1ic0.1"),
    ("downsample_factor", "f1b0w3r0.1", "f1b0w3r0.1ds4"),
];

#[test]
fn every_option_has_a_pair_that_decides_differently() -> Result<()> {
    let mut with_pair = BTreeSet::new();
    for (option, plain, other) in PAIRS {
        let (plain, other) = (PolicyConfig::from_tag(plain)?, PolicyConfig::from_tag(other)?);
        let (a, b) = (plain.to_json(), other.to_json());
        let (a, b) = (a.as_object().context("object")?, b.as_object().context("object")?);
        let differing: Vec<&String> = a.keys().filter(|key| a[*key] != b[*key]).collect();
        ensure!(differing == [option], "{option}: the policies differ in {differing:?}");
        let (a, b) = (toy::generate(&plain)?, toy::generate(&other)?);
        ensure!(a != b, "{option}: both decide {a}");
        with_pair.insert(*option);
    }
    let options: BTreeSet<&str> = PolicyOverrides::NAMES.into_iter().collect();
    ensure!(with_pair == options, "without a pair: {:?}", options.difference(&with_pair).collect::<Vec<_>>());
    // The JSON form counts them too: `version` and `cache_type` are no options of a policy.
    let json = PolicyConfig::from_tag("dbcache")?.to_json();
    let keys =
        json.as_object().context("object")?.keys().filter(|key| !["version", "cache_type"].contains(&key.as_str()));
    ensure!(keys.map(String::as_str).collect::<BTreeSet<_>>() == options, "JSON and overrides have other options");
    Ok(())
}

/// A model of 8 blocks on 6 tokens of 8 channels, and the step loop at its shortest: what an engine must do with a
/// policy's answers.
mod toy {
    use super::*;

    const BLOCKS: usize = 8;
    const STEPS: usize = 28;
    const RUN: RunShape = RunShape { n_blocks: BLOCKS, steps: STEPS, branches: 2 };
    const TOKENS: usize = 6;
    const CHANNELS: usize = 8;

    /// `[tokens, channels]`
    type Stream = Vec<[f64; CHANNELS]>;

    #[derive(Default)]
    struct Kept {
        compared: Stream,
        residual: Stream,
        diff: Option<f32>,
        decisions: String,
    }

    /// The decisions of both branches.
    pub fn generate(config: &PolicyConfig) -> Result<String> {
        let split = config.blocks_split(BLOCKS)?;
        let options = config.diff_options().context("the policy compares nothing")?;
        let new = || Ok::<_, anyhow::Error>((config.policy(RUN)?, Kept::default()));
        let (mut cond, mut uncond) = (new()?, new()?);
        let mut latents: Stream = (0..TOKENS).map(|t| std::array::from_fn(|c| wave(t as f64, c as f64))).collect();
        for step in 0..STEPS {
            let mut velocity = [Stream::new(), Stream::new()];
            cond.1.diff = None;
            for branch in config.branch_order() {
                let shared = cond.1.diff.filter(|_| branch == Branch::Uncond && config.shares_cond_diff());
                let (policy, kept) = if branch == Branch::Cond { &mut cond } else { &mut uncond };
                let at = DecisionPoint { step, steps: STEPS, branch, block: None };
                let run = |blocks: std::ops::Range<usize>, h: Stream| blocks.fold(h, |h, i| block(i, at, &h));
                let before = latents.clone();
                let after = run(split.head.clone(), before.clone());
                let compared = match options.tensor {
                    DiffTensor::HeadResidual => minus(&after, &before),
                    DiffTensor::HeadOutput => after.clone(),
                };
                let decision = match policy.gate(at) {
                    Gate::Decided(decision) => decision,
                    Gate::NeedsDiff => {
                        let diff = shared.unwrap_or_else(|| diff(&kept.compared, &compared, &options));
                        kept.diff = Some(diff);
                        policy.judge(at, diff)
                    }
                };
                let corrected = apply(decision, kept, after, compared, |h| run(split.middle.clone(), h));
                velocity[(branch == Branch::Uncond) as usize] = run(split.tail.clone(), corrected);
            }
            let guided = |t: usize, c: usize| 1.5 * velocity[0][t][c] - 0.5 * velocity[1][t][c];
            for (t, token) in latents.iter_mut().enumerate() {
                for (c, value) in token.iter_mut().enumerate() {
                    *value += guided(t, c) / STEPS as f64;
                }
            }
        }
        Ok(format!("{} {}", cond.1.decisions, uncond.1.decisions))
    }

    fn apply(
        decision: Decision,
        kept: &mut Kept,
        h: Stream,
        compared: Stream,
        middle: impl Fn(Stream) -> Stream,
    ) -> Stream {
        kept.decisions.push(decision.action.letter());
        match decision.action {
            Action::Skip => minus(&h, &kept.residual.iter().map(|token| token.map(|v| -v)).collect()),
            Action::Compute => {
                let output = middle(h.clone());
                kept.residual = minus(&output, &h);
                kept.compared = compared;
                output
            }
        }
    }

    fn wave(a: f64, b: f64) -> f64 {
        (a * 1.7 + b * 2.3 + a * b * 0.9).sin()
    }

    fn block(i: usize, at: DecisionPoint, h: &Stream) -> Stream {
        let time = at.step as f64 / STEPS as f64;
        let prompt = if at.branch == Branch::Cond { 0.3 } else { -0.4 };
        let mut next = h.clone();
        for (t, token) in next.iter_mut().enumerate() {
            for (c, value) in token.iter_mut().enumerate() {
                let mixed = 0.6 * h[t][(c + i + 1) % CHANNELS] + 0.4 * h[(t + 1) % TOKENS][c];
                let weight = wave(i as f64 + 1.0, c as f64);
                *value += 0.3 * (weight * mixed + prompt * wave(time + t as f64, i as f64 + c as f64)).tanh();
            }
        }
        next
    }

    fn minus(a: &Stream, b: &Stream) -> Stream {
        a.iter().zip(b).map(|(a, b)| std::array::from_fn(|c| a[c] - b[c])).collect()
    }

    /// The formula of [`DiffOptions`].
    fn diff(previous: &Stream, current: &Stream, options: &DiffOptions) -> f32 {
        let sum =
            |token: &[f64; CHANNELS]| token.iter().step_by(options.downsample_factor).map(|v| v.abs()).sum::<f64>();
        let change = minus(previous, current);
        let tokens: Vec<(f64, f64)> = change.iter().zip(previous).map(|(c, p)| (sum(c), sum(p))).collect();
        let important = options.important_condition_threshold.unwrap_or(0.0);
        let mut chosen: Vec<_> = tokens.iter().copied().filter(|(change, size)| change / size > important).collect();
        if important == 0.0 || chosen.is_empty() {
            chosen = tokens;
        }
        let (change, size) = chosen.iter().fold((0.0, 0.0), |sum, token| (sum.0 + token.0, sum.1 + token.1));
        (change / size) as f32
    }
}
