//! The rows: every option of the policies.

use super::super::calibrator::{CalibratorCacheType, CalibratorConfig, CalibratorKind, CalibratorType, DmdFallback};
use super::super::dbcache::DbCacheConfig;
use super::super::dbprune::DbPruneConfig;
use super::super::mask::StepsPolicy;
use super::super::schedule::RefreshPolicy;
use super::PolicyOption;
use super::Token::{self, Always, Chooses, Follows, Named};
use super::field::{Field, Lens};
use super::form::Absent;
use super::form::OptionForm::{self, Blocks, Count, Mask, Number, Switch, Word};

/// The field of this name.
macro_rules! field {
    ($name:ident) => {
        Lens::new(|config| Some(config.$name.value()), |config, value| config.$name.assign(value))
    };
}

/// The field of this name of one kind of calibrators.
macro_rules! of_kind {
    ($kind:ident, $name:ident) => {
        Lens::new(
            |config| match &config.kind {
                CalibratorKind::$kind { $name, .. } => Some($name.value()),
                _ => None,
            },
            |config, value| match &mut config.kind {
                CalibratorKind::$kind { $name, .. } => $name.assign(value),
                _ => false,
            },
        )
    };
}

/// Another kind begins with its own defaults.
const CALIBRATOR_TYPE: Lens<CalibratorConfig> = Lens::new(
    |config| Some(config.kind.calibrator_type().value()),
    |config, value| {
        let asked = CalibratorType::of(value);
        if let Some(asked) = asked.filter(|asked| *asked != config.kind.calibrator_type()) {
            *config = CalibratorConfig::new(asked.kind());
        }
        asked.is_some()
    },
);

const fn option(name: &'static str, token: Token, form: OptionForm, example: &'static str) -> PolicyOption {
    PolicyOption { name, token, form, example, about: "", is_common: false, cache: None, prune: None, calibrator: None }
}

