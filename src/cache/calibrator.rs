//! Calibrators: on a skipped step they forecast the kept residual instead of repeating the last one.
//!
//! Each forecasts one tensor of one branch. It never sees it: what is kept of the past is a list of tensors in the
//! hands of the loop, and every answer is a table of weights, a [`Sum`] for each new tensor over the ones kept:
//!
//! ```text
//! computed step:  kept' = put(step)        each row: weights of kept[0], kept[1], …, and of the computed tensor, last
//! skipped step:   forecast = get(step)     one row: weights of kept[0], kept[1], …
//!                 kept' = after_get()      each row: weights of kept[0], kept[1], …, and of the forecast, last
//! ```
//!
//! So one device operation, a weighted sum, serves them all; a row of one 1 is no operation, only a new name. Rows that
//! are formed from last to first fit into `capacity() + 1` tensors: there is always one that neither the row itself nor
//! a row still to be formed has a weight on. Steps count from the last refresh, see
//! [`calibrator_step`](super::CachePolicy::calibrator_step).

use super::dmd::{Dmd, Gram};
use crate::error::{Error, Result};
use crate::words::words;

/// `taylorseer_first_step` of cache-dit 1.5.3.
pub(super) const FIRST_STEP: usize = 3;

/// Why the reference's randomised decomposition is refused.
pub(super) const LOW_PRECISION: &str = "dmd_svd_precision is low, a decomposition with random numbers that \
     nothing else reproduces; use medium";

/// Weights of a sum of tensors.
pub type Sum = Vec<f64>;

/// Which calibrator, with its options, named as in cache-dit.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibratorConfig {
    /// How it forecasts.
    pub kind: CalibratorKind,
    /// Whether it forecasts the image stream. If not, the last residual is repeated.
    pub enable_calibrator: bool,
    /// Whether it forecasts the text stream. If not, the last residual is repeated.
    pub enable_encoder_calibrator: bool,
    /// What it is given.
    pub calibrator_cache_type: CalibratorCacheType,
}

/// How a calibrator forecasts. `t` counts steps from -1 at the first computed one; `k` is `t` now minus `t` then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CalibratorKind {
    /// `sum over i of D[i] * k^i / i!`, where `D[0]` is the last computed tensor and `D[i+1]` the change of `D[i]`
    /// since the computed step before, divided by the steps between.
    TaylorSeer {
        /// n, the highest derivative; at least 1.
        taylorseer_order: usize,
        /// The first step (from 0) on which derivatives are formed: 3 as in cache-dit 1.5.3, 2 as in FBCache of 0.1.0,
        /// whose clock was one step ahead; at least 1, since step 0 has nothing before it.
        taylorseer_first_step: usize,
    },
    /// With `full`, `prev` the last two computed tensors, and `now`, `last` the last two of any kind:
    /// `full + min(k, 3)/2 * ((full - prev) + (now - last))`, drawn towards `full` by `3/k` beyond 3 steps.
    FoCa,
    /// A sum of damped oscillations, fitted to the last evenly spaced computed tensors.
    Dmd {
        /// H, how many computed tensors are kept; at least 4.
        dmd_history: usize,
        /// How many modes are fitted; 0 = those above 1e-4 of the strongest.
        dmd_rank: usize,
        /// Added to the singular values before they are inverted.
        dmd_ridge: f64,
        /// What is forecast while fewer than 4 evenly spaced tensors are kept.
        dmd_fallback: DmdFallback,
    },
}

/// How DMD forecasts without a fit: a straight line through the last computed tensor.
///
/// The reference announces TaylorSeer of order 1, but measures its slope from the tensor before the last but one, over
/// the steps since the last but one: on even spacing it is twice too steep. That moves pictures, never decisions by
/// itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DmdFallback {
    /// TaylorSeer of order 1.
    #[default]
    Corrected,
    /// As the reference computes it; only for parity.
    Reference,
}

/// Which calibrator; [`CalibratorKind`] without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalibratorType {
    /// See [`CalibratorKind::TaylorSeer`].
    TaylorSeer,
    /// See [`CalibratorKind::FoCa`].
    FoCa,
    /// See [`CalibratorKind::Dmd`].
    Dmd,
}

