//! Whether a calibrator can forecast anything in a run: it needs computed steps to learn from, and skipped ones after
//! them. If it cannot, the run equals one without it, and the setting is refused.

use super::calibrator::{CalibratorConfig, CalibratorKind, DmdFallback};
use super::policy::Action;
use super::schedule::Schedule;
use crate::error::{Error, Result};

/// What bounds the skipped steps, besides the schedule.
pub(super) struct Limits {
    pub threshold: f64,
    pub max_steps: Option<usize>,
    pub max_continuous_steps: Option<usize>,
}

/// Refuses a calibrator that could never differ from repeating what was kept last.
pub(super) fn check(
    calibrator: Option<&CalibratorConfig>,
    schedule: &Schedule,
    steps: usize,
    limits: Limits,
) -> Result<()> {
    let Some(calibrator) = calibrator else { return Ok(()) };
    let needs = Needs::of(&calibrator.kind);
    let never_skips = limits.threshold <= 0.0 || limits.max_steps == Some(0) || limits.max_continuous_steps == Some(0);
    // Then nothing stops the run of skipped steps; what a limit on their number makes computed comes after them all.
    let never_stops = limits.threshold >= 1.0 && limits.max_continuous_steps.is_none();
    let (mut kept, mut is_ready, mut is_ever_skipped) = (0, false, false);
    for step in 0..schedule.longest_stretch(steps) {
        let (may_compute, may_skip) = match schedule.rule(step).map(|reason| reason.action()) {
            Some(action) => (action == Action::Compute, action == Action::Skip),
            None => (never_skips || kept == 0 || !never_stops, !never_skips && kept > 0),
        };
        if may_skip && is_ready {
            return Ok(());
        }
        is_ever_skipped |= may_skip;
        if may_compute && schedule.keeps(step) {
            kept += 1;
            is_ready |= step >= needs.first_step && kept >= needs.kept;
        }
    }
    if !is_ever_skipped {
        return Err(Error::usage(
            "the calibrator never forecasts: no step of this run may be skipped; lower max_warmup_steps, raise the \
             threshold, the limits or the number of steps, put zeros into the mask, or leave the calibrator out",
        ));
    }
    Err(Error::usage(format!(
        "the calibrator never forecasts: {} needs {} computed steps, the last of them step {} (from 0) or later, and a \
         step that may be skipped after it; set max_warmup_steps to {} or more (a mask must begin with so many ones), \
         or leave the calibrator out",
        needs.name,
        needs.kept,
        needs.first_step,
        needs.first_step + 1
    )))
}

/// What must have been computed before a forecast differs from what was kept last.
struct Needs {
    name: &'static str,
    /// So many tensors,
    kept: usize,
    /// the last of them on this step or later.
    first_step: usize,
}

impl Needs {
    fn of(kind: &CalibratorKind) -> Self {
        match kind {
            CalibratorKind::TaylorSeer { taylorseer_first_step, .. } => {
                Self { name: "TaylorSeer", kept: 2, first_step: *taylorseer_first_step }
            }
            CalibratorKind::FoCa => Self { name: "FoCa", kept: 2, first_step: 1 },
            CalibratorKind::Dmd { dmd_fallback: DmdFallback::Corrected, .. } => {
                Self { name: "DMD", kept: 2, first_step: 3 }
            }
            CalibratorKind::Dmd { dmd_fallback: DmdFallback::Reference, .. } => {
                Self { name: "DMD", kept: 3, first_step: 3 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PolicyConfig, RunShape};
    use super::*;

    fn verdict(tag: &str) -> Result<String> {
        let config = PolicyConfig::from_tag(tag)?;
        let refused = config.validate(RunShape { n_blocks: 12, steps: 10, branches: 1 });
        Ok(refused.err().map(|error| error.to_string()).unwrap_or_default())
    }

    #[test]
    fn a_calibrator_that_could_forecast_is_accepted() -> Result<()> {
        for tag in [
            "f1b0w4_t1",
            "f1b0w3r1_t1tf2",
            "f1b0w0_t1",
            "f1b0w4r1_t1",
            "f1b0w0r1mc3_t1",
            "f1b0w2r1_foca",
            "f1b0w4r1_dmd6:reference",
            "f1b0_scm:1110010000:static_t1",
            "f1b0w2r0.1m1_t2",
            "f1b0w4r1fr5_t1",
            "f1b0w4r1al1_t1",
            "prune_f1b0w4ui3r1_t1",
        ] {
            assert_eq!(verdict(tag)?, "", "{tag}");
        }
        Ok(())
    }

    #[test]
    fn a_calibrator_that_never_forecasts_is_refused() -> Result<()> {
        let (no_points, no_skip) = ("set max_warmup_steps to", "no step of this run may be skipped");
        for (tag, words) in [
            ("f1b0w3r1_t1", no_points),
            ("f1b0w4r1_t1tf4", no_points),
            ("f1b0w0r1m3_t1", no_points),
            ("f1b0w1r1_foca", no_points),
            ("f1b0w3r1_dmd6", no_points),
            ("f1b0w4i3r1_dmd6:reference", no_points),
            ("f1b0_scm:1110000000:static_t1", no_points),
            ("f1b0w4fr4:repeat_t1", no_skip),
            ("prune_f1b0w4ui4r1_t1", no_points),
            ("f1b0w10_t1", no_skip),
            ("f1b0w4r0_t1", no_skip),
            ("f1b0w4m0_t1", no_skip),
            ("f1b0w4mc0_foca", no_skip),
            ("prune_f1b0w4mp0_foca", no_skip),
        ] {
            let error = verdict(tag)?;
            assert!(error.contains(words), "{tag}: `{error}`");
        }
        Ok(())
    }
}
