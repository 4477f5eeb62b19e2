//! Graphs for one of several ranks, each of which holds a share of the tokens between the embed and the final graph.
//!
//! All but attention works on each token alone. So embed ends with operators that take this rank's share, each attention
//! gets what it needs of the other ranks (`method` says how), and the final graph begins with operators that gather what
//! it takes. The operators are in [`DOMAIN`]; `runtime/exchange.rs` has their code. Weights stay where they are.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::attention::{Attention, Edge, TOKENS, attentions, operator};
use super::directory::EngineDirectory;
use super::graph::{Graph, output_port};
use super::manifest::{Manifest, Shard, refused};
use super::onnx::{self, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto, build};
use super::token_by_token::check_token_by_token;
use crate::collective::Method;
use crate::error::{At, Error, Result};

/// The domain of the operators that exchange tokens.
pub(crate) const DOMAIN: &str = "dbcache";
/// `whole`, and the number of tokens of each part along `axis`: to this rank's share of each part, one after the other.
pub(crate) const SHARE: &str = "Share";
/// The shares of all ranks along `axis`, one after the other.
pub(crate) const GATHER: &str = "GatherTokens";
/// All tokens, along `axis`, of this rank's heads.
pub(crate) const TO_HEADS: &str = "TokensToHeads";
/// Back from there: this rank's tokens of all heads; the second input is a tensor of that shape.
pub(crate) const TO_TOKENS: &str = "HeadsToTokens";

impl EngineDirectory {
    /// The same directory as one of several ranks runs it.
    ///
    /// # Errors
    /// `Usage` for a model whose tokens cannot be divided, with the reason.
    pub(crate) fn sharded(mut self, rank: usize, ranks: usize, method: Method) -> Result<Self> {
        let shard = Shard::new(&self.manifest, rank, ranks)?;
        let sharding = Sharding { manifest: &self.manifest, shard: &shard, method };
        for expert in &mut self.experts {
            sharding.embed(&mut expert.embed)?;
            for (block, graph) in self.manifest.blocks.iter().zip(&mut expert.blocks) {
                let kind = &self.manifest.block_kinds[&block.kind]; // Manifest::parse has checked the kind.
                let file = graph.file.clone();
                sharding.block(graph, &kind.inputs, &kind.outputs).at(file)?;
            }
            sharding.last(&mut expert.last)?;
        }
        self.manifest.tensors = shard.renamed(&self.manifest)?;
        self.manifest.shard = Some(shard);
        Ok(self)
    }
}

struct Sharding<'a> {
    manifest: &'a Manifest,
    shard: &'a Shard,
    method: Method,
}

impl Sharding<'_> {
    /// Ends with the share of each tensor that the blocks take a share of.
    fn embed(&self, graph: &mut Graph) -> Result<()> {
        let spec = &self.manifest.embed;
        edited(graph, |inner| {
            let mut lengths: BTreeMap<String, String> = BTreeMap::new();
            let mut after = Vec::new();
            let mut shared = Vec::new();
            for tensor in &spec.outputs {
                let port = output_port(tensor, &spec.inputs);
                let Some((axis, dim)) = self.shard.axis(self.manifest, tensor)? else { continue };
                let whole = format!("{DOMAIN}/{port}");
                rename(inner, &port, &whole);
                if self.shard.parts(&dim) == [dim.clone()] {
                    lengths.entry(dim.clone()).or_insert_with(|| {
                        let length = format!("{DOMAIN}/length/{dim}");
                        let shape = build::node("Shape", &[&whole], &length);
                        let shape = build::with_int(shape, "start", axis as i64);
                        after.push(build::with_int(shape, "end", axis as i64 + 1));
                        length
                    });
                }
                self.share_port(inner.output.iter_mut().find(|output| output.name.as_deref() == Some(&*port)), tensor)?;
                shared.push((axis, dim, whole, port));
            }
            for (axis, dim, whole, port) in shared {
                let counts = format!("{DOMAIN}/counts/{port}");
                let parts: Vec<&str> = self.shard.parts(&dim).iter().map(|part| lengths[part].as_str()).collect();
                after.push(build::with_int(build::node("Concat", &parts, &counts), "axis", 0));
                after.push(exchange(SHARE, &[&whole, &counts], &port, axis as i64));
            }
            inner.node.extend(after);
            Ok(())
        })
    }

    /// Begins with the whole of each tensor of which the blocks have left a share.
    fn last(&self, graph: &mut Graph) -> Result<()> {
        let spec = &self.manifest.last;
        edited(graph, |inner| {
            let mut before = Vec::new();
            for tensor in &spec.inputs {
                let Some((axis, dim)) = self.shard.axis(self.manifest, tensor)? else { continue };
                if self.shard.parts(&dim).len() > 1 {
                    return Err(refused(&format!(
                        "the final graph takes `{tensor}`, whose parts are shared one by one"
                    )));
                }
                let whole = format!("{DOMAIN}/{tensor}");
                let takes = inner.node.iter_mut().flat_map(|node| &mut node.input);
                takes.filter(|input| *input == tensor).for_each(|input| input.clone_from(&whole));
                self.share_port(inner.input.iter_mut().find(|input| input.name.as_ref() == Some(tensor)), tensor)?;
                before.push(exchange(GATHER, &[tensor], &whole, axis as i64));
            }
            inner.node.splice(0..0, before);
            Ok(())
        })
    }

    /// Exchanges what attentions need.
    fn block(&self, graph: &mut Graph, inputs: &[String], outputs: &[String]) -> Result<()> {
        edited(graph, |inner| {
            for tensor in inputs {
                self.share_port(inner.input.iter_mut().find(|input| input.name.as_ref() == Some(tensor)), tensor)?;
            }
            for tensor in outputs {
                let port = output_port(tensor, inputs);
                self.share_port(inner.output.iter_mut().find(|output| output.name.as_deref() == Some(&*port)), tensor)?;
            }
            let shared = self.of_tokens(inner, inputs);
            let found = attentions(inner)?;
            check_token_by_token(inner, &shared, &found)?;
            let is_shared = |edge: Edge| shared.contains(&inner.node[edge.node].input[edge.input]);
            let crossing: Vec<Attention> = found.into_iter().filter(|attention| is_shared(attention.key)).collect();
            let mut editor = Editor { graph: inner, count: 0, before: BTreeMap::new(), after: BTreeMap::new() };
            for attention in &crossing {
                let mask = attention.mask.filter(|mask| shared.contains(editor.value(*mask)));
                if let Some(mask) = mask {
                    editor.replace(mask, GATHER, -1);
                }
                match self.method {
                    Method::Gather => {
                        editor.replace(attention.key, GATHER, attention.key_axis);
                        editor.replace(attention.value, GATHER, TOKENS);
                    }
                    Method::Ulysses => {
                        let own = editor.value(attention.query).clone();
                        editor.replace(attention.query, TO_HEADS, TOKENS);
                        editor.replace(attention.key, TO_HEADS, attention.key_axis);
                        editor.replace(attention.value, TO_HEADS, TOKENS);
                        editor.give_back(attention.output, &own);
                    }
                }
            }
            editor.finish();
            Ok(())
        })
    }

    /// The values of a block that have a row for each of this rank's tokens.
    fn of_tokens(&self, graph: &GraphProto, inputs: &[String]) -> BTreeSet<String> {
        let mut shared: BTreeSet<String> =
            inputs.iter().filter(|tensor| self.shard.holds_share(tensor)).cloned().collect();
        for node in graph.node.iter().filter(|node| operator(node) != "Shape") {
            if node.input.iter().any(|input| shared.contains(input)) {
                shared.extend(node.output.iter().cloned());
            }
        }
        shared
    }

    /// The whole and the share of a dimension have names of their own, so that nothing takes them for equal.
    fn share_port(&self, port: Option<&mut ValueInfoProto>, tensor: &str) -> Result<()> {
        let Some((axis, dim)) = self.shard.axis(self.manifest, tensor)? else { return Ok(()) };
        let shape = port.and_then(|port| port.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut());
        if let Some(axis) = shape.and_then(|shape| shape.dim.get_mut(axis)) {
            axis.dim_param = Some(Shard::name(&dim));
        }
        Ok(())
    }
}