impl PolicyOption {
    const fn does(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    const fn common(self) -> Self {
        Self { is_common: true, ..self }
    }

    const fn of_cache(self, lens: Lens<DbCacheConfig>) -> Self {
        Self { cache: Some(lens), ..self }
    }

    const fn of_prune(self, lens: Lens<DbPruneConfig>) -> Self {
        Self { prune: Some(lens), ..self }
    }

    const fn of_calibrator(self, lens: Lens<CalibratorConfig>) -> Self {
        Self { calibrator: Some(lens), ..self }
    }
}

/// In the order in which canonical tags write them.
pub(super) const OPTIONS: &[PolicyOption] = &[
    option("Fn_compute_blocks", Always("f"), Count(Absent::Never), "f1")
        .does("F, the number of blocks in the head. They always run.")
        .common()
        .of_cache(field!(fn_compute_blocks))
        .of_prune(field!(fn_compute_blocks)),
    option("Bn_compute_blocks", Always("b"), Count(Absent::Never), "f8b16")
        .does("B, the number of blocks in the tail. They always run.")
        .common()
        .of_cache(field!(bn_compute_blocks))
        .of_prune(field!(bn_compute_blocks)),
    option("max_warmup_steps", Always("w"), Count(Absent::Never), "f1b0w4")
        .does("The number of warm-up steps.")
        .common()
        .of_cache(field!(max_warmup_steps))
        .of_prune(field!(max_warmup_steps)),
    option("warmup_interval", Always("i"), Count(Absent::Never), "f1b0i2")
        .does("Computes only every i-th step of the warm-up; the other rules decide on the rest.")
        .of_cache(field!(warmup_interval))
        .of_prune(field!(warmup_interval)),
    option("residual_diff_threshold", Always("r"), Number(Absent::Never), "f8b8r0.2")
        .does("The threshold: a step (or a block) with a smaller diff is skipped. 0 skips nothing; 1 or more skips without a diff.")
        .common()
        .of_cache(field!(residual_diff_threshold))
        .of_prune(field!(residual_diff_threshold)),
    option("max_cached_steps", Named("m"), Count(Absent::MinusOne), "f8b16m10")
        .does("The most steps that are skipped.")
        .common()
        .of_cache(field!(max_cached_steps))
        .of_prune(field!(max_cached_steps)),
    option("max_pruned_steps", Named("mp"), Count(Absent::MinusOne), "prune_mp9")
        .does("The most steps with skipped blocks.")
        .common()
        .of_prune(field!(max_pruned_steps)),
    option("max_continuous_cached_steps", Named("mc"), Count(Absent::MinusOne), "f8b16mc3")
        .does("The most steps that are skipped in a row.")
        .common()
        .of_cache(field!(max_continuous_cached_steps))
        .of_prune(field!(max_continuous_cached_steps)),
    option("max_accumulated_residual_diff_threshold", Named("a"), Number(Absent::Null), "f8b16a0.5")
        .does("Skips nothing more once the diffs add up to this.")
        .of_cache(field!(max_accumulated_residual_diff_threshold)),
    option("l1_hidden_states_diff_threshold", Named("l"), Number(Absent::Null), "l0.05")
        .does("Replaces the threshold, and compares the head's output, not its residual.")
        .of_cache(field!(l1_hidden_states_diff_threshold)),
    option("important_condition_threshold", Named("ic"), Number(Absent::Zero), "ic0.06")
        .does("Compares only tokens that changed by more than this.")
        .of_cache(field!(important_condition_threshold))
        .of_prune(field!(important_condition_threshold)),
    option("downsample_factor", Named("ds"), Count(Absent::Never), "ds4")
        .does("Compares only every n-th channel.")
        .of_cache(field!(downsample_factor))
        .of_prune(field!(downsample_factor)),
    option("compare_all_streams", Named("as"), Switch, "prune_as1")
        .does("Compares the text stream as well, in blocks that join both.")
        .of_prune(field!(compare_all_streams)),
    option("cfg_compute_first", Named("cf"), Switch, "f1b0cf1")
        .does("Computes the uncond branch before the cond branch.")
        .of_cache(field!(cfg_compute_first))
        .of_prune(field!(cfg_compute_first)),
    option("cfg_diff_compute_separate", Named("cds"), Switch, "cds0")
        .does("Gives each branch its own diff. Without it, both decide by the cond diff.")
        .of_cache(field!(cfg_diff_compute_separate)),
    option("residual_cache_update_interval", Named("ui"), Count(Absent::Never), "prune_ui3")
        .does("Keeps residuals only on every n-th step.")
        .of_prune(field!(residual_cache_update_interval)),
    option("enable_dynamic_prune_threshold", Named("dt"), Switch, "prune_dt1")
        .does("Lets the threshold follow the diffs of the step.")
        .of_prune(field!(enable_dynamic_prune_threshold)),
    option("max_dynamic_prune_threshold", Named("dm"), Number(Absent::Null), "prune_dt1dm0.3")
        .does("The threshold that is too high: from here on it is `residual_diff_threshold` again. Without it, 2 times that holds.")
        .of_prune(field!(max_dynamic_prune_threshold)),
    option("dynamic_prune_threshold_relax_ratio", Named("dr"), Number(Absent::Never), "prune_dt1dr1.2")
        .does("The threshold is the mean of the diffs times this, if that is above `residual_diff_threshold`.")
        .of_prune(field!(dynamic_prune_threshold_relax_ratio)),
    option("dynamic_prune_threshold_diffs", Named("dn"), Count(Absent::Zero), "prune_dt1dn0")
        .does("How many diffs of a step the mean takes; 0 takes all.")
        .of_prune(field!(dynamic_prune_threshold_diffs)),
    option("enable_alter_cache", Named("al"), Switch, "al1")
        .does("Skips odd steps only, and keeps nothing of even steps (as cache-dit 0.1.0).")
        .of_cache(field!(enable_alter_cache)),
    option("alter_residual_diff_threshold", Named("at"), Number(Absent::Null), "al1at0.2")
        .does("The threshold of odd steps with `enable_alter_cache`. Without it, every odd step after the first is skipped.")
        .of_cache(field!(alter_residual_diff_threshold)),
    option("enable_encoder_residual", Named("er"), Switch, "er0")
        .does("Corrects the text stream on a skipped step. Without it, that stream stays as the head left it.")
        .of_cache(field!(enable_encoder_residual)),
    option("separate_block_lists", Named("sl"), Switch, "sl1")
        .does("Decides on each of the model's lists of blocks alone, with a head, a tail and limits of its own.")
        .of_cache(field!(separate_block_lists))
        .of_prune(field!(separate_block_lists)),
    option("Bn_compute_blocks_ids", Named("id"), Blocks(Absent::Null), "f8b4id0.2")
        .does("Lists the tail blocks that always run, counted from the first of the tail.")
        .of_cache(field!(bn_compute_blocks_ids)),
    option("non_compute_blocks_diff_threshold", Named("nt"), Number(Absent::Null), "f8b4id0.2nt0.1")
        .does("The threshold of the other tail blocks. Without it, 0.08 holds.")
        .of_cache(field!(non_compute_blocks_diff_threshold)),
    option("non_prune_block_ids", Named("np"), Blocks(Absent::Empty), "prune_np2.5")
        .does("Blocks that always run, counted from the start of the model.")
        .common()
        .of_prune(field!(non_prune_block_ids)),
    option("force_refresh_step_hint", Named("fr"), Count(Absent::Null), "fr9")
        .does("Empties the cache after so many calls of the model.")
        .of_cache(field!(force_refresh_step_hint))
        .of_prune(field!(force_refresh_step_hint)),
    option("force_refresh_step_policy", Follows("fr"), Word(&RefreshPolicy::NAMES, Absent::Never), "fr9:repeat")
        .does("Empties it once, or again and again.")
        .of_cache(field!(force_refresh_step_policy))
        .of_prune(field!(force_refresh_step_policy)),
    option("steps_computation_mask", Named("scm"), Mask, "f1b0scm:fast")
        .does("One digit for each step: 1 computes it, 0 may skip it; or slow, medium, fast, ultra.")
        .common()
        .of_cache(field!(steps_computation_mask))
        .of_prune(field!(steps_computation_mask)),
    option("steps_computation_policy", Follows("scm"), Word(&StepsPolicy::NAMES, Absent::Never), "f1b0scm:fast:static")
        .does("What a 0 of the mask means: the diff decides, or the step is skipped.")
        .common()
        .of_cache(field!(steps_computation_policy))
        .of_prune(field!(steps_computation_policy)),
    option("calibrator_type", Token::Word("foca"), Word(&CalibratorType::NAMES, Absent::Null), "f1b0_foca")
        .does("Chooses what forecasts on a skipped step: TaylorSeer, FoCa or DMD.")
        .common()
        .of_calibrator(CALIBRATOR_TYPE),
    option("taylorseer_order", Chooses("t", CalibratorType::TaylorSeer), Count(Absent::Never), "f1b0_t2")
        .does("The number of derivatives that TaylorSeer keeps.")
        .common()
        .of_calibrator(of_kind!(TaylorSeer, taylorseer_order)),
    option("taylorseer_first_step", Named("tf"), Count(Absent::Never), "f1b0_t2tf2")
        .does("The first step with derivatives: 3, or 2 as in cache-dit 0.1.0.")
        .of_calibrator(of_kind!(TaylorSeer, taylorseer_first_step)),
    option("dmd_history", Chooses("dmd", CalibratorType::Dmd), Count(Absent::Never), "f1b0_dmd5")
        .does("The number of computed steps that DMD keeps, at least 4.")
        .of_calibrator(of_kind!(Dmd, dmd_history)),
    option("dmd_fallback", Follows("dmd"), Word(&DmdFallback::NAMES, Absent::Never), "dmd6:reference")
        .does("How a short history is forecast: with the right slope, or as cache-dit does.")
        .of_calibrator(of_kind!(Dmd, dmd_fallback)),
    option("enable_calibrator", Named("ch"), Switch, "f1b0_t2ch0")
        .does("Forecasts the image stream.")
        .of_calibrator(field!(enable_calibrator)),
    option("enable_encoder_calibrator", Named("ce"), Switch, "f1b0_t2ce0")
        .does("Forecasts the text stream.")
        .of_calibrator(field!(enable_encoder_calibrator)),
    option("calibrator_cache_type", Named("hs"), Word(&CalibratorCacheType::NAMES, Absent::Never), "f1b0_t2hs1")
        .does("What is forecast: the residual, or the output. In a tag, 1 is the output.")
        .of_calibrator(field!(calibrator_cache_type)),
    option("dmd_rank", Named("dk"), Count(Absent::Never), "f1b0_dmd6dk2")
        .does("The number of modes that DMD fits. 0 fits all that matter.")
        .of_calibrator(of_kind!(Dmd, dmd_rank)),
    option("dmd_ridge", Named("dg"), Number(Absent::Never), "f1b0_dmd6dg1e-6")
        .does("Is added to DMD's singular values before they are inverted.")
        .of_calibrator(of_kind!(Dmd, dmd_ridge)),
];
