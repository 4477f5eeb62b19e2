//! Binds the blocks of a request: those of each transformer, in each branch, with what is decided on.

use std::collections::HashMap;
use std::sync::Arc;

use super::binder::Binder;
use super::branch::{BranchState, ListState};
use super::chain::{Chain, Named, Streams, Wiring};
use super::expert::Expert;
use super::in_stages::StageArithmetic;
use super::samples::{BranchSamples, Samples};
use super::unit::{DiffSpec, Unit, UnitSpec};
use crate::cache::{Branch, CachePolicy, RunShape};
use crate::engine::LoadedPlan;
use crate::error::{Error, Result};
use crate::plan::InStages;
use crate::request::lists::{List, ListPart};
use crate::request::options::RequestOptions;
use crate::request::shares::Share;
use crate::runtime::tensor::BufferId;

/// What all transformers of a request run with.
pub(super) struct RequestShape<'a> {
    pub options: &'a RequestOptions,
    pub n_branches: usize,
    pub batch: usize,
}

/// Binds the blocks of a request to its tensors.
pub(super) struct Blocks<'a> {
    pub binder: Binder<'a>,
    pub run: RequestShape<'a>,
    /// The part of the policy's arithmetic that stages hold.
    pub arithmetic: Option<&'a InStages>,
    /// The tensors of each branch that are no streams.
    pub of_branches: &'a HashMap<Branch, Named>,
    /// What the tail adds on a computed step; branches and transformers share it.
    pub zeros: Vec<BufferId>,
}

impl Blocks<'_> {
    /// One transformer: its blocks in each branch, bound, and what is decided on.
    pub(super) fn expert(&mut self, share: Share, plan: &Arc<LoadedPlan>, streams: &Arc<Streams>) -> Result<Expert> {
        let RequestShape { options, n_branches, batch } = self.run;
        let mut samples = Vec::new();
        for list in share.lists.iter().filter(|_| options.per_sample) {
            samples.push(Samples::new(&mut self.binder, plan, &list.split.middle)?);
        }
        let count = if options.per_sample { batch } else { 1 };
        let fresh = |list: &List| policies(list, list.run(share.steps.len(), n_branches), count);
        let mut of_lists = share.lists.iter().map(fresh).collect::<Result<Vec<_>>>()?;
        // All lists have the same branches in the same order.
        let order: Vec<Branch> = of_lists.iter().take(1).flatten().map(|of_branch| of_branch.branch).collect();
        let mut branches = Vec::new();
        for branch in order {
            let policies = of_lists.iter_mut().map(|of_branches| of_branches.remove(0).policies).collect();
            let named = self.of_branches.get(&branch).ok_or_else(|| Error::internal("a branch without its tensors"))?;
            let (chain, in_stages) = self.chain(plan, streams, named)?;
            let lists = self.lists(&share.lists, policies, &samples, &chain, in_stages)?;
            let prediction = &self.binder.manifest().last.outputs[0]; // Manifest::parse has checked that there is one.
            let prediction = named.get(prediction).ok_or_else(|| Error::internal("a branch without a prediction"))?;
            branches.push(BranchState { branch, chain, prediction: *prediction, lists });
        }
        Ok(Expert { share, branches, samples })
    }

    /// The blocks of one branch; and the arithmetic of the policy, where their stages hold it.
    fn chain(
        &mut self,
        plan: &Arc<LoadedPlan>,
        streams: &Arc<Streams>,
        named: &Named,
    ) -> Result<(Chain, Option<Unit>)> {
        let manifest = self.binder.manifest();
        let mut named = named.clone();
        let Some(shape) = self.arithmetic else {
            let wiring = Wiring { manifest, plan, streams, named: &named };
            return Ok((Chain::bind(wiring, self.binder.buffers)?, None));
        };
        let tensors = StageArithmetic::allocate(&mut self.binder, shape, streams, &mut self.zeros, &mut named)?;
        let wiring = Wiring { manifest, plan, streams, named: &named };
        let mut chain = Chain::bind(wiring, self.binder.buffers)?;
        let arithmetic = StageArithmetic::bind(&mut self.binder, shape, tensors, &mut chain, &named)?;
        Ok((chain, Some(Unit::in_stages(shape.middle.clone(), arithmetic))))
    }

    /// What one branch keeps of its lists between steps; `policies` and `samples` are those of each list. `in_stages` is the
    /// unit of the one list whose arithmetic is in the stages.
    fn lists(
        &mut self,
        lists: &[List],
        policies: Vec<Vec<Box<dyn CachePolicy>>>,
        samples: &[Samples],
        chain: &Chain,
        mut in_stages: Option<Unit>,
    ) -> Result<Vec<ListState>> {
        let mut states = Vec::new();
        for (index, (list, policies)) in lists.iter().zip(policies).enumerate() {
            let samples = samples.get(index);
            let units = match in_stages.take() {
                Some(unit) => vec![unit],
                None => self.units(chain, list, samples)?,
            };
            let bind = |samples: &Samples| BranchSamples::bind(&mut self.binder, &units, samples.keeps);
            let samples = samples.map(bind).transpose()?;
            states.push(ListState { policies, units, samples });
        }
        Ok(states)
    }

    /// What is decided on in one list of blocks, in one branch.
    fn units(&mut self, chain: &Chain, list: &List, samples: Option<&Samples>) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for part in &list.parts {
            let ListPart::Unit { blocks, block } = part else { continue };
            let diff = match block {
                Some(_) => list.cache.block_diff_options().map(|options| DiffSpec { options, around: blocks.clone() }),
                None => list.cache.diff_options().map(|options| DiffSpec { options, around: list.split.head.clone() }),
            };
            let spec = UnitSpec {
                blocks: blocks.clone(),
                block: *block,
                diff,
                list,
                cache_dtype: self.run.options.cache_dtype,
                keeps: samples.map(|samples| samples.keeps),
            };
            units.push(Unit::bind(&mut self.binder, chain, spec)?);
        }
        Ok(units)
    }
}

/// The policies of one branch: one for the whole batch, or one for each sample.
struct BranchPolicies {
    branch: Branch,
    policies: Vec<Box<dyn CachePolicy>>,
}

/// Fresh policies of a list, `count` for each branch, in the order in which branches are computed. The policies of a
/// sample's branches belong together.
fn policies(list: &List, run: RunShape, count: usize) -> Result<Vec<BranchPolicies>> {
    let mut of_branches: Vec<BranchPolicies> = Vec::new();
    for _ in 0..count {
        for (branch, policy) in list.cache.policies(run)? {
            match of_branches.iter_mut().find(|of_branch| of_branch.branch == branch) {
                Some(of_branch) => of_branch.policies.push(policy),
                None => of_branches.push(BranchPolicies { branch, policies: vec![policy] }),
            }
        }
    }
    Ok(of_branches)
}
