//! The stages that an engine has loaded: shared by all requests, and changed when a policy needs other cuts.
//!
//! Each session holds the weights of its blocks, packed or on the device. Where nothing is compiled, two plans therefore
//! never lie side by side: a stage that a new policy cuts is freed, and its parts take its place, for all policies
//! (docs/performance.md). Where a provider compiles, each policy keeps the long ones that were compiled for it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::arithmetic::ArithmeticGraphs;
use super::loader::Loader;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::exit::lock;
use crate::model::directory::{EngineDirectory, ExpertGraphs};
use crate::model::graph::Graph;
use crate::model::join::{Part, Piece, boundary, join};
use crate::model::manifest::GraphSpec;
use crate::plan::{Cuts, GraphSize, Limits, Plan, Sizes, Stage};
use crate::request::engine_options::OtherPlan;
use crate::runtime::device::Device;
use crate::runtime::heap;
use crate::runtime::provider::Role;
use crate::runtime::session::Session;

/// A plan with its sessions.
pub(crate) struct LoadedPlan {
    pub plan: Plan,
    pub stages: Vec<Arc<LoadedStage>>,
}

/// The session of one stage, and the tensors that it takes and gives.
pub(crate) struct LoadedStage {
    pub stage: Stage,
    pub session: Arc<Session>,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

/// All stages of one transformer that were loaded so far.
pub(crate) struct Stages {
    /// Which one.
    expert: usize,
    limits: Limits,
    other: OtherPlan,
    /// Whether the loaded stages are one plan, in order, which each new policy divides further.
    are_divided: bool,
    loaded: Mutex<Vec<Arc<LoadedStage>>>,
    /// Held while stages load, so that two requests do not load the same ones; others go on.
    loading: Mutex<()>,
}

/// What sessions are loaded with.
#[derive(Clone, Copy)]
pub(crate) struct Loading<'a> {
    pub device: &'a Device,
    pub loader: &'a Loader,
}

impl LoadedPlan {
    /// The indices of the stages that make up a range of blocks.
    ///
    /// # Errors
    /// `Internal` for a range that the plan was not made for.
    pub(crate) fn cover(&self, blocks: &Range<usize>) -> Result<Range<usize>> {
        self.plan.cover(blocks).ok_or_else(|| Error::internal(format!("blocks {blocks:?} of a plan without that cut")))
    }
}

impl Stages {
    fn new(expert: usize, limits: Limits, other: OtherPlan, copies_weights: bool) -> Self {
        let are_divided = copies_weights && other == OtherPlan::Load;
        Self { expert, limits, other, are_divided, loaded: Mutex::default(), loading: Mutex::default() }
    }

    /// The stages of each transformer of a model. `copies_weights`: whether a block that is part of two stages would have
    /// its weights twice.
    pub(crate) fn of_experts(
        directory: &EngineDirectory,
        limits: Limits,
        other: OtherPlan,
        copies_weights: bool,
    ) -> Vec<Self> {
        (0..directory.experts.len()).map(|expert| Self::new(expert, limits, other, copies_weights)).collect()
    }

    /// Which transformer they are of.
    pub(crate) fn expert(&self) -> usize {
        self.expert
    }

    /// The plan for a policy that wants to see these cuts, as long as no other policy divides it; nothing is loaded.
    pub(crate) fn plan(&self, directory: &EngineDirectory, cuts: &Cuts) -> Plan {
        let plan = Plan::new(&sizes(directory), self.limits, cuts);
        if self.are_divided { plan.divided(&self.loaded()) } else { plan }
    }

    /// The graphs of that plan.
    ///
    /// # Errors
    /// `EngineDirectory` for blocks that cannot be joined.
    pub(super) fn graphs(&self, directory: &EngineDirectory, cuts: &Cuts) -> Result<Vec<Graph>> {
        let graph = |stage| Ok(StageGraph::new(directory, self.expert, stage)?.graph.into_owned());
        self.plan(directory, cuts).stages().iter().map(graph).collect()
    }

    /// The plan for these cuts with its sessions. Sessions that are missing are loaded, whatever `other` says.
    ///
    /// # Errors
    /// `Runtime`, `Cancelled`; `EngineDirectory` for blocks that cannot be joined.
    pub(crate) fn load(
        &self,
        directory: &EngineDirectory,
        on: Loading<'_>,
        cuts: &Cuts,
        cancel: &CancelToken,
    ) -> Result<LoadedPlan> {
        let plan = self.plan(directory, cuts);
        if let Some(stages) = self.find(&plan) {
            return Ok(LoadedPlan { plan, stages });
        }
        let _loading = lock(&self.loading);
        // Another request may have loaded, and divided, since.
        let plan = self.plan(directory, cuts);
        if self.are_divided {
            self.free(&plan);
        }
        let known = self.loaded();
        let missing: Vec<&Stage> = plan.stages().iter().filter(|stage| !known.contains(stage)).collect();
        let graphs =
            missing.iter().map(|stage| StageGraph::new(directory, self.expert, stage)).collect::<Result<Vec<_>>>()?;
        let borrowed: Vec<&Graph> = graphs.iter().map(|stage| stage.graph.as_ref()).collect();
        let sessions = on.loader.sessions(on.device, Role::Stage, &borrowed, cancel)?;
        tracing::info!(loaded = missing.len(), of = plan.stages().len(), "stages loaded");
        let fresh = missing.iter().zip(graphs).zip(sessions).map(|((stage, graph), session)| {
            let StageGraph { inputs, outputs, .. } = graph;
            Arc::new(LoadedStage { stage: (*stage).clone(), session, inputs, outputs })
        });
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.extend(fresh);
        if self.are_divided {
            loaded.sort_by_key(|loaded| (loaded.stage.blocks.start, loaded.stage.blocks.end));
        }
        drop(loaded);
        let stages = self.find(&plan).ok_or_else(|| Error::internal("a stage that was loaded is lost"))?;
        Ok(LoadedPlan { plan, stages })
    }

