//! Chores of this repository: `cargo xtask help` lists them.
//!
//! A chore is one entry in [`TASKS`] and one function; [`run`] has what they share.

mod check_capi;
mod check_deploy;
mod check_export;
mod check_families;
mod check_gpu;
mod check_mpi;
mod check_plugins;
mod check_published;
mod check_setup;
mod check_tensorrt;
mod check_video;
mod demo;
mod fuzz;
mod header;
mod install;
mod lint;
mod measure_mpi;
mod pack_gpu;
mod run;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

struct Task {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task { name: "demo", arguments: "", about: "draw a lemon with the model that ships", run: demo::demo },
    Task {
        name: "test",
        arguments: "[ARGUMENTS OF cargo test]",
        about: "set up, and run all Rust tests",
        run: test::test,
    },
    Task { name: "lint", arguments: "", about: "check format, lints and documentation", run: lint::lint },
    Task {
        name: "check-export",
        arguments: "[ARGUMENTS OF pytest]",
        about: "check and test the Python package in export/ (needs Python 3.11 or newer; downloads PyTorch)",
        run: check_export::check_export,
    },
    Task {
        name: "check-families",
        arguments: "[--write] [--brief | FAMILY or PIPELINE …]",
        about: "whole pipelines of every family, by exporter and command, against diffusers and cache-dit (as check-export; minutes)",
        run: check_families::check_families,
    },
    Task {
        name: "check-published",
        arguments: "[--export] [MODELS]",
        about: "plan the export of models as they are published, over files of holes; with --export: all of it, long (as check-export)",
        run: check_published::check_published,
    },
    Task {
        name: "check-capi",
        arguments: "[--debug] [valgrind]",
        about: "check the C library: sanitizers, projects that use the installed files (needs cmake, valgrind); with valgrind: long",
        run: check_capi::check_capi,
    },
    Task {
        name: "check-openvino",
        arguments: "[ARGUMENTS OF cargo test]",
        about: "test on the OpenVINO plugin, a provider that compiles (downloads 53 MB)",
        run: check_plugins::check_openvino,
    },
    Task {
        name: "check-webgpu",
        arguments: "[ARGUMENTS OF cargo test]",
        about: "test on the WebGPU plugin and a software Vulkan, a provider with memory of its own (Debian; 30 MB)",
        run: check_plugins::check_webgpu,
    },
    Task {
        name: "check-setup",
        arguments: "",
        about: "set up providers, killed and damaged, and run all that comes before a GPU (Linux; downloads 1.8 GB; needs cc)",
        run: check_setup::check_setup,
    },
    Task {
        name: "check-deploy",
        arguments: "",
        about: "lint the Dockerfiles in deploy/, and check what they copy and call; nothing is built (downloads 12 MB)",
        run: check_deploy::check_deploy,
    },
    Task {
        name: "check-mpi",
        arguments: "[--kills N]",
        about: "one picture by several processes, killed and differing ones too (Linux; needs an MPI: openmpi-bin, mpich or both)",
        run: check_mpi::check_mpi,
    },
    Task {
        name: "measure-mpi",
        arguments: "[--steps N]",
        about: "time blocks as wide as FLUX.1's by one process and by two (needs an MPI; as check-export; a quarter of an hour)",
        run: measure_mpi::measure_mpi,
    },
    Task {
        name: "check-video",
        arguments: "",
        about: "make MP4 and WebM with a real ffmpeg, and read them with ffprobe (needs ffmpeg)",
        run: check_video::check_video,
    },
    Task {
        name: "check-gpu",
        arguments: "[--engine DIR] [--package DIR [--repository DIR]] [--results DIR] [--minutes N] [--debug] [PROVIDERS]",
        about: "test and measure on a GPU in a quarter of an hour: cuda, or the providers that are named (docs/gpu.md)",
        run: check_gpu::check_gpu,
    },
    Task {
        name: "pack-gpu",
        arguments: "[--arch N] [--all-kernels] [--output DIR] [--limit BYTES] [--double N] [--single N] [--debug]",
        about: "pack check-gpu for a bare machine with an NVIDIA GPU, in 64 MiB (downloads 1.6 GB; as check-export)",
        run: pack_gpu::pack_gpu,
    },
    Task {
        name: "check-tensorrt",
        arguments: "[ARGUMENTS OF pytest]",
        about: "whether NVIDIA's parser and builder take the stages of every family; long (as check-export; downloads TensorRT-RTX)",
        run: check_tensorrt::check_tensorrt,
    },
    Task {
        name: "fuzz",
        arguments: "[TARGET …] [--seconds N] [--seed S] [--debug]",
        about: "hostile files and texts, made from a seed: no panic, no hang, no flood of memory (60 seconds, and a release build)",
        run: fuzz::fuzz,
    },
    Task { name: "header", arguments: "", about: "write the header of the C library", run: header::header },
    Task {
        name: "install",
        arguments: "--prefix FOLDER",
        about: "install the C library: shared and static, headers, pkg-config, CMake",
        run: install::install,
    },
    Task { name: "help", arguments: "", about: "list the tasks", run: help },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nError: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else { return help(&[]) };
    let name = if matches!(name.as_str(), "-h" | "--help") { "help" } else { name };
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) if task.arguments.is_empty() && !rest.is_empty() => bail!("`{name}` takes no arguments: {rest:?}"),
        Some(task) => (task.run)(rest),
        None => bail!("there is no task `{name}`; `cargo xtask help` lists them"),
    }
}

fn help(_: &[String]) -> Result<()> {
    println!("Usage: cargo xtask TASK\n");
    for task in TASKS {
        println!("  {} {}\n      {}", task.name, task.arguments, task.about);
    }
    Ok(())
}