/// Which stream of the model a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// The image stream, cache-dit's `hidden_states`: the model's first stream, the one that diffs compare.
    Hidden,
    /// The text stream, cache-dit's `encoder_hidden_states`; not every model has one.
    Encoder,
}

/// What a calibrator is given and forecasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CalibratorCacheType {
    /// The residual of the middle blocks: the forecast is added to the stream.
    #[default]
    Residual,
    /// The output of the middle blocks: the forecast replaces the stream.
    HiddenStates,
}

words!(CalibratorType, "calibrator_type", { TaylorSeer = "taylorseer", FoCa = "foca", Dmd = "dmd" });

words!(CalibratorCacheType, "calibrator_cache_type", { Residual = "residual", HiddenStates = "hidden_states" });

words!(DmdFallback, "dmd_fallback", { Corrected = "corrected", Reference = "reference" });

impl CalibratorType {
    /// With the defaults of cache-dit: order 1; 6 tensors, all modes, ridge 1e-8. But DMD falls back to the corrected
    /// slope.
    pub fn kind(self) -> CalibratorKind {
        match self {
            Self::TaylorSeer => CalibratorKind::TaylorSeer { taylorseer_order: 1, taylorseer_first_step: FIRST_STEP },
            Self::FoCa => CalibratorKind::FoCa,
            Self::Dmd => CalibratorKind::Dmd {
                dmd_history: 6,
                dmd_rank: 0,
                dmd_ridge: 1e-8,
                dmd_fallback: DmdFallback::Corrected,
            },
        }
    }
}

impl CalibratorKind {
    /// Which it is.
    pub fn calibrator_type(&self) -> CalibratorType {
        match self {
            Self::TaylorSeer { .. } => CalibratorType::TaylorSeer,
            Self::FoCa => CalibratorType::FoCa,
            Self::Dmd { .. } => CalibratorType::Dmd,
        }
    }
}

impl CalibratorConfig {
    /// Whether it forecasts this stream.
    pub fn forecasts(&self, stream: StreamKind) -> bool {
        match stream {
            StreamKind::Hidden => self.enable_calibrator,
            StreamKind::Encoder => self.enable_encoder_calibrator,
        }
    }

    /// Both streams, residuals.
    pub fn new(kind: CalibratorKind) -> Self {
        let (enable_calibrator, enable_encoder_calibrator) = (true, true);
        Self {
            kind,
            enable_calibrator,
            enable_encoder_calibrator,
            calibrator_cache_type: CalibratorCacheType::Residual,
        }
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// `Usage` with the reason and a remedy.
    pub fn check(&self) -> Result<()> {
        match self.kind {
            CalibratorKind::TaylorSeer { taylorseer_order: 0, .. } => {
                Err(Error::usage("taylorseer_order is 0, which repeats the last residual; leave the calibrator out"))
            }
            CalibratorKind::TaylorSeer { taylorseer_first_step: 0, .. } => Err(Error::usage(
                "taylorseer_first_step is 0, but a derivative needs a step before it; use 1 or more (cache-dit: 3)",
            )),
            CalibratorKind::Dmd { dmd_history: ..4, .. } => {
                Err(Error::usage("dmd_history is below 4, the fewest tensors that DMD can fit; use 4 or more"))
            }
            CalibratorKind::Dmd { dmd_ridge, .. } if !(dmd_ridge.is_finite() && dmd_ridge >= 0.0) => {
                Err(Error::usage(format!("dmd_ridge is {dmd_ridge}; use 0 or a positive number")))
            }
            _ if !self.enable_calibrator && !self.enable_encoder_calibrator => Err(Error::usage(
                "enable_calibrator and enable_encoder_calibrator are both false; leave the calibrator out",
            )),
            _ => Ok(()),
        }
    }

    /// The state for one tensor of one branch.
    pub fn calibrator(&self) -> Box<dyn Calibrator> {
        match self.kind {
            CalibratorKind::TaylorSeer { taylorseer_order, taylorseer_first_step } => Box::new(TaylorSeer {
                order: taylorseer_order,
                first_step: taylorseer_first_step,
                last: 0.0,
                levels: 0,
            }),
            CalibratorKind::FoCa => Box::new(FoCa::default()),
            CalibratorKind::Dmd { dmd_history, dmd_rank, dmd_ridge, dmd_fallback } => {
                Box::new(Dmd::new(dmd_history, dmd_rank, dmd_ridge, dmd_fallback))
            }
        }
    }
}

/// Forecasts one tensor of one branch in one generation.
pub trait Calibrator: Send {
    /// How many tensors are ever kept.
    fn capacity(&self) -> usize;

