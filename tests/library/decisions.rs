//! The policies decide as the reference did: recorded diffs in, decisions and reasons out. And every option has a pair
//! of runs that differ in nothing else and decide differently.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::common::{data, oracle, tiny_inputs};
use anyhow::{Context, Result, bail, ensure};
use dbcache_trt::cache::{
    Action, Branch, CachePolicy, DecisionPoint, Gate, OptionGroup, PolicyConfig, PolicyOption, Reason, RecordedBranch,
    Recording, RunShape,
};
use dbcache_trt::{Engine, EngineOptions, Output, RequestOptions};
use serde_json::{Map, Value, json};

/// Recorded runs that this engine cannot repeat, each with words from the reason it gives.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("gens.N28", "one cache for two generations"),
    ("gens.base", "one cache for two generations"),
    ("legacy.prune2.l1", "has no option l1_hidden_states_diff_threshold; use residual_diff_threshold"),
    ("prunelim.acc", "has no option max_accumulated_residual_diff_threshold"),
    ("prunelim.l1", "has no option l1_hidden_states_diff_threshold"),
    ("scm.dynamic_short", "12 digits, the run has 28 steps"),
    ("scm.static_short", "12 digits, the run has 28 steps"),
];

/// The model of the recorded runs has so many blocks.
const BLOCKS: usize = 12;
/// Recorded runs, each list of blocks that was decided on by itself as one.
const CASES: usize = 118;

