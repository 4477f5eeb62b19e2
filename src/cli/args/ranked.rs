//! `--context-parallel`.

use std::str::FromStr;

use dbcache_trt::options::parse_value;
use dbcache_trt::{Error, ErrorKind, Method};

/// What was asked for: `ulysses`, or with the number of processes `ulysses=4`.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    pub method: Method,
    pub ranks: Option<usize>,
}

impl FromStr for Ranked {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (method, ranks) = text.split_once('=').map_or((text, None), |(method, ranks)| (method, Some(ranks)));
        let number = |text| {
            let ranks = parse_value::<usize>(text).ok().filter(|ranks| *ranks >= 2);
            ranks.ok_or_else(|| Error::with_kind(ErrorKind::Usage, "expected a number of processes of at least 2"))
        };
        Ok(Self { method: method.parse()?, ranks: ranks.map(number).transpose()? })
    }
}
