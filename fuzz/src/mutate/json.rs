//! JSON: nodes are replaced, removed, doubled, nested, renamed, and taken from other files.

use serde_json::{Map, Value};

use super::{bytes, changes, number, text};
use crate::random::Random;

/// Longest input that is made, in bytes.
const LONGEST: usize = 1 << 20;

/// A change of `seed`; `others` lend parts.
pub(crate) fn json(random: &mut Random, seed: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(seed) else { return bytes(random, seed) };
    let other: Value = serde_json::from_slice(random.pick::<Vec<u8>>(others)).unwrap_or_default();
    for _ in 0..changes(random) {
        let at = random.below(count(&value));
        change(random, node(&mut value, &mut { at }), &other);
        if value.to_string().len() > LONGEST {
            return bytes(random, seed);
        }
    }
    let mut json = value.to_string().into_bytes();
    match random.below(20) {
        0 => json = bytes(random, &json),
        1 => json.truncate(random.below(json.len())),
        2 => json = [b"{\"a\":".repeat(random.below(100_000)), json].concat(),
        _ => {}
    }
    json
}

fn change(random: &mut Random, node: &mut Value, other: &Value) {
    let old = std::mem::take(node);
    *node = match (random.below(10), old) {
        (0, _) => Value::Null,
        (1, _) => text(random).into(),
        (2, _) => serde_json::from_str(number(random)).unwrap_or(Value::Bool(true)),
        (3, _) => taken(random, other),
        (4, old) => (0..1 << random.below(8)).fold(old, |inner, _| Value::Array(vec![inner])),
        (5, old) => {
            let key = text(random);
            (0..random.below(60)).fold(old, |inner, _| Value::Object(Map::from_iter([(key.clone(), inner)])))
        }
        (6, Value::Array(list)) if !list.is_empty() => {
            let most = 10_000 / (list.len() * count(&list[0]));
            Value::Array(list.iter().cycle().take(list.len() * (1 + random.below(most))).cloned().collect())
        }
        (7, Value::Array(mut list)) if !list.is_empty() => {
            list.remove(random.below(list.len()));
            list.into()
        }
        (8, Value::Array(mut list)) => {
            let at = random.below(list.len() + 1);
            list.insert(at, taken(random, other));
            list.into()
        }
        (6, Value::Object(mut map)) => {
            if let Some(key) = map.keys().nth(random.below(map.len())).cloned() {
                map.remove(&key);
            }
            map.into()
        }
        (7, Value::Object(mut map)) => {
            let lent = other.as_object().and_then(|other| other.iter().nth(random.below(other.len())));
            map.extend(lent.map(|(key, value)| (key.clone(), value.clone())));
            map.into()
        }
        (8, Value::Object(mut map)) => {
            if let Some((key, value)) = map.iter().nth(random.below(map.len())) {
                let (key, value) = (format!("{key}{}", text(random)), value.clone());
                map.insert(key, value);
            }
            map.into()
        }
        (_, Value::Number(old)) => {
            let shifted = old.as_i64().map(|old| old.wrapping_add(random.below(5) as i64 - 2).into());
            shifted.unwrap_or_else(|| serde_json::from_str(number(random)).unwrap_or(Value::Null))
        }
        (_, Value::String(old)) => format!("{old}{}", text(random)).into(),
        (_, Value::Bool(old)) => (!old).into(),
        (_, old) => old,
    };
}

fn taken(random: &mut Random, other: &Value) -> Value {
    let at = random.below(count(other));
    node(&mut other.clone(), &mut { at }).clone()
}

/// How many nodes a value has, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0usize,
    }
}

/// The node of this number, counted from the root down.
fn node<'a>(value: &'a mut Value, at: &mut usize) -> &'a mut Value {
    if *at == 0 {
        return value;
    }
    *at -= 1;
    let children: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        leaf => return leaf,
    };
    let mut last = None;
    for child in children {
        let nodes = count(child);
        if *at < nodes {
            return node(child, at);
        }
        *at -= nodes;
        last = Some(child);
    }
    last.unwrap_or_else(|| unreachable!("numbers are below the count of the nodes"))
}
