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

/// Bytes for a person, in powers of 1000 as disks and networks count: `29.4 MB`.
pub fn bytes_in_words(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
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

    #[test]
    fn bytes_are_told_in_powers_of_1000() {
        for (bytes, words) in
            [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (29_352_200, "29.4 MB"), (2_400_000_000, "2.4 GB")]
        {
            assert_eq!(bytes_in_words(bytes), words);
        }
    }
}
