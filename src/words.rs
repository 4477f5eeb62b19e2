//! What is wrong with a text that should have been a value, in words that name what was expected.

use std::any::Any;
use std::fmt::Display;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

/// The standard library's own words for numbers ("invalid digit found in string") leave out what would be right.
pub(crate) fn problem_of(error: &(impl Display + Any)) -> String {
    let any: &dyn Any = error;
    match any.downcast_ref::<ParseIntError>().map(ParseIntError::kind) {
        Some(IntErrorKind::PosOverflow) => return format!("expected a whole number of at most {}", u64::MAX),
        Some(_) => return "expected a whole number of at least 0".to_owned(),
        None => {}
    }
    match any.is::<ParseFloatError>() {
        true => "expected a number, such as 0.25".to_owned(),
        false => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_expected_is_told() {
        for text in ["-1", "", "1e3", "x", "1.5"] {
            assert_eq!(
                problem_of(&text.parse::<u64>().unwrap_err()),
                "expected a whole number of at least 0",
                "{text}"
            );
        }
        let large = "18446744073709551616".parse::<usize>().unwrap_err();
        assert_eq!(problem_of(&large), "expected a whole number of at most 18446744073709551615");
        assert_eq!(problem_of(&"x".parse::<f64>().unwrap_err()), "expected a number, such as 0.25");
        assert_eq!(problem_of(&"maybe".parse::<bool>().unwrap_err()), "provided string was not `true` or `false`");
    }
}
