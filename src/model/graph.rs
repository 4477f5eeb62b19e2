//! One ONNX file of an engine directory: checked against the manifest and the weights, and made ready to load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost::Message;
use safetensors::Dtype;

use super::manifest::{Axis, DType, Manifest};
use super::onnx::{self, AttributeProto, EXTERNAL, GraphProto, ModelProto, TensorProto, ValueInfoProto, element};
use super::weights::WeightsFile;
use super::{amounts, operators};
use crate::error::{Error, Result};

/// Longest constant that is not a parameter, in values.
const MAX_CONSTANT: i64 = 4096;

/// Weights files by the name under which graphs refer to them.
pub(crate) type Weights = BTreeMap<String, WeightsFile>;

/// What a graph promises at its boundary: ports of the ONNX graph, each with the dtype and shape that the manifest gives it.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<Axis>,
}

/// A checked graph. Its bytes refer to real file names in one real folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub file: String,
    pub bytes: Vec<u8>,
    /// The folder in which ONNX Runtime finds the external data; none without parameters.
    pub weights_folder: Option<PathBuf>,
    /// References to parameters.
    pub references: usize,
    pub nodes: usize,
    /// Numbers in the referenced parameters.
    pub parameters: u64,
    /// Bytes of the referenced parameters as stored.
    pub weight_bytes: u64,
    /// Whether a stored dtype differs from the computed one.
    pub casts_weights: bool,
}

/// Output ports of a graph: `<tensor>_out` where the tensor is also taken.
pub(crate) fn output_port(tensor: &str, inputs: &[String]) -> String {
    if inputs.iter().any(|input| input == tensor) { format!("{tensor}_out") } else { tensor.to_owned() }
}

/// Expected ports from lists of tensors.
pub(crate) fn ports(manifest: &Manifest, inputs: &[String], outputs: &[String]) -> Result<(Vec<Port>, Vec<Port>)> {
    let port = |name: String, tensor: &str| {
        let spec = manifest.tensor(tensor)?;
        Ok(Port { name, dtype: spec.dtype, shape: spec.shape.clone() })
    };
    let ins = inputs.iter().map(|tensor| port(tensor.clone(), tensor)).collect::<Result<_>>()?;
    let outs = outputs.iter().map(|tensor| port(output_port(tensor, inputs), tensor)).collect::<Result<_>>()?;
    Ok((ins, outs))
}

impl Graph {
    /// Checks `bytes` (the file's content) and rewrites its references to the real names of the weights files.
    ///
    /// # Errors
    /// `EngineDirectory`, with what differs from the manifest or lies outside the weights.
    pub(crate) fn check(
        file: &str,
        bytes: &[u8],
        opset: i64,
        inputs: &[Port],
        outputs: &[Port],
        weights: &Weights,
    ) -> Result<Self> {
        let mut model = onnx::decode(bytes).map_err(Error::directory)?;
        check_opset(&model, opset)?;
        let Some(graph) = &mut model.graph else { return Err(Error::directory("holds no graph")) };
        check_ports("input", &graph.input, inputs)?;
        check_ports("output", &graph.output, outputs)?;
        check_nodes(graph)?;
        let mut found = Self {
            file: file.to_owned(),
            nodes: graph.node.len(),
            casts_weights: Self::casts_initializers(graph),
            ..Self::default()
        };
        for tensor in &mut graph.initializer {
            let name = tensor.name.clone().unwrap_or_default();
            found.bind(tensor, weights).map_err(|error| error.at(format!("initialiser `{name}`")))?;
        }
        found.bytes = model.encode_to_vec();
        Ok(found)
    }

