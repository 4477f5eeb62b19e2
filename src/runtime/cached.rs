//! What is loaded once, when somebody needs it first.

use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::exit::lock;

/// Small graphs by what they are for: few enough for a list.
pub(super) type Cached<K, V> = Mutex<Vec<(K, Arc<V>)>>;

pub(super) fn cached<K: PartialEq, V>(list: &Cached<K, V>, key: K, load: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
    let mut list = lock(list);
    if let Some((_, value)) = list.iter().find(|(other, _)| *other == key) {
        return Ok(Arc::clone(value));
    }
    let value = Arc::new(load()?);
    list.push((key, Arc::clone(&value)));
    Ok(value)
}
