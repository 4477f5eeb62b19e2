//! Whether NVIDIA's parser and builder take every stage graph of every family that the exporter knows: TensorRT-RTX
//! builds engines on machines without a GPU (export/tensorrt/accept.py says what that proves, and what not).

use anyhow::Result;

use crate::check_export::environment;
use crate::run::{cargo, root, step, target_folder};

pub fn check_tensorrt(arguments: &[String]) -> Result<()> {
    step(&mut cargo(&["build"]))?;
    // Tests of this run add their tables to it.
    let report = target_folder()?.join("check-tensorrt.md");
    std::fs::write(&report, "# What TensorRT-RTX built\n\n")?;
    let python = environment(&["dev", "tensorrt"])?;
    let command = target_folder()?.join("debug").join(format!("dbcache-trt{}", std::env::consts::EXE_SUFFIX));
    let mut pytest = std::process::Command::new(python);
    pytest.args(["-m", "pytest", "tensorrt"]).args(arguments);
    pytest.current_dir(root().join("export")).env("DBCACHE_TRT", command).env("DBCACHE_TENSORRT_REPORT", &report);
    step(&mut pytest)?;
    println!("what was built: {}", report.display());
    Ok(())
}