/// Applies a change to the graph that a file holds.
fn edited(graph: &mut Graph, change: impl FnOnce(&mut GraphProto) -> Result<()>) -> Result<()> {
    let mut model: ModelProto = onnx::decode(&graph.bytes).map_err(Error::internal)?;
    let inner = model.graph.get_or_insert_default();
    // The shapes that the exporter knew are those of the whole.
    inner.value_info.clear();
    change(inner)?;
    graph.nodes = inner.node.len();
    model.opset_import.push(OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) });
    graph.bytes = model.encode_to_vec();
    Ok(())
}

/// Renames a value wherever it is made or taken, but for the port that has its name.
fn rename(graph: &mut GraphProto, value: &str, name: &str) {
    let values = graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    values.filter(|other| *other == value).for_each(|other| name.clone_into(other));
}

fn exchange(operator: &str, inputs: &[&str], output: &str, axis: i64) -> NodeProto {
    let node = build::with_int(build::node(operator, inputs, output), "axis", axis);
    NodeProto { domain: Some(DOMAIN.to_owned()), ..node }
}

/// A block while exchanges are put into it.
struct Editor<'g> {
    graph: &'g mut GraphProto,
    count: usize,
    /// New nodes, by the node before or after which they stand.
    before: BTreeMap<usize, Vec<NodeProto>>,
    after: BTreeMap<usize, Vec<NodeProto>>,
}

impl Editor<'_> {
    fn value(&self, edge: Edge) -> &String {
        &self.graph.node[edge.node].input[edge.input]
    }

    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("{DOMAIN}/{}", self.count)
    }

    /// Makes an input what an operator gives of it.
    fn replace(&mut self, edge: Edge, operator: &str, axis: i64) {
        let given = self.fresh();
        let taken = std::mem::replace(&mut self.graph.node[edge.node].input[edge.input], given.clone());
        self.before.entry(edge.node).or_default().push(exchange(operator, &[&taken], &given, axis));
    }

    /// Makes the output of an attention over some heads that over some tokens, of which `own` has as many.
    fn give_back(&mut self, node: usize, own: &str) {
        let heads = self.fresh();
        let tokens = std::mem::replace(&mut self.graph.node[node].output[0], heads.clone());
        self.after.entry(node).or_default().push(exchange(TO_TOKENS, &[&heads, own], &tokens, TOKENS));
    }

    fn finish(mut self) {
        for (index, node) in std::mem::take(&mut self.graph.node).into_iter().enumerate() {
            self.graph.node.extend(self.before.remove(&index).unwrap_or_default());
            self.graph.node.push(node);
            self.graph.node.extend(self.after.remove(&index).unwrap_or_default());
        }
    }
}