    /// The plan of a request.
    ///
    /// # Errors
    /// As [`load`](Self::load); `Usage` where the loaded plan does not fit and nothing may be loaded.
    pub(crate) fn for_request(
        &self,
        directory: &EngineDirectory,
        on: Loading<'_>,
        cuts: &Cuts,
        cancel: &CancelToken,
    ) -> Result<LoadedPlan> {
        if self.other != OtherPlan::Refuse {
            return self.load(directory, on, cuts, cancel);
        }
        let stages = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let plan = Plan::of(stages.iter().map(|loaded| loaded.stage.clone()).collect());
        let exact = self.plan(directory, cuts);
        if plan.shows(cuts) && plan.arithmetic().eq(exact.arithmetic()) {
            return Ok(LoadedPlan { plan, stages });
        }
        let asked: Vec<String> = cuts.ranges.iter().map(|range| format!("{} to {}", range.start, range.end)).collect();
        let loaded: Vec<String> = plan.stages().iter().map(Stage::name).collect();
        Err(Error::usage(format!(
            "the cache asks for the blocks {}, but the stages of this engine ({}) do not begin and end there, and it may \
             load no others; load the engine for this cache, or with one block a stage (the option `stages=per-block`)",
            asked.join(", "),
            loaded.join("; ")
        ))
        .about("cache"))
    }

    /// Frees the stages that a plan divides, before their parts are loaded: so that weights are there once. A request that
    /// runs them keeps them until it ends. Where loading the parts fails, the next request loads what is missing.
    fn free(&self, plan: &Plan) {
        let is_kept = |loaded: &Arc<LoadedStage>| plan.stages().contains(&loaded.stage);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, divided): (Vec<_>, Vec<_>) = std::mem::take(&mut *loaded).into_iter().partition(is_kept);
        *loaded = kept;
        drop(loaded);
        if !divided.is_empty() {
            tracing::info!(freed = divided.len(), "stages divided");
            drop(divided);
            heap::give_back();
        }
    }

    /// The stages that are loaded.
    pub(crate) fn loaded(&self) -> Vec<Stage> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().map(|loaded| loaded.stage.clone()).collect()
    }

    fn find(&self, plan: &Plan) -> Option<Vec<Arc<LoadedStage>>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |stage: &Stage| loaded.iter().find(|loaded| loaded.stage == *stage).cloned();
        plan.stages().iter().map(find).collect()
    }
}

/// What each graph adds to a stage. Transformers that take turns have the same plan, so the largest counts.
pub(crate) fn sizes(directory: &EngineDirectory) -> Sizes {
    let size = |of: &dyn Fn(&ExpertGraphs) -> &Graph| {
        let graphs = || directory.experts.iter().map(of);
        GraphSize {
            bytes: graphs().map(|graph| graph.weight_bytes + graph.bytes.len() as u64).max().unwrap_or_default(),
            nodes: graphs().map(|graph| graph.nodes).max().unwrap_or_default(),
        }
    };
    let blocks = 0..directory.manifest.blocks.len();
    Sizes {
        embed: size(&|expert| &expert.embed),
        blocks: blocks.map(|block| size(&|expert| &expert.blocks[block])).collect(),
        last: size(&|expert| &expert.last),
    }
}

/// The graph of one stage: a graph of the directory, or several joined.
pub(super) struct StageGraph<'d> {
    pub graph: Cow<'d, Graph>,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

