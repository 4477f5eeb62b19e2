//! Whether a calibrator can forecast anything in a run: it needs computed steps to learn from, and skipped ones after
//! them. If it cannot, the run equals one without it, and the setting is refused.

use super::calibrator::{CalibratorConfig, CalibratorKind, DmdFallback};
use super::policy::Action;
use super::schedule::CacheSchedule;
use crate::error::{Error, Result};

/// What bounds the skipped steps, besides the schedule.
pub(super) struct SkipLimits {
    pub threshold: f64,
    pub max_steps: Option<usize>,
    pub max_continuous_steps: Option<usize>,
}

/// How many steps may be skipped at most, if limits and diffs allow it.
pub(super) struct MostSkips {
    /// Between two refreshes, where limits start again.
    pub steps: usize,
    /// The most,
    pub total: usize,
    /// and so many of them in a row.
    pub in_a_row: usize,
}

impl MostSkips {
    pub(super) fn of(schedule: &CacheSchedule, steps: usize) -> Self {
        let mut most = Self { steps: schedule.longest_stretch(steps), total: 0, in_a_row: 0 };
        let (mut is_kept, mut run) = (false, 0);
        for step in 0..most.steps {
            let must_compute = schedule.rule(step).is_some_and(|reason| reason.action() == Action::Compute);
            if must_compute || !is_kept {
                run = 0;
                is_kept |= schedule.keeps(step);
            } else {
                run += 1;
                most.total += 1;
                most.in_a_row = most.in_a_row.max(run);
            }
        }
        most
    }

    /// Notes limits that are too high to ever decide. The last number of each limit is 1 if the limit already acts on the
    /// skip that reaches it, and 0 if it acts on the next step only.
    pub(super) fn note(
        &self,
        limits: &[(&str, Option<usize>, usize)],
        in_a_row: Option<usize>,
        note: &mut impl FnMut(bool, &str, &str),
    ) {
        let Self { steps, total, in_a_row: row } = self;
        let is_idle = |limit: Option<usize>, most: usize| *total > 0 && limit.is_some_and(|limit| limit >= most);
        for (option, limit, spare) in limits {
            note(is_idle(*limit, total + spare), option, &format!("at most {total} of {steps} steps can be skipped"));
        }
        let by = format!("at most {row} steps can be skipped in a row");
        note(is_idle(in_a_row, *row), "max_continuous_cached_steps", &by);
    }
}

/// Refuses a calibrator that could never differ from repeating what was kept last.
pub(super) fn check(
    calibrator: Option<&CalibratorConfig>,
    schedule: &CacheSchedule,
    steps: usize,
    limits: SkipLimits,
) -> Result<()> {
    let Some(calibrator) = calibrator else { return Ok(()) };
    let needs = Needs::of(&calibrator.kind);
    let steps = schedule.longest_stretch(steps);
    let found = Prospect::of(&needs, schedule, steps, &limits);
    if let Some(depth) = needs.depth.filter(|depth| found.is_reached && depth.asked > found.depth) {
        let most = found.depth;
        let remedy = if most >= depth.least {
            format!("use {most} or less, or more steps")
        } else {
            "use more computed steps, or TaylorSeer of order 1".to_owned()
        };
        return Err(Error::usage(format!(
            "{} is {}, but {} of a skipped step of this run is at most {most}; {remedy}",
            depth.option, depth.asked, depth.what
        )));
    }
    if found.is_reached { Ok(()) } else { Err(needs.never(steps, found.is_ever_skipped)) }
}

/// What the steps of a run can do for a calibrator.
struct Prospect {
    /// Whether a step may be skipped after enough was computed.
    is_reached: bool,
    is_ever_skipped: bool,
    /// What is used of a calibrator's depth on the deepest skipped step.
    depth: usize,
}

impl Prospect {
    fn of(needs: &Needs, schedule: &CacheSchedule, steps: usize, limits: &SkipLimits) -> Self {
        let never_skips =
            limits.threshold <= 0.0 || limits.max_steps == Some(0) || limits.max_continuous_steps == Some(0);
        // Then nothing stops the run of skipped steps; what a limit on their number makes computed comes after them all.
        let never_stops = limits.threshold >= 1.0 && limits.max_continuous_steps.is_none();
        let mut found = Self { is_reached: false, is_ever_skipped: false, depth: 0 };
        let (mut kept, mut is_ready, mut depth) = (0, false, 0);
        for step in 0..steps {
            let (may_compute, may_skip) = match schedule.rule(step).map(|reason| reason.action()) {
                Some(action) => (action == Action::Compute, action == Action::Skip),
                None => (never_skips || kept == 0 || !never_stops, !never_skips && kept > 0),
            };
            if may_skip {
                found.depth = found.depth.max(depth);
                found.is_reached |= is_ready;
            }
            found.is_ever_skipped |= may_skip;
            if may_compute && schedule.keeps(step) {
                kept += 1;
                depth += usize::from(needs.depth.is_some_and(|depth| depth.deepens(kept, step)));
                is_ready |= step >= needs.first_step && kept >= needs.kept;
            }
        }
        found
    }
}

