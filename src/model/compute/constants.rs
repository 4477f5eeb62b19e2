//! Constants in 16 bits, where they survive it.

use half::{bf16, f16};

use crate::model::onnx::{AttributeProto, NodeProto, TensorProto, element};

/// What 16 bits make of a constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Narrowed {
    /// The tensor with its numbers rounded.
    To(Box<TensorProto>),
    /// A number other than 0 would become 0, or lose most of its digits.
    Vanishes,
    /// A finite number would become infinite.
    Overflows,
}

/// An f32 constant in the 16-bit type `to`; none for one whose numbers are not in the graph.
pub(super) fn narrowed(tensor: &TensorProto, to: i32) -> Option<Narrowed> {
    let mut bytes = Vec::new();
    let mut vanishes = false;
    for number in numbers(tensor)? {
        let (bits, back, smallest) = match to {
            element::FLOAT16 => {
                let rounded = f16::from_f32(number);
                (rounded.to_le_bytes(), rounded.to_f32(), f16::MIN_POSITIVE.to_f32())
            }
            _ => {
                let rounded = bf16::from_f32(number);
                (rounded.to_le_bytes(), rounded.to_f32(), bf16::MIN_POSITIVE.to_f32())
            }
        };
        if number.is_finite() && !back.is_finite() {
            return Some(Narrowed::Overflows);
        }
        vanishes |= number != 0.0 && number.abs() < smallest;
        bytes.extend(bits);
    }
    if vanishes {
        return Some(Narrowed::Vanishes);
    }
    Some(Narrowed::To(Box::new(TensorProto {
        data_type: Some(to),
        raw_data: Some(bytes),
        float_data: Vec::new(),
        ..tensor.clone()
    })))
}

/// The numbers of an f32 tensor that is whole in the graph.
fn numbers(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != Some(element::FLOAT) || !tensor.external_data.is_empty() {
        return None;
    }
    let raw = tensor.raw_data.as_deref().unwrap_or_default();
    let of_bytes = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map(f32::from_le_bytes).ok();
    if raw.is_empty() { Some(tensor.float_data.clone()) } else { raw.chunks(4).map(of_bytes).collect() }
}

/// The f32 constant that a node makes by itself: of `Constant`, or the one that `ConstantOfShape` repeats.
pub(super) fn of_node(node: &NodeProto) -> Option<TensorProto> {
    match value(node) {
        Some(tensor) => Some(tensor.clone()).filter(|tensor| tensor.data_type == Some(element::FLOAT)),
        None if node.op_type.as_deref() == Some("ConstantOfShape") => Some(TensorProto {
            dims: vec![1],
            data_type: Some(element::FLOAT),
            float_data: vec![0.0],
            ..TensorProto::default()
        }),
        None => {
            node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some("value_float")).map(|attribute| {
                TensorProto {
                    data_type: Some(element::FLOAT),
                    float_data: vec![attribute.f.unwrap_or_default()],
                    ..TensorProto::default()
                }
            })
        }
    }
}

/// The element type of what such a node makes.
pub(super) fn element_of(node: &NodeProto) -> Option<i32> {
    let is = |name: &str| node.attribute.iter().any(|attribute| attribute.name.as_deref() == Some(name));
    match value(node) {
        Some(tensor) => tensor.data_type,
        None if node.op_type.as_deref() == Some("ConstantOfShape") || is("value_float") || is("value_floats") => {
            Some(element::FLOAT)
        }
        None if is("value_int") || is("value_ints") => Some(element::INT64),
        None => None,
    }
}

/// Such a node with another constant.
pub(super) fn with_constant(mut node: NodeProto, constant: TensorProto) -> NodeProto {
    const TENSOR: i32 = 4;
    node.attribute = vec![AttributeProto {
        name: Some("value".into()),
        t: Some(constant),
        r#type: Some(TENSOR),
        ..AttributeProto::default()
    }];
    node
}

fn value(node: &NodeProto) -> Option<&TensorProto> {
    node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some("value"))?.t.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(numbers: &[f32]) -> TensorProto {
        TensorProto {
            dims: vec![numbers.len() as i64],
            data_type: Some(element::FLOAT),
            float_data: numbers.to_vec(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn constants_that_do_not_survive_are_told_apart() {
        let raw = TensorProto { raw_data: Some(1.5f32.to_le_bytes().to_vec()), float_data: vec![], ..constant(&[1.5]) };
        for (tensor, to, expected) in [
            (constant(&[0.0, -1.0, 65504.0]), element::FLOAT16, Some(vec![0x0000, 0xbc00, 0x7bff])),
            (raw, element::FLOAT16, Some(vec![0x3e00])),
            (constant(&[1.0, 1e5]), element::BFLOAT16, Some(vec![0x3f80, 0x47c3])),
            (constant(&[1e-6]), element::BFLOAT16, Some(vec![0x3586])),
            // An infinite number is meant so.
            (constant(&[f32::NEG_INFINITY]), element::FLOAT16, Some(vec![0xfc00])),
        ] {
            let bytes = expected.map(|bits| bits.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
            let Some(Narrowed::To(found)) = narrowed(&tensor, to) else { panic!("{tensor:?}") };
            assert_eq!((found.raw_data, found.data_type), (bytes, Some(to)));
            assert!(found.float_data.is_empty());
        }
        for (tensor, to, expected) in [
            (constant(&[65520.0]), element::FLOAT16, Some(Narrowed::Overflows)),
            (constant(&[f32::MIN]), element::BFLOAT16, Some(Narrowed::Overflows)),
            (constant(&[1.0, 1e-6]), element::FLOAT16, Some(Narrowed::Vanishes)),
            (constant(&[1e-6, 1e9]), element::FLOAT16, Some(Narrowed::Overflows)),
            (TensorProto { data_type: Some(element::INT64), ..constant(&[1.0]) }, element::FLOAT16, None),
        ] {
            assert_eq!(narrowed(&tensor, to), expected);
        }
    }
}
