//! Numbers with units, as people write them.

/// Bytes: digits, and K, M or G for powers of 1024.
///
/// # Errors
/// What was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let unit = units.iter().find(|(unit, _)| text.ends_with([*unit, unit.to_ascii_lowercase()]));
    let (digits, shift) = unit.map_or((text, 0), |(_, shift)| (&text[..text.len() - 1], *shift));
    let bytes = if digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
    let bytes = bytes.and_then(|bytes| bytes.checked_mul(1 << shift));
    bytes.ok_or_else(|| "expected bytes, such as 1048576, 512K, 64M or 2G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_1024() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("2K", 2 << 10), ("64M", 64 << 20), ("64m", 64 << 20), ("3G", 3 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "+1", "1.5M", "1T", "64MB", "M64", "18446744073709551615K", "99999999999999999999"]
        {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