    /// Its bytes, with files called as `rename` says.
    pub(crate) fn renamed<'a>(&self, rename: impl Fn(&Path, &str) -> Option<&'a str>) -> Result<Vec<u8>> {
        let mut model = onnx::decode(&self.bytes).map_err(Error::internal)?;
        let initializers = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
        for entry in initializers.flat_map(|tensor| &mut tensor.external_data) {
            if let (Some("location"), Some(folder), Some(file)) =
                (entry.key.as_deref(), &self.weights_folder, &entry.value)
                && let Some(name) = rename(folder, file)
            {
                entry.value = Some(name.to_owned());
            }
        }
        Ok(model.encode_to_vec())
    }

    /// Whether a node of `graph` casts a parameter.
    pub(super) fn casts_initializers(graph: &GraphProto) -> bool {
        graph.node.iter().any(|node| {
            node.op_type.as_deref() == Some("Cast")
                && graph.initializer.iter().any(|t| t.name.as_deref() == node.input.first().map(String::as_str))
        })
    }

    /// Whether a node of it is one of these operators.
    pub(crate) fn runs(&self, operators: &[&str]) -> bool {
        let graph = onnx::decode(&self.bytes).ok().and_then(|model| model.graph).unwrap_or_default();
        graph.node.iter().any(|node| node.op_type.as_deref().is_some_and(|operator| operators.contains(&operator)))
    }

    /// Counts the weights of another graph, of which this one is made.
    pub(super) fn absorb(&mut self, part: &Self) -> Result<()> {
        if let Some(folder) = &part.weights_folder
            && let first = self.weights_folder.get_or_insert_with(|| folder.clone())
            && first != folder
        {
            return Err(two_folders(first, folder).at(&part.file));
        }
        self.references += part.references;
        self.nodes += part.nodes;
        self.parameters += part.parameters;
        self.weight_bytes += part.weight_bytes;
        self.casts_weights |= part.casts_weights;
        Ok(())
    }

    fn bind(&mut self, tensor: &mut TensorProto, weights: &Weights) -> Result<()> {
        if tensor.data_location.unwrap_or(0) != EXTERNAL {
            return check_constant(tensor);
        }
        let mut location = None;
        let (mut offset, mut length) = (None, None);
        let mut seen = BTreeSet::new();
        for entry in &mut tensor.external_data {
            let value = entry.value.clone().unwrap_or_default();
            if !seen.insert(entry.key.clone()) {
                return Err(Error::directory(format!("has the external data key {:?} twice", entry.key)));
            }
            match entry.key.as_deref() {
                Some("location") => location = Some(entry),
                Some("offset") => offset = value.parse::<u64>().ok(),
                Some("length") => length = value.parse::<u64>().ok(),
                other => return Err(Error::directory(format!("has the unknown external data key {other:?}"))),
            }
        }
        let (Some(entry), Some(offset), Some(length)) = (location, offset, length) else {
            return Err(Error::directory("lacks a location, an offset or a length"));
        };
        let name = entry.value.clone().unwrap_or_default();
        let file = weights
            .get(&name)
            .ok_or_else(|| Error::directory(format!("refers to {name:?}, which `weights` does not name")))?;
        let parameter = file.at_offset(offset).ok_or_else(|| {
            Error::directory(format!("refers to byte {offset} of `{name}`, where no parameter begins"))
        })?;
        let dims: Vec<i64> = parameter.shape.iter().map(|dim| *dim as i64).collect();
        if parameter.bytes != length || dims != tensor.dims || element_of(parameter.dtype) != tensor.data_type {
            return Err(Error::directory(format!(
                "has dtype {:?}, shape {:?} and {length} bytes, but parameter `{}` of `{name}` has {:?}, {:?} and {} bytes",
                tensor.data_type, tensor.dims, parameter.name, parameter.dtype, parameter.shape, parameter.bytes
            )));
        }
        let first = self.weights_folder.get_or_insert_with(|| file.folder.clone());
        if *first != file.folder {
            return Err(two_folders(first, &file.folder));
        }
        self.references += 1;
        self.parameters += parameter.shape.iter().product::<usize>() as u64;
        self.weight_bytes += length;
        entry.value = Some(file.file.clone());
        Ok(())
    }
}

/// ONNX Runtime takes one folder for all files of a graph, and no links in it.
fn two_folders(first: &Path, second: &Path) -> Error {
    Error::directory(format!(
        "refers to weights in two folders, {} and {}; put the files themselves or hard links into one folder, \
         or export again with `dbcache-export --pack`",
        first.display(),
        second.display()
    ))
}

fn check_opset(model: &ModelProto, opset: i64) -> Result<()> {
    for import in &model.opset_import {
        if !import.domain.as_deref().unwrap_or_default().is_empty() || import.version != Some(opset) {
            return Err(Error::directory(format!(
                "uses opset {:?} of domain {:?}; the manifest says {opset} of the standard domain",
                import.version.unwrap_or_default(),
                import.domain.as_deref().unwrap_or_default()
            )));
        }
    }
    if model.opset_import.is_empty() {
        return Err(Error::directory("names no opset"));
    }
    Ok(())
}

