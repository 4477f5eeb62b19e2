//! Everything that needs a GPU, in one go (docs/gpu.md): from this repository, or from a package that `pack-gpu` has made and
//! that was carried to a machine without cargo.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

mod libraries;
mod programs;
pub mod random_model;
mod report;
mod stages;

pub use programs::{LIBRARY, PROGRAMS, Programs};
use report::Report;

/// What a machine that is lent for a quarter of an hour leaves, after its start.
const MINUTES: u64 = 14;

const USAGE: &str = "check-gpu takes --engine DIR, --package DIR, --repository DIR, --results DIR, --minutes N, \
                     --debug and providers";

/// What the command line says.
struct Asked {
    providers: Vec<String>,
    engine: Option<PathBuf>,
    package: Option<PathBuf>,
    repository: Option<PathBuf>,
    results: Option<PathBuf>,
    minutes: u64,
    profile: &'static str,
}

impl Asked {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut asked = Self {
            providers: Vec::new(),
            engine: None,
            package: None,
            repository: None,
            results: None,
            minutes: MINUTES,
            profile: "release",
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} lacks its value"));
            match word.as_str() {
                "--engine" => asked.engine = Some(value()?.into()),
                "--package" => asked.package = Some(value()?.into()),
                "--repository" => asked.repository = Some(value()?.into()),
                "--results" => asked.results = Some(value()?.into()),
                "--minutes" => asked.minutes = value()?.parse().context("--minutes takes a number")?,
                // For trying this task itself: its figures are worth nothing.
                "--debug" => asked.profile = "dev",
                option if option.starts_with('-') => bail!("{USAGE}: {option}"),
                provider => asked.providers.push(provider.to_owned()),
            }
        }
        if asked.providers.is_empty() {
            asked.providers.push("cuda".to_owned());
        }
        Ok(asked)
    }

    fn programs(&self) -> Result<Programs> {
        let mut programs = match &self.package {
            Some(package) => Programs::of_package(package, self.repository.as_deref())?,
            None => Programs::build(self.profile)?,
        };
        if let Some(results) = &self.results {
            programs.results = results.clone();
        }
        Ok(programs)
    }
}

pub fn check_gpu(arguments: &[String]) -> Result<()> {
    let asked = Asked::read(arguments)?;
    let mut programs = asked.programs()?;
    if asked.package.is_none() {
        programs.set_up(&asked.providers)?;
    }
    let engine = asked.engine.clone().unwrap_or_else(|| programs.root.join("models/emoji"));
    let mut report = Report::new(&programs.results, Duration::from_secs(60 * asked.minutes))?;
    for provider in &asked.providers {
        stages::run(&mut report, &mut programs, provider, &engine)?;
    }
    println!("\n{}", fs::read_to_string(&report.path)?);
    match report.failed {
        0 => Ok(()),
        failed => bail!("{failed} of {} stages failed; the report is {}", report.count, report.path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let asked = Asked::read(&words("--package a --results b --minutes 9 cpu cuda:device=1")).unwrap();
        assert_eq!((asked.package, asked.results, asked.minutes), (Some("a".into()), Some("b".into()), 9));
        assert_eq!(asked.providers, ["cpu", "cuda:device=1"]);
        for (text, expected) in
            [("--minutes", "lacks its value"), ("--minutes x", "takes a number"), ("--fast", "check-gpu takes")]
        {
            let error = format!("{:#}", Asked::read(&words(text)).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
    }
}