/// A recorded run, or one list of its blocks.
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
    /// A run with lists of blocks as one case for each.
    fn of_lists(self) -> Result<Vec<Self>> {
        let lists = self.json["config"]["block_lists"].as_array().cloned().unwrap_or_default();
        if lists.len() < 2 {
            return Ok(vec![self]);
        }
        let list = |(index, blocks): (usize, &Value)| {
            let mut json = self.json.clone();
            json["config"]["block_lists"] = json!([blocks]);
            json["branches"] = json!({ "cond": self.json["branches"][format!("list{index}.cond")] });
            ensure!(!json["branches"]["cond"].is_null(), "{} has two branches", self.name);
            Ok(Self { name: format!("{}.{index}", self.name), json })
        };
        lists.iter().enumerate().map(list).collect()
    }

    fn blocks(&self) -> usize {
        self.json["config"]["block_lists"][0].as_u64().map_or(BLOCKS, |blocks| blocks as usize)
    }

    fn steps(&self) -> Result<usize> {
        let steps = self.json["steps"].as_u64().context("steps")?;
        Ok(usize::try_from(steps)?)
    }

    fn run(&self) -> Result<RunShape> {
        let branches = if self.has_branch(Branch::Uncond) { 2 } else { 1 };
        Ok(RunShape { n_blocks: self.blocks(), steps: self.steps()?, branches })
    }

    fn generations(&self) -> usize {
        if self.json["config"]["generations"] == 2 { 2 } else { 1 }
    }

    /// The policy of the run, or why there is none.
    fn policy(&self) -> Result<PolicyConfig> {
        let config = &self.json["config"];
        let renews = config["refresh_between"] == true;
        ensure!(self.generations() == 1 || renews, "one cache for two generations is refused by design");
        let mut options = oracle::options(&self.json)?.context("nothing was cached")?;
        if renews {
            // Each generation gets a policy of its own, which is what this option is for.
            options.remove("num_inference_steps");
        }
        let policy = PolicyConfig::from_json(&Value::Object(options).to_string())?;
        policy.validate(self.run()?)?;
        Ok(policy)
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

    /// Of the blocks that are decided on one by one, those that the reference skipped.
    fn skipped_blocks(&self, branch: Branch, step: usize) -> Result<Vec<usize>> {
        let record = &self.json["branches"][branch.as_str()];
        if let Some(pruned) = record["pruned_blocks"].get(step) {
            return Ok(serde_json::from_value(pruned.clone())?);
        }
        let Some(ran) = record["bn_run"].get(step) else { return Ok(Vec::new()) };
        let (ran, tail): (Vec<usize>, _) =
            (serde_json::from_value(ran.clone())?, self.policy()?.blocks_split(self.blocks())?.tail);
        Ok(tail.clone().filter(|block| !ran.contains(&(block - tail.start))).collect())
    }

    fn recording(&self, run: RunShape) -> Result<Recording> {
        let mut branches = Vec::new();
        for branch in [Branch::Cond, Branch::Uncond].into_iter().filter(|branch| self.has_branch(*branch)) {
            let letters = self.json["branches"][branch.as_str()]["decisions"].as_str().context("decisions")?;
            let skipped = (0..run.steps).map(|step| self.skipped_blocks(branch, step)).collect::<Result<Vec<_>>>()?;
            branches.push(RecordedBranch::new(branch, letters, &skipped)?);
        }
        Ok(Recording::joined(run.n_blocks, branches))
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
            cases.extend(Case { name, json }.of_lists()?);
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(cases.len() == CASES, "{} cases instead of {CASES}", cases.len());
    Ok(cases)
}

fn is_unsupported(name: &str) -> bool {
    UNSUPPORTED.iter().any(|(unsupported, _)| *unsupported == name)
}

/// Decides all steps again by the recorded diffs.
fn replay(case: &Case, config: &PolicyConfig) -> Result<()> {
    let steps = case.steps()?;
    let singles = config.single_blocks(case.blocks());
    for generation in 0..case.generations() {
        let mut branches = config.policies(case.run()?)?;
        for step in 0..steps {
            let mut cond_diff = None;
            for (branch, policy) in &mut branches {
                let at = DecisionPoint { step, steps, branch: *branch, block: None };
                let place = || format!("generation {generation}, step {step}, branch {branch}");
                let index = generation * steps + step;
                if let PolicyConfig::DbPrune(_) = config {
                    check_pruned_step(policy.as_mut(), at, &singles, case, index).with_context(place)?;
                    continue;
                }
                let recorded = case.recorded(*branch, index)?;
                let shared = cond_diff.filter(|_| *branch == Branch::Uncond && config.shares_cond_diff());
                let diff = check_step(policy.as_mut(), at, config, &recorded, shared).with_context(place)?;
                if *branch == Branch::Cond {
                    cond_diff = diff;
                }
                check_tail(policy.as_mut(), at, config, case, index).with_context(place)?;
            }
        }
    }
    Ok(())
}

fn is_alter_step(at: DecisionPoint, config: &PolicyConfig) -> bool {
    let is_on = matches!(config, PolicyConfig::DbCache(config) if config.enable_alter_cache);
    is_on && at.step.is_multiple_of(2)
}

/// Decides one step; returns the diff that the loop would record.
fn check_step(
    policy: &mut dyn CachePolicy,
    at: DecisionPoint,
    config: &PolicyConfig,
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
    let expected_diff = match decision.reason {
        Reason::Always => Some(-1.0),
        // The reference compares even steps too, but never goes by it.
        Reason::AlterStep => recorded.diff,
        _ => diff,
    };
    ensure!(recorded.diff == expected_diff, "recorded diff {:?}, here {expected_diff:?}", recorded.diff);
    ensure!(recorded.letter == decision.action.letter(), "recorded {}, here {decision:?}", recorded.letter);
    let is_kept = decision.action == Action::Compute && !is_alter_step(at, config);
    ensure!(policy.keeps(at) == is_kept, "keeps a skipped step, or drops a computed one");
    if let Some(reason) = recorded.reason {
        let here = if is_always { Reason::Below } else { decision.reason };
        ensure!(reason.parse::<Reason>()? == here, "recorded {reason}, here {decision:?}");
    }
    Ok(diff)
}

/// Decides blocks one by one: `compared` holds `[block, diff, threshold, …]` for each comparison of the reference.
/// Returns the skipped blocks, and the names of the reasons in alphabetical order.
fn check_blocks(
    policy: &mut dyn CachePolicy,
    at: DecisionPoint,
    blocks: impl Iterator<Item = (usize, usize)>,
    compared: &Value,
) -> Result<(Vec<usize>, BTreeSet<&'static str>)> {
    let mut compared = compared.as_array().context("comparisons")?.iter();
    let (mut skipped, mut reasons) = (Vec::new(), BTreeSet::new());
    for (block, name) in blocks {
        let at = DecisionPoint { block: Some(block), ..at };
        let decision = match policy.gate(at) {
            Gate::Decided(decision) => decision,
            Gate::NeedsDiff => {
                let recorded = compared.next().with_context(|| format!("no diff of block {block} was recorded"))?;
                ensure!(recorded[0] == name, "block {name} is compared, recorded {recorded}");
                let threshold = policy.threshold(at).context("threshold")?;
                let recorded_threshold = recorded[2].as_f64().context("threshold")?;
                ensure!((threshold - recorded_threshold).abs() < 1e-6, "threshold {threshold}, recorded {recorded}");
                policy.judge(at, recorded[1].as_f64().context("diff")? as f32)
            }
        };
        if decision.action == Action::Skip {
            skipped.push(name);
        }
        reasons.insert(decision.reason.as_str());
    }
    ensure!(compared.next().is_none(), "the reference compared more blocks");
    Ok((skipped, reasons))
}

fn check_pruned_step(
    policy: &mut dyn CachePolicy,
    at: DecisionPoint,
    singles: &[usize],
    case: &Case,
    index: usize,
) -> Result<()> {
    let record = &case.json["branches"][at.branch.as_str()];
    ensure!(policy.gate(at) == Gate::Decided(Reason::PerBlock.into()), "decides on the whole step");
    let blocks = singles.iter().map(|&block| (block, block));
    let (pruned, reasons) = check_blocks(policy, at, blocks, &record["diffs"][index])?;
    ensure!(json!(pruned) == record["pruned_blocks"][index], "pruned {pruned:?}, recorded {record}");
    let letter = if pruned.is_empty() { 'C' } else { 'P' };
    ensure!(record["decisions"].as_str().and_then(|letters| letters.chars().nth(index)) == Some(letter), "letter");
    if let Some(recorded) = record.get("reasons") {
        ensure!(recorded[index] == json!(reasons), "recorded {}, here {reasons:?}", recorded[index]);
    }
    Ok(())
}

fn check_tail(
    policy: &mut dyn CachePolicy,
    at: DecisionPoint,
    config: &PolicyConfig,
    case: &Case,
    index: usize,
) -> Result<()> {
    let record = &case.json["branches"][at.branch.as_str()];
    let Some(compared) = record.get("bn_diffs") else { return Ok(()) };
    let tail = config.blocks_split(case.blocks())?.tail;
    let blocks = config.single_blocks(case.blocks()).into_iter().map(|block| (block, block - tail.start));
    let (skipped, _) = check_blocks(policy, at, blocks, &compared[index])?;
    let run: Vec<usize> = (0..tail.len()).filter(|block| !skipped.contains(block)).collect();
    ensure!(json!(run) == record["bn_run"][index], "tail blocks {run:?} run, recorded {}", record["bn_run"][index]);
    Ok(())
}

#[test]
fn recorded_runs_are_decided_again_in_the_same_way() -> Result<()> {
    let mut replayed = 0;
    for case in cases()?.iter().filter(|case| !is_unsupported(&case.name)) {
        let config = case.policy().with_context(|| case.name.clone())?;
        replay(case, &config).with_context(|| case.name.clone())?;
        replayed += 1;
    }
    ensure!(replayed + UNSUPPORTED.len() == CASES, "replayed {replayed}");
    Ok(())
}

/// The same runs from their letters and pruned blocks alone.
#[test]
fn recordings_are_replayed_without_a_diff() -> Result<()> {
    for case in cases()?.iter().filter(|case| !is_unsupported(&case.name) && case.generations() == 1) {
        let (config, run) = (case.policy()?, case.run()?);
        let policy = PolicyConfig::replay(config.clone(), case.recording(run)?);
        let mut branches = policy.policies(run).with_context(|| case.name.clone())?;
        for step in 0..run.steps {
            for (branch, policy) in &mut branches {
                let at = DecisionPoint { step, steps: run.steps, branch: *branch, block: None };
                let skips = |gate: Gate| match gate {
                    Gate::Decided(decision) => Ok(decision.action == Action::Skip),
                    Gate::NeedsDiff => bail!("{}, step {step} asks for a diff", case.name),
                };
                let recorded = case.recorded(*branch, step)?;
                ensure!(skips(policy.gate(at))? == (recorded.letter == 'S'), "{}, step {step}", case.name);
                let mut skipped = Vec::new();
                for block in config.single_blocks(case.blocks()) {
                    if skips(policy.gate(DecisionPoint { block: Some(block), ..at }))? {
                        skipped.push(block);
                    }
                }
                ensure!(skipped == case.skipped_blocks(*branch, step)?, "{}, step {step}: {skipped:?}", case.name);
            }
        }
    }
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

/// The ratio that the reference prints: pruned blocks over all blocks, of kept blocks and warm-up steps too.
#[test]
fn ratios_of_the_reference_are_pruned_blocks_over_all() -> Result<()> {
    let mut found = 0;
    for case in cases()?.iter().filter(|case| !is_unsupported(&case.name) && !case.has_branch(Branch::Uncond)) {
        let percent = case.json["tag"].as_str().and_then(|tag| tag.split('_').find_map(|part| part.strip_prefix('P')));
        let Some(percent) = percent else { continue };
        let steps = case.steps()?;
        let pruned =
            (0..steps).map(|step| Ok(case.skipped_blocks(Branch::Cond, step)?.len())).sum::<Result<usize>>()?;
        let here = format!("{:.2}", 100.0 * pruned as f64 / (steps * case.blocks()) as f64);
        ensure!(here.parse::<f64>()? == percent.parse::<f64>()?, "{}: {here} instead of {percent}", case.name);
        found += 1;
    }
    ensure!(found > 10, "only {found} ratios were compared");
    Ok(())
}

/// The reference's tags say everything but the options that they never show.
#[test]
fn tags_of_the_reference_are_read_as_the_policy_that_ran() -> Result<()> {
    const NEVER_SHOWN: [&str; 9] = [
        "max_accumulated_residual_diff_threshold",
        "cfg_compute_first",
        "cfg_diff_compute_separate",
        "l1_hidden_states_diff_threshold",
        "important_condition_threshold",
        "downsample_factor",
        "enable_encoder_calibrator",
        "calibrator_cache_type",
        "dmd_rank",
    ];
    let mut read = 0;
    for case in cases()? {
        // Of DBPrune only the numbers are shown.
        let Some(tag) = case.json["tag"].as_str().filter(|tag| tag.starts_with("DBCache")) else { continue };
        let is_shown = |options: &Value| {
            options.as_object().is_none_or(|options| NEVER_SHOWN.iter().all(|name| !options.contains_key(*name)))
        };
        let config = &case.json["config"];
        match (case.policy(), PolicyConfig::from_tag(tag)) {
            (Ok(policy), Ok(from_tag))
                if ["given", "extra", "calibrator"].iter().all(|part| is_shown(&config[*part])) =>
            {
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

/// Two policies for each option: they differ in nothing else, and decide differently on `tests/data/tiny-flux`. The
/// first policy of a pair is the plainer one.
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
    ("Bn_compute_blocks_ids", "f1b4w3r0.3", "f1b4w3r0.3id0"),
    ("non_compute_blocks_diff_threshold", "f1b4w3r0.3id0", "f1b4w3r0.3id0nt0.2"),
    ("enable_alter_cache", "f1b0w3r0.1", "f1b0w3r0.1al1"),
    ("alter_residual_diff_threshold", "f1b0w3r0.1al1", "f1b0w3r0.1al1at0.1"),
    ("enable_encoder_residual", "f1b9w3r0.08", "f1b9w3r0.08er0"),
    ("separate_block_lists", "f1b0w3r0.1", "f1b0w3r0.1sl1"),
    ("calibrator_type", "f1b0w4r0.1", "f1b0w4r0.1_t1"),
    ("calibrator_type", "f1b0w4r0.1_t1", "f1b0w4r0.1_foca"),
    ("calibrator_type", "f1b0w4r0.1_foca", "f1b0w4r0.1_dmd4"),
    ("enable_calibrator", "f1b0w4r0.1_t1", "f1b0w4r0.1_t1_ch0"),
    ("enable_encoder_calibrator", "f1b2w4r0.1_t1", "f1b2w4r0.1_t1_ce0"),
    ("calibrator_cache_type", "f1b0w4r0.1_t1", "f1b0w4r0.1_t1_hs1"),
    ("taylorseer_order", "f1b0w4r0.1_t1", "f1b0w4r0.1_t2"),
    ("taylorseer_first_step", "f1b0w4r0.1_t2", "f1b0w4r0.1_t2tf2"),
    ("dmd_history", "f1b0w6r0.1_dmd6", "f1b0w6r0.1_dmd4"),
    ("dmd_rank", "f1b0w6r0.1_dmd6", "f1b0w6r0.1_dmd6_dk1"),
    ("dmd_ridge", "f1b0w6r0.1_dmd6", "f1b0w6r0.1_dmd6_dg0.1"),
    ("dmd_fallback", "f1b0w4r0.1_dmd6", "f1b0w4r0.1_dmd6:reference"),
];

/// The same for DBPrune.
const PRUNE_PAIRS: &[(&str, &str, &str)] = &[
    ("Fn_compute_blocks", "prune_f0b0w3r0.1", "prune_f2b0w3r0.1"),
    ("Bn_compute_blocks", "prune_f0b0w3r0.1", "prune_f0b2w3r0.1"),
    ("non_prune_block_ids", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1np3"),
    ("residual_diff_threshold", "prune_f0b0w3r0.1", "prune_f0b0w3r0.05"),
    ("max_warmup_steps", "prune_f0b0w3r0.1", "prune_f0b0w6r0.1"),
    ("warmup_interval", "prune_f0b0w6r0.1", "prune_f0b0w6i2r0.1"),
    ("max_cached_steps", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1m4"),
    ("max_pruned_steps", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1mp4"),
    ("max_continuous_cached_steps", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1mc1"),
    ("steps_computation_mask", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1_scm:fast"),
    ("steps_computation_policy", "prune_f0b0w3r0.1_scm:fast", "prune_f0b0w3r0.1_scm:fast:static"),
    ("force_refresh_step_hint", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1fr20"),
    ("force_refresh_step_policy", "prune_f0b0w3r0.1fr20", "prune_f0b0w3r0.1fr20:repeat"),
    ("cfg_compute_first", "prune_f0b0w3r0.05dt1", "prune_f0b0w3r0.05dt1cf1"),
    ("enable_dynamic_prune_threshold", "prune_f0b0w3r0.05", "prune_f0b0w3r0.05dt1"),
    ("max_dynamic_prune_threshold", "prune_f0b0w3r0.05dt1", "prune_f0b0w3r0.05dt1dm0.06"),
    ("dynamic_prune_threshold_relax_ratio", "prune_f0b0w3r0.05dt1", "prune_f0b0w3r0.05dt1dr1.5"),
    ("dynamic_prune_threshold_diffs", "prune_f0b0w3r0.05dt1", "prune_f0b0w3r0.05dt1dn0"),
    ("residual_cache_update_interval", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1ui3"),
    ("compare_all_streams", "prune_f0b0w3r0.07", "prune_f0b0w3r0.07as1"),
    ("separate_block_lists", "prune_f1b0w3r0.1", "prune_f1b0w3r0.1sl1"),
    ("important_condition_threshold", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1ic0.1"),
    ("downsample_factor", "prune_f0b0w3r0.1", "prune_f0b0w3r0.1ds4"),
    ("calibrator_type", "prune_f0b0w4r0.1", "prune_f0b0w4r0.1_t1"),
    ("calibrator_type", "prune_f0b0w4r0.1_t1", "prune_f0b0w4r0.1_foca"),
    ("calibrator_type", "prune_f0b0w4r0.1_foca", "prune_f0b0w4r0.1_dmd4"),
    ("enable_calibrator", "prune_f0b0w4r0.1_t1", "prune_f0b0w4r0.1_t1_ch0"),
    ("enable_encoder_calibrator", "prune_f0b0w4r0.1_t1", "prune_f0b0w4r0.1_t1_ce0"),
    ("taylorseer_order", "prune_f0b0w4r0.1_t1", "prune_f0b0w4r0.1_t2"),
    ("taylorseer_first_step", "prune_f0b0w4r0.1_t2", "prune_f0b0w4r0.1_t2tf2"),
    ("dmd_history", "prune_f0b0w6r0.1_dmd6", "prune_f0b0w6r0.1_dmd4"),
    ("dmd_rank", "prune_f0b0w6r0.1_dmd6", "prune_f0b0w6r0.1_dmd6_dk1"),
    ("dmd_ridge", "prune_f0b0w6r0.1_dmd6", "prune_f0b0w6r0.1_dmd6_dg0.1"),
    ("dmd_fallback", "prune_f0b0w4r0.1_dmd6", "prune_f0b0w4r0.1_dmd6:reference"),
];

/// Tags whose JSON together names every option of a policy.
const ALL_OPTIONS: [(&str, [&str; 2]); 2] =
    [("dbcache", ["dbcache_t1", "dbcache_dmd6"]), ("prune", ["prune_t1", "prune_dmd6"])];

/// The options of a policy by name, those of its calibrator among them.
fn options(tag: &str) -> Result<Map<String, Value>> {
    let Value::Object(mut options) = PolicyConfig::from_tag(tag)?.to_json() else { bail!("object") };
    match options.shift_remove("calibrator") {
        Some(Value::Object(calibrator)) => options.extend(calibrator),
        _ => drop(options.insert("calibrator_type".into(), Value::Null)),
    }
    // No options of a policy.
    options.shift_remove("version");
    options.shift_remove("cache_type");
    Ok(options)
}

/// The decisions of a generation with guidance, those of single blocks among them.
fn decided(output: &Output) -> Vec<(char, Vec<usize>)> {
    output.trace.records.iter().map(|record| (record.letter(), record.skipped_blocks().collect())).collect()
}

#[test]
fn every_option_has_a_pair_that_decides_or_forecasts_differently() -> Result<()> {
    let engine = Engine::load(data("tiny-flux"), &EngineOptions::default())?;
    let generate = |tag: &str| {
        let options =
            RequestOptions { cache: tag.parse()?, steps: Some(28), true_cfg: Some(2.0), ..RequestOptions::default() };
        engine.request(&tiny_inputs(true), &options)?.run(&mut ()).with_context(|| tag.to_owned())
    };
    let tags: BTreeSet<&str> = [PAIRS, PRUNE_PAIRS].concat().into_iter().flat_map(|(_, a, b)| [a, b]).collect();
    let outputs = tags.into_iter().map(|tag| Ok((tag, generate(tag)?))).collect::<Result<BTreeMap<_, _>>>()?;
    let mut with_pair = BTreeSet::new();
    for ((preset, tags), pairs) in ALL_OPTIONS.into_iter().zip([PAIRS, PRUNE_PAIRS]) {
        let mut of_policy = BTreeSet::new();
        for (option, plain, other) in pairs {
            let (a, b) = (options(plain)?, options(other)?);
            // Two types of calibrators share but some of their options.
            let differing: Vec<&String> = a.keys().filter(|key| b.contains_key(*key) && a[*key] != b[*key]).collect();
            ensure!(differing == [option], "{option}: {plain} and {other} differ in {differing:?}");
            let (a, b) = (&outputs[plain], &outputs[other]);
            let mut of_calibrators =
                PolicyOption::all().iter().filter(|option| option.group() == OptionGroup::Calibrator);
            let is_of_calibrator = of_calibrators.any(|known| known.name() == *option);
            let differ = if is_of_calibrator { a.latents != b.latents } else { decided(a) != decided(b) };
            ensure!(differ, "{plain} and {other} both decide {}", a.trace.decisions(Branch::Cond));
            of_policy.insert(option.to_string());
        }
        let mut all = BTreeSet::new();
        for tag in tags {
            all.extend(options(tag)?.keys().cloned());
        }
        let without: Vec<_> = all.symmetric_difference(&of_policy).collect();
        ensure!(without.is_empty(), "{preset}: without a pair: {without:?}");
        with_pair.extend(of_policy);
    }
    let overrides: BTreeSet<String> = PolicyOption::all().iter().map(|option| option.name().to_owned()).collect();
    ensure!(with_pair == overrides, "overrides and policies have other options");
    Ok(())
}
