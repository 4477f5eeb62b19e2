//! The ids of tokens that a tokenizer file may give.

/// Ids are below; the largest vocabularies have 300 000.
pub(super) const MAX_ID: u32 = 1 << 24;

/// Refuses an id that no model has.
pub(super) fn check_id(id: u32) -> Result<(), String> {
    if id < MAX_ID { Ok(()) } else { Err(format!("the id {id} is too large; expected less than {MAX_ID}")) }
}