/// A constant is short, and is in the graph itself.
fn check_constant(tensor: &TensorProto) -> Result<()> {
    if tensor.data_location.unwrap_or(0) != 0 || !tensor.external_data.is_empty() {
        return Err(Error::directory("refers to a file; only initialisers may, as parameters"));
    }
    let is_positive = tensor.dims.iter().all(|dim| *dim >= 0);
    let values = tensor.dims.iter().try_fold(1i64, |product, dim| product.checked_mul(*dim));
    if !is_positive || values.is_none_or(|values| values > MAX_CONSTANT) {
        return Err(Error::directory(format!(
            "is a constant of {:?}; constants hold at most {MAX_CONSTANT} values, parameters are references",
            tensor.dims
        )));
    }
    Ok(())
}

/// Attributes hold constants too, and ONNX Runtime would follow a reference there as well.
fn check_attribute(attribute: &AttributeProto) -> Result<()> {
    let longest = attribute.floats.len().max(attribute.ints.len()).max(attribute.strings.len());
    if longest as i64 > MAX_CONSTANT {
        return Err(Error::directory(format!("holds {longest} values; constants hold at most {MAX_CONSTANT} values")));
    }
    attribute.t.as_ref().map_or(Ok(()), check_constant)
}

fn check_nodes(graph: &GraphProto) -> Result<()> {
    let again = |reason| Error::directory(format!("{reason}; export again with dbcache-export"));
    let mut names = BTreeSet::new();
    for node in &graph.node {
        let name = node.name.as_deref().unwrap_or_default();
        if !name.is_empty() && !names.insert(name) {
            return Err(Error::directory(format!("two nodes are called `{name}`")));
        }
        if !node.domain.as_deref().unwrap_or_default().is_empty() {
            return Err(Error::directory(format!("node `{name}` is of the domain {:?}", node.domain)));
        }
        operators::check(node).map_err(|reason| again(format!("node `{name}` {reason}")))?;
        for attribute in &node.attribute {
            let place = || format!("attribute `{}` of node `{name}`", attribute.name.as_deref().unwrap_or_default());
            check_attribute(attribute).map_err(|error| error.at(place()))?;
        }
    }
    amounts::check(graph).map_err(again)
}

fn check_ports(role: &str, found: &[ValueInfoProto], expected: &[Port]) -> Result<()> {
    let name_of = |port: &ValueInfoProto| port.name.clone().unwrap_or_default();
    let found_names: BTreeSet<String> = found.iter().map(name_of).collect();
    let expected_names: BTreeSet<String> = expected.iter().map(|port| port.name.clone()).collect();
    if found_names != expected_names || found_names.len() != found.len() {
        return Err(Error::directory(format!("has the {role}s {found_names:?}; the manifest says {expected_names:?}")));
    }
    for port in expected {
        let Some(info) = found.iter().find(|info| name_of(info) == port.name) else { continue };
        let Some(tensor) = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else {
            return Err(Error::directory(format!("{role} `{}` is not a tensor", port.name)));
        };
        let axes: Option<Vec<Axis>> = tensor.shape.as_ref().map(|shape| {
            let axis = |dim: &onnx::DimensionProto| match (dim.dim_value, &dim.dim_param) {
                (Some(value), _) => Axis::Fixed(value.max(0) as u64),
                (None, name) => Axis::Named(name.clone().unwrap_or_default()),
            };
            shape.dim.iter().map(axis).collect()
        });
        if tensor.elem_type != Some(element_type(port.dtype)) || axes.as_ref() != Some(&port.shape) {
            return Err(Error::directory(format!(
                "{role} `{}` has element type {} and shape {}; the manifest says {} ({}) and {}",
                port.name,
                tensor.elem_type.unwrap_or_default(),
                axes.as_deref().map_or("unknown".into(), shape_text),
                element_type(port.dtype),
                port.dtype.name(),
                shape_text(&port.shape),
            )));
        }
    }
    Ok(())
}

fn shape_text(shape: &[Axis]) -> String {
    let axes: Vec<String> = shape.iter().map(Axis::to_string).collect();
    format!("[{}]", axes.join(", "))
}

/// ONNX's number of a dtype.
pub(crate) fn element_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => element::FLOAT,
        DType::F16 => element::FLOAT16,
        DType::Bf16 => element::BFLOAT16,
        DType::I64 => element::INT64,
    }
}

fn element_of(dtype: Dtype) -> Option<i32> {
    match dtype {
        Dtype::F32 => Some(element::FLOAT),
        Dtype::F16 => Some(element::FLOAT16),
        Dtype::BF16 => Some(element::BFLOAT16),
        Dtype::I64 => Some(element::INT64),
        _ => None,
    }
}