/// What must have been computed before a forecast differs from what was kept last.
struct Needs {
    name: &'static str,
    /// So many tensors,
    kept: usize,
    /// the last of them on this step or later.
    first_step: usize,
    depth: Option<AskedDepth>,
}

/// An option that says how much of the past is used: more than there is would change nothing.
#[derive(Clone, Copy)]
struct AskedDepth {
    option: &'static str,
    what: &'static str,
    asked: usize,
    least: usize,
    /// The first step that counts, and whether it needs another kept one before it.
    first_step: usize,
    needs_earlier: bool,
}

impl AskedDepth {
    /// Whether the `kept`-th kept step is one more to use.
    fn deepens(&self, kept: usize, step: usize) -> bool {
        step >= self.first_step && (kept > 1 || !self.needs_earlier)
    }
}

impl Needs {
    /// Why a calibrator never forecasts in a run of so many steps between two refreshes.
    fn never(&self, steps: usize, is_ever_skipped: bool) -> Error {
        let Self { name, kept, first_step, .. } = self;
        let enough = first_step + 2;
        Error::usage(if steps < enough {
            format!(
                "the calibrator never forecasts: {name} needs {enough} steps or more (between two refreshes), of which it \
                 skips the last, and this run has {steps}; raise the option `steps`, or leave the calibrator out"
            )
        } else if !is_ever_skipped {
            "the calibrator never forecasts: no step of this run may be skipped; lower max_warmup_steps, raise the \
             threshold, the limits or the number of steps, put zeros into the mask, or leave the calibrator out"
                .to_owned()
        } else {
            format!(
                "the calibrator never forecasts: {name} needs {kept} computed steps, the last of them step {first_step} \
                 (from 0) or later, and a step that may be skipped after it; set max_warmup_steps to {} (a mask must \
                 begin with so many ones), or leave the calibrator out",
                first_step.saturating_add(1)
            )
        })
    }

    fn of(kind: &CalibratorKind) -> Self {
        match kind {
            CalibratorKind::TaylorSeer { taylorseer_order, taylorseer_first_step } => {
                let (option, what) = ("taylorseer_order", "the highest derivative");
                let (asked, first_step) = (*taylorseer_order, *taylorseer_first_step);
                let depth = Some(AskedDepth { option, what, asked, least: 1, first_step, needs_earlier: true });
                Self { name: "TaylorSeer", kept: 2, first_step, depth }
            }
            CalibratorKind::FoCa => Self { name: "FoCa", kept: 2, first_step: 1, depth: None },
            CalibratorKind::Dmd { dmd_history, dmd_fallback, .. } => {
                let (option, what) = ("dmd_history", "the number of kept steps");
                let depth = Some(AskedDepth {
                    option,
                    what,
                    asked: *dmd_history,
                    least: 4,
                    first_step: 0,
                    needs_earlier: false,
                });
                let kept = match dmd_fallback {
                    DmdFallback::Corrected => 2,
                    DmdFallback::Reference => 3,
                };
                Self { name: "DMD", kept, first_step: 3, depth }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PolicyConfig, RunShape};
    use super::*;

    fn verdict(tag: &str) -> Result<String> {
        verdict_of(tag, 10)
    }

    fn verdict_of(tag: &str, steps: usize) -> Result<String> {
        let config = PolicyConfig::from_tag(tag)?;
        let refused = config.validate(RunShape { n_blocks: 12, steps, branches: 1 });
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
            "f1b0w4r1_dmd4:reference",
            "f1b0_scm:1110010000:static_t1",
            "f1b0w2r0.1m1_t2",
            "f1b0w4r1fr5_t1",
            "f1b0w4r1al1_t1",
            "prune_f1b0w4ui3r1_t1",
            "f1b0w4_t6",
            "f1b0w4_dmd9",
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
            ("f1b0w4fr4:repeat_t1", "needs 5 steps or more (between two refreshes)"),
            ("prune_f1b0w4ui4r1_t1", no_points),
            ("f1b0w4_t99", "order is 99, but the highest derivative of a skipped step of this run is at most 6"),
            ("f1b0w4r1_t2", "is at most 1; use 1 or less"),
            ("f1b0w4_dmd10", "is at most 9; use 9 or less"),
            ("f1b0w4r1_dmd6", "use 4 or less"),
            ("prune_f1b0w4ui3_dmd4", "or TaylorSeer of order 1"),
            ("prune_f1b0w4ui3_t3", "is at most 2; use 2 or less"),
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

    /// No advice that the next run refuses: a longer warm-up would leave nothing to skip.
    #[test]
    fn a_run_that_is_too_short_is_told_how_long_it_must_be() -> Result<()> {
        for (tag, least) in [("f1b0w0_t1", 5), ("f1b0_t1", 5), ("f1b0w4_t1", 5), ("f1b0w2_foca", 3), ("f1b0w4_dmd4", 5)]
        {
            for steps in 1..least {
                let error = verdict_of(tag, steps)?;
                assert!(error.contains(&format!("needs {least} steps or more")), "{tag} {steps}: {error}");
                assert!(error.contains(&format!("this run has {steps};")), "{tag} {steps}: {error}");
            }
            assert!(!verdict_of(tag, least)?.contains("steps or more"), "{tag}");
        }
        Ok(())
    }
}
