//! `dbcache-trt build`.

use std::path::PathBuf;

use clap::Args;
use dbcache_trt::options::{parse_bytes, parse_value, read_policy};
use dbcache_trt::{CacheDType, EngineOptions, Error, ErrorKind, Result};

use super::LoadArgs;

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct BuildArgs {
    /// The engine directory, as the exporter wrote it
    #[arg(long, value_name = "DIR")]
    pub engine: PathBuf,
    /// The cache policy that will be used: its stages are compiled
    #[arg(long, value_name = "TAG", default_value = "none")]
    pub cache: String,
    /// With --arithmetic stages: in which dtype the cache will keep its tensors, f16 or bf16 [default: the streams']
    #[arg(long, value_name = "DTYPE")]
    pub cache_dtype: Option<CacheDType>,
    /// Builds that are made at the same time; more than one disturb each other's timings
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = read_jobs)]
    pub jobs: usize,
    /// With --jobs: most host memory of all builds that run at the same time; a build starts only if it is expected to fit
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub build_memory: Option<u64>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, Args)]
pub struct BuildOneArgs {
    /// Its place in the plan
    #[arg(long, value_parser = parse_value::<usize>)]
    pub index: usize,
    /// Its key
    #[arg(long)]
    pub key: String,
    #[command(flatten)]
    pub build: BuildArgs,
}

/// More processes than any machine has GPUs or cores for; a typing error should not start them.
const MAX_JOBS: usize = 256;

fn read_jobs(text: &str) -> Result<usize> {
    let jobs = parse_value(text).ok().filter(|jobs| (1..=MAX_JOBS).contains(jobs));
    jobs.ok_or_else(|| Error::with_kind(ErrorKind::Usage, format!("expected a whole number from 1 to {MAX_JOBS}")))
}

impl BuildArgs {
    pub fn options(&self) -> Result<EngineOptions> {
        let cache_dtype = self.cache_dtype.unwrap_or_default();
        Ok(EngineOptions { cache_dtype, ..self.load.options(&read_policy(&self.cache)?) })
    }
}