    /// Takes note of a computed tensor. Returns the tensors to keep from now on, as sums over those kept so far and,
    /// last, the computed one.
    fn put(&mut self, step: usize) -> Vec<Sum>;

    /// Which of the kept tensors [`get`](Self::get) needs to know the inner products of, at the moment; the first
    /// question after a `put` only.
    fn needs_gram(&self) -> Option<std::ops::Range<usize>> {
        None
    }

    /// Takes the inner products of the tensors that [`needs_gram`](Self::needs_gram) named, one table for each batch
    /// item.
    fn set_gram(&mut self, _grams: &[Gram]) {}

    /// The forecast for a skipped step, as a sum over the kept tensors: one for each batch item, or one for all. At
    /// least one `put` must have come before.
    fn get(&mut self, step: usize) -> Vec<Sum>;

    /// The tensors to keep after [`get`](Self::get), as sums over those kept so far and, last, the forecast; `None` if
    /// they stay as they are.
    fn after_get(&mut self) -> Option<Vec<Sum>> {
        None
    }
}

/// The clock of the reference: it starts at -1 with the first computed step, which is step 0.
pub(super) fn clock(step: usize) -> f64 {
    step as f64 - 1.0
}

/// A row that picks one of `n` tensors.
pub(super) fn pick(index: usize, n: usize) -> Sum {
    (0..n).map(|i| if i == index { 1.0 } else { 0.0 }).collect()
}

/// Keeps the last computed tensor and its differences.
struct TaylorSeer {
    order: usize,
    first_step: usize,
    last: f64,
    /// How many of `D[0]`, `D[1]`, … are kept.
    levels: usize,
}

impl Calibrator for TaylorSeer {
    fn capacity(&self) -> usize {
        self.order + 1
    }

    fn put(&mut self, step: usize) -> Vec<Sum> {
        let t = clock(step);
        let window = t - self.last;
        let columns = self.levels + 1;
        let mut rows = vec![pick(self.levels, columns)];
        // A level needs the level below it from the put before; the first steps count as no history.
        let levels = if step >= self.first_step { self.order.min(self.levels) } else { 0 };
        for i in 0..levels {
            let below = &rows[i];
            let row = (0..columns).map(|c| (below[c] - if c == i { 1.0 } else { 0.0 }) / window).collect();
            rows.push(row);
        }
        self.levels = rows.len();
        self.last = t;
        rows
    }

    fn get(&mut self, step: usize) -> Vec<Sum> {
        let k = clock(step) - self.last;
        let mut weight = 1.0;
        let weights = (0..self.levels).map(|i| {
            if i > 0 {
                weight *= k / i as f64;
            }
            weight
        });
        vec![weights.collect()]
    }
}

/// Keeps `full`, `now`, and once there are any, `prev`, `last`, in this order.
#[derive(Default)]
struct FoCa {
    last_put: f64,
    kept: usize,
}

/// Forecasts further ahead than this are drawn towards the last computed tensor.
const FOCA_HORIZON: f64 = 3.0;

impl Calibrator for FoCa {
    fn capacity(&self) -> usize {
        4
    }

    fn put(&mut self, step: usize) -> Vec<Sum> {
        self.last_put = clock(step);
        let columns = self.kept + 1;
        let computed = pick(self.kept, columns);
        let mut rows = vec![computed.clone(), computed];
        if self.kept > 0 {
            rows.extend([pick(0, columns), pick(1, columns)]);
        }
        self.kept = rows.len();
        rows
    }

    fn get(&mut self, step: usize) -> Vec<Sum> {
        if self.kept < 4 {
            return vec![pick(0, self.kept)];
        }
        let k = clock(step) - self.last_put;
        let damping = if k > FOCA_HORIZON { FOCA_HORIZON / k } else { 1.0 };
        let c = damping * k.min(FOCA_HORIZON) / 2.0;
        vec![vec![1.0 + c, c, -c, -c]]
    }

