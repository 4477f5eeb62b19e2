//! Everything that needs a GPU, in one go (docs/gpu.md): the conformance suite and the figures on each provider.

use anyhow::Result;

use crate::run::{cargo, set_up, step};

/// What runs when no providers are named: each also without waiting for the end of runs, which no other check can show.
const PROVIDERS: [&str; 4] = ["cuda", "cuda:async", "tensorrt", "tensorrt:async"];

pub fn check_gpu(arguments: &[String]) -> Result<()> {
    let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let providers = if named.is_empty() { PROVIDERS.to_vec() } else { named };
    let run = ["run", "--quiet", "--release", "--"];
    step(&mut cargo(&["build", "--release"]))?;
    set_up(&mut cargo(&run))?;
    step(cargo(&run).arg("providers"))?;
    for provider in providers {
        let conformance = ["test", "--release", "--test", "providers", "conformance::"];
        step(cargo(&conformance).env("DBCACHE_TEST_PROVIDER", provider))?;
        step(cargo(&["run", "--release", "--example", "figures", "--", "--provider"]).arg(provider))?;
    }
    Ok(())
}