impl<'d> StageGraph<'d> {
    pub(super) fn new(directory: &'d EngineDirectory, expert: usize, stage: &Stage) -> Result<Self> {
        let (manifest, graphs) = (&directory.manifest, &directory.experts[expert]);
        let end = |is_there: bool, graph: &'d Graph, spec: &'d GraphSpec| {
            is_there.then_some(Part { graph, inputs: &spec.inputs, outputs: &spec.outputs })
        };
        let first = end(stage.embed, &graphs.embed, &manifest.embed);
        let last = end(stage.last, &graphs.last, &manifest.last);
        let block = |block: usize| {
            let kind = &manifest.block_kinds[&manifest.blocks[block].kind]; // Manifest::parse has checked the kind.
            Part { graph: &graphs.blocks[block], inputs: &kind.inputs, outputs: &kind.outputs }
        };
        let around = ArithmeticGraphs::new(manifest, stage)?;
        let pieces = around.pieces(first, stage.blocks.clone().map(block).collect(), last);
        let (inputs, mut outputs) = boundary(&pieces);
        let graph = match (pieces.as_slice(), first.or(last)) {
            ([Piece::Part(_)], Some(end)) => Cow::Borrowed(end.graph),
            ([Piece::Part(_)], None) => Cow::Borrowed(&graphs.blocks[stage.blocks.start]),
            (pieces, _) => {
                // After the final graph nobody takes the streams, nor what embed made for the blocks.
                if stage.last {
                    outputs.retain(|tensor| manifest.last.outputs.contains(tensor));
                }
                Cow::Owned(join(&directory.stage_name(expert, &stage.name()), pieces, &outputs)?)
            }
        };
        Ok(Self { graph, inputs, outputs })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::cache::PolicyConfig;
    use crate::model::graph::element_type;
    use crate::model::manifest::DType;
    use crate::model::onnx::{self, GraphProto, ValueInfoProto, element};
    use crate::plan::StagesChoice;
    use crate::request::cuts;
    use crate::request::engine_options::ArithmeticChoice;

    fn decoded(graph: &Graph) -> GraphProto {
        onnx::decode(&graph.bytes).unwrap().graph.unwrap()
    }

    fn element(port: &mut ValueInfoProto) -> &mut i32 {
        port.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().elem_type.as_mut().unwrap()
    }

    /// The tiny model with the ports of one that was exported in bf16.
    fn in_bf16() -> EngineDirectory {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-flux");
        let mut directory = EngineDirectory::open(&folder, None).unwrap();
        for graph in directory.experts.iter_mut().flat_map(ExpertGraphs::all_mut) {
            let mut model = onnx::decode(&graph.bytes).unwrap();
            let inner = model.graph.as_mut().unwrap();
            let ports = inner.input.iter_mut().chain(&mut inner.output).map(element);
            ports.filter(|element| **element == element::FLOAT).for_each(|element| *element = element::BFLOAT16);
            graph.bytes = model.encode_to_vec();
        }
        directory.manifest.tensors.values_mut().for_each(|tensor| tensor.dtype = DType::Bf16);
        directory
    }

    /// For a provider that takes no bf16 there, every stage begins and ends in f32, however the blocks are joined, and with
    /// the cache's arithmetic in it; within a stage nothing is cast to f32 and back.
    #[test]
    fn stages_meet_in_f32_where_a_provider_takes_no_bf16() {
        for (is_cast, expected) in [(false, element::BFLOAT16), (true, element::FLOAT)] {
            let directory = if is_cast { in_bf16().without_bf16_ports().unwrap() } else { in_bf16() };
            let streams = &directory.manifest.streams;
            assert!(streams.iter().all(|stream| element_type(directory.manifest.tensors[stream].dtype) == expected));
            for (choice, cache, arithmetic) in [
                (StagesChoice::PerBlock, "none", ArithmeticChoice::Auto),
                (StagesChoice::Blocks(5), "f3b4", ArithmeticChoice::Auto),
                (StagesChoice::Fused, "none", ArithmeticChoice::Auto),
                (StagesChoice::Fused, "f3b4", ArithmeticChoice::Stages),
            ] {
                let stages =
                    Stages::new(0, Limits::new(choice, None, &sizes(&directory)).unwrap(), OtherPlan::Load, false);
                let policy: PolicyConfig = cache.parse().unwrap();
                let cuts = cuts::of_policy(&directory.manifest, &policy, arithmetic).unwrap();
                for graph in stages.graphs(&directory, &cuts).unwrap() {
                    let mut graph = decoded(&graph);
                    let carries = |port: &&mut ValueInfoProto| {
                        port.name.as_deref().is_some_and(|name| streams.iter().any(|stream| name.starts_with(stream)))
                    };
                    let mut ports: Vec<_> = graph.input.iter_mut().chain(&mut graph.output).filter(carries).collect();
                    assert!(ports.iter_mut().all(|port| *element(port) == expected), "{choice} {cache}");
                    let is_cast = |node: &&onnx::NodeProto| node.op_type.as_deref() == Some("Cast");
                    let at_boundary = |value: &String| value.contains("dbcache-boundary/");
                    let casts: Vec<_> = graph.node.iter().filter(is_cast).collect();
                    let widened: Vec<_> =
                        casts.iter().filter(|node| at_boundary(&node.input[0])).map(|node| &node.output[0]).collect();
                    let narrowed = casts.iter().filter(|node| at_boundary(&node.output[0]));
                    assert!(narrowed.clone().all(|node| !widened.contains(&&node.input[0])), "{choice} {cache}");
                    assert_eq!(narrowed.count() > 0, expected == element::FLOAT, "{choice} {cache}");
                }
            }
        }
    }
}