    fn after_get(&mut self) -> Option<Vec<Sum>> {
        (self.kept == 4).then(|| [0, 4, 2, 1].map(|index| pick(index, 5)).to_vec())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The loop's part, on vectors.
    pub struct Stream {
        pub calibrator: Box<dyn Calibrator>,
        kept: Vec<Vec<f64>>,
    }

    impl Stream {
        pub fn new(kind: CalibratorKind) -> Self {
            Self { calibrator: CalibratorConfig::new(kind).calibrator(), kept: Vec::new() }
        }

        fn sum(&self, row: &Sum, extra: Option<&Vec<f64>>) -> Vec<f64> {
            let tensors: Vec<&Vec<f64>> = self.kept.iter().chain(extra).collect();
            assert_eq!(row.len(), tensors.len());
            (0..tensors[0].len()).map(|i| row.iter().zip(&tensors).map(|(w, t)| w * t[i]).sum()).collect()
        }

        pub fn put(&mut self, step: usize, computed: &[f64]) {
            let rows = self.calibrator.put(step);
            let computed = computed.to_vec();
            self.kept = rows.iter().map(|row| self.sum(row, Some(&computed))).collect();
            assert!(self.kept.len() <= self.calibrator.capacity());
        }

        pub fn get(&mut self, step: usize) -> Vec<f64> {
            if let Some(range) = self.calibrator.needs_gram() {
                let tail = &self.kept[range];
                let dot = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum();
                let gram = tail.iter().map(|a| tail.iter().map(|b| dot(a, b)).collect()).collect();
                self.calibrator.set_gram(&[gram]);
            }
            let rows = self.calibrator.get(step);
            let forecast = self.sum(&rows[0], None);
            if let Some(rows) = self.calibrator.after_get() {
                self.kept = rows.iter().map(|row| self.sum(row, Some(&forecast))).collect();
            }
            forecast
        }
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12 * (1.0 + b.abs()))
    }

    fn taylorseer(taylorseer_order: usize) -> CalibratorKind {
        CalibratorKind::TaylorSeer { taylorseer_order, taylorseer_first_step: FIRST_STEP }
    }

    /// Follows the formula of [`CalibratorKind::TaylorSeer`] literally.
    fn taylor(order: usize, puts: &[(usize, f64)], at: usize) -> f64 {
        let (mut d, mut last): (Vec<f64>, f64) = (Vec::new(), -1.0);
        for &(step, y) in puts {
            let t = step as f64 - 1.0;
            let mut next = vec![y];
            for i in 0..order {
                match d.get(i) {
                    Some(old) if t > 1.0 => next.push((next[i] - old) / (t - last)),
                    _ => break,
                }
            }
            (d, last) = (next, t);
        }
        let k = at as f64 - 1.0 - last;
        let factorial = |i: usize| (1..=i).product::<usize>() as f64;
        d.iter().enumerate().map(|(i, d)| d * k.powi(i as i32) / factorial(i)).sum()
    }

    #[test]
    fn taylorseer_follows_its_formula() {
        let y = |step: usize| (step as f64 * 0.7).sin() + 0.1 * step as f64;
        for order in 1..=4 {
            let mut stream = Stream::new(taylorseer(order));
            let mut puts = Vec::new();
            for step in 0..20 {
                if step < 4 || step % 3 == 0 || step == 13 {
                    puts.push((step, y(step)));
                    stream.put(step, &[y(step)]);
                } else {
                    let (a, b) = (stream.get(step), taylor(order, &puts, step));
                    assert!(close(&a, &[b]), "order {order}, step {step}: {a:?} {b}");
                }
            }
        }
    }

    #[test]
    fn taylorseer_has_no_derivative_before_its_first_step() {
        for taylorseer_first_step in 1..5 {
            let mut stream = Stream::new(CalibratorKind::TaylorSeer { taylorseer_order: 2, taylorseer_first_step });
            for step in 0..taylorseer_first_step {
                stream.put(step, &[step as f64]);
                assert_eq!(stream.kept.len(), 1);
            }
            let step = taylorseer_first_step;
            stream.put(step, &[step as f64]);
            assert!(close(&stream.get(step + 2), &[step as f64 + 2.0]));
        }
    }

    #[test]
    fn foca_follows_its_formula() {
        let mut stream = Stream::new(CalibratorKind::FoCa);
        stream.put(0, &[1.0]);
        assert_eq!(stream.get(1), [1.0]);
        stream.put(2, &[2.0]);
        // full 2, prev 1, now 2, last 1.
        assert!(close(&stream.get(3), &[2.0 + 0.5 * (1.0 + 1.0)]));
        // now 3, last 2.
        assert!(close(&stream.get(4), &[2.0 + 1.0 * (1.0 + 1.0)]));
        // now 4, last 3.
        assert!(close(&stream.get(5), &[2.0 + 1.5 * (1.0 + 1.0)]));
        // now 5, last 4; four steps ahead: three quarters of the forecast for three.
        assert!(close(&stream.get(6), &[0.75 * (2.0 + 1.5 * 2.0) + 0.25 * 2.0]));
        // The last forecast counts as the tensor before: full 8, prev 2, now 8, last 4.25.
        stream.put(7, &[8.0]);
        assert!(close(&stream.get(8), &[8.0 + 0.5 * (6.0 + 8.0 - 4.25)]));
    }

    /// Which tensor has which number: the loop's part, with names for tensors only.
    struct Slots {
        kept: Vec<usize>,
        capacity: usize,
    }

    impl Slots {
        /// Forms the rows from last to first; each sum takes a slot that neither it nor a row still to be formed reads.
        fn form(&mut self, rows: &[Sum], new: Option<usize>) {
            let sources: Vec<usize> = self.kept.iter().copied().chain(new).collect();
            let mut formed: Vec<usize> = Vec::new();
            for (index, row) in rows.iter().enumerate().rev() {
                let uses = |row: &Sum| -> Vec<usize> {
                    row.iter().zip(&sources).filter(|(weight, _)| **weight != 0.0).map(|(_, slot)| *slot).collect()
                };
                let is_pick = row.iter().filter(|weight| **weight != 0.0).count() == 1 && row.contains(&1.0);
                let slot = if is_pick {
                    uses(row)[0]
                } else {
                    let needed: Vec<usize> = rows[..=index].iter().flat_map(&uses).collect();
                    let is_free = |slot: &usize| !needed.contains(slot) && !formed.contains(slot);
                    (0..=self.capacity).find(is_free).unwrap_or(usize::MAX)
                };
                assert!(slot <= self.capacity, "no tensor is free for row {index} of {rows:?}");
                formed.insert(0, slot);
            }
            self.kept = formed;
        }

        fn free(&self) -> usize {
            (0..=self.capacity).find(|slot| !self.kept.contains(slot)).unwrap_or(usize::MAX)
        }
    }

    #[test]
    fn one_tensor_more_than_the_capacity_is_enough() {
        let orders = (1..5).map(taylorseer);
        for kind in orders.chain([CalibratorKind::FoCa, CalibratorType::Dmd.kind()]) {
            let mut calibrator = CalibratorConfig::new(kind).calibrator();
            let mut slots = Slots { kept: Vec::new(), capacity: calibrator.capacity() };
            for step in 0..40 {
                let new = slots.free();
                assert!(new <= slots.capacity, "{kind:?}, step {step}: all tensors are taken");
                if step < 4 || step % 3 == 0 || step % 7 == 0 {
                    slots.form(&calibrator.put(step), Some(new));
                } else {
                    calibrator.get(step);
                    if let Some(rows) = calibrator.after_get() {
                        slots.form(&rows, Some(new));
                    }
                }
            }
        }
    }

    #[test]
    fn senseless_options_are_refused() {
        for kind in [
            taylorseer(0),
            CalibratorKind::TaylorSeer { taylorseer_order: 1, taylorseer_first_step: 0 },
            CalibratorKind::Dmd { dmd_history: 3, dmd_rank: 0, dmd_ridge: 1e-8, dmd_fallback: DmdFallback::Corrected },
            CalibratorKind::Dmd { dmd_history: 6, dmd_rank: 0, dmd_ridge: -1.0, dmd_fallback: DmdFallback::Corrected },
        ] {
            assert!(CalibratorConfig::new(kind).check().is_err(), "{kind:?}");
        }
        let mut config = CalibratorConfig::new(CalibratorKind::FoCa);
        assert!(config.check().is_ok());
        (config.enable_calibrator, config.enable_encoder_calibrator) = (false, false);
        assert!(config.check().is_err());
    }
}
