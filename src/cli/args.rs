//! What the command line can say. Parsed here; decided, defaulted and checked by the library.

mod build;
mod builds;
mod load;
mod policy;
mod ranked;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dbcache_trt::options::{parse_bytes, parse_scale, parse_size, parse_value, read_policy, read_replay};
use dbcache_trt::setup::{Target, Targets, Via};
use dbcache_trt::{CacheDType, CachePlace, ComputeChoice, Error, ErrorKind, Profile, Providers, RequestOptions};

pub use self::build::{BuildArgs, BuildOneArgs};
pub use self::builds::{BuildsArgs, BuildsCommand, GcArgs, StoreArgs};
use self::load::choice;
pub use self::load::{LoadArgs, StagesArgs};
pub use self::policy::PolicyArgs;
pub use self::ranked::Ranked;

/// What `--help` ends with.
fn after_help() -> String {
    AFTER_HELP.replace("{tokens}", &policy::tokens())
}

/// What a tag is, and the exit codes.
const AFTER_HELP: &str = "\
CACHE TAGS
  none                          every block runs on every step
  f8b16  f8b16w4r0.12mc3        DBCache: tokens in any order; what is left out is F8 B8 W8 I1 R0.12, no limits
  fb                            FBCache: F1 B0 R0.08 W8, at most 8 skipped steps
  dbcache  cache-dit  prune     presets: F8 B8 R0.12 W8; F8 B0 R0.08 W8; DBPrune F8 B8 R0.08 W8
  DBCache_F8B0_W8I1M0MC0_R0.08  tags that cache-dit prints
  policy.json  {\"Fn_compute_blocks\": 1}   options by their names in cache-dit

TOKENS (docs/cache-tags.md)
{tokens}

EXIT CODES
  0 success, 2 usage, 3 ONNX Runtime's library, 4 engine directory, 5 input, 6 ONNX Runtime, 7 not a number,
  8 outputs or decisions differ, 9 file, 10 provider, 11 build missing, 12 no memory or thread,
  21 a call out of turn (libraries), 70 a bug, 130 cancelled";

/// Runs diffusion transformers block by block on ONNX Runtime, and skips the blocks that dual block caching proves
/// unnecessary.
#[derive(Debug, Parser)]
#[command(name = "dbcache-trt", version, after_long_help = after_help())]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, max_term_width = 120)]
#[command(allow_negative_numbers = true)] // so that -1 is told to be no such value, rather than an unknown option
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub generate: GenerateArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetches ONNX Runtime through uv, pip or npm, checks it, and puts it where this program looks
    Setup(SetupArgs),
    /// Shows what can compute here, and what is missing
    Providers(ProvidersArgs),
    /// Shows an engine directory, or how a picture was made
    Inspect(InspectArgs),
    /// Works on what --trace has written
    Trace(TraceArgs),
    /// Compiles a model ahead of time: a build for each graph, each in a process of its own
    Build(BuildArgs),
    /// Compiles one of them
    #[command(hide = true)]
    BuildOne(BuildOneArgs),
    /// Works on the cache of what providers compiled
    Builds(BuildsArgs),
    /// What `builds` was called
    #[command(hide = true)]
    Engines(BuildsArgs),
    /// Writes the graphs of a plan as ONNX files, to compile them with other tools
    Stages(WriteStagesArgs),
}

impl Cli {
    /// The names in this command line that were given up, each with the one that it has now.
    pub fn old_names(&self) -> Vec<(&'static str, &'static str)> {
        let has_old_flag = match &self.command {
            None => self.generate.load.has_old_flag(),
            Some(Command::Build(args)) => args.load.has_old_flag(),
            Some(Command::Builds(args) | Command::Engines(args)) => args.command.store().engine_cache.is_some(),
            _ => false,
        };
        let command = matches!(self.command, Some(Command::Engines(_))).then_some(("engines", "builds"));
        let flag = has_old_flag.then_some(("--engine-cache", "--build-cache"));
        command.into_iter().chain(flag).collect()
    }
}

/// Makes pictures (this is what runs without a subcommand).
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The engine directory, as the exporter wrote it
    #[arg(long, value_name = "DIR", required = true)]
    pub engine: Option<PathBuf>,
    /// What to make
    #[arg(long, short, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What to keep away from; needs classifier-free guidance
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// The picture's file (PNG), or the video's: .mp4 or .webm (through ffmpeg), .gif, .png (animated), frames_%04d.png, or a
    /// folder; with several the seed is put before the ending [default: out.png]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Cache policy: a tag, a JSON object, or a JSON file; see below
    #[arg(long, value_name = "TAG", default_value = "none")]
    pub cache: String,
    /// Keep the cache's tensors as f16 or bf16: half the memory for a little accuracy [default: stream]
    #[arg(long, value_name = "DTYPE")]
    pub cache_dtype: Option<CacheDType>,
    /// Keep the cache's tensors in host memory, for providers with memory of their own [default: device]
    #[arg(long, value_name = "PLACE")]
    pub cache_place: Option<CachePlace>,
    /// How many pictures; picture k has the seed SEED + k
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = parse_value::<usize>)]
    pub count: usize,
    /// Pictures that run, and decide, together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_value::<usize>)]
    pub batch: usize,
    /// Each picture of a batch decides for itself
    #[arg(long)]
    pub per_sample: bool,
    /// Decode in tiles of so many pixels a side, which overlap and are blended: less memory
    #[arg(long, value_name = "N", value_parser = parse_value::<u64>)]
    pub decode_tile: Option<u64>,
    /// Decode the pictures of a batch one by one: less memory
    #[arg(long)]
    pub decode_slices: bool,
    /// Denoising steps [default: the engine's]
    #[arg(long, value_name = "N", value_parser = parse_value::<usize>)]
    pub steps: Option<usize>,
    /// Guidance scale; 0 takes the prompt alone, where guidance is classifier-free [default: the engine's]
    #[arg(long, value_name = "X", value_parser = parse_scale)]
    pub guidance: Option<f32>,
    /// Guidance scale of the second transformer, of a model that has two and a --guidance above 1 [default: the engine's, or
    /// --guidance]
    #[arg(long, value_name = "X", value_parser = parse_scale)]
    pub guidance_2: Option<f32>,
    /// Classifier-free guidance, above 1, for a model that does not have it by itself: two runs a step, of which one takes
    /// the --negative-prompt
    #[arg(long, value_name = "X", value_parser = parse_scale)]
    pub true_cfg: Option<f32>,
    /// How far classifier-free guidance is drawn back to the spread of the prediction with the prompt, 0 to 1
    /// [default: the engine's]
    #[arg(long, value_name = "X", value_parser = parse_value::<f32>)]
    pub guidance_rescale: Option<f32>,
    /// Picture size in pixels [default: the engine's]
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub size: Option<(u64, u64)>,
    /// Frames of a video [default: the engine's]
    #[arg(long, value_name = "N", value_parser = parse_value::<u64>)]
    pub frames: Option<u64>,
    /// Frames per second of a video [default: the engine's]
    #[arg(long, value_name = "X", value_parser = parse_value::<f64>)]
    pub fps: Option<f64>,
    /// The first picture's seed: the same noise as PyTorch's CPU generator [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_value::<u64>)]
    pub seed: Option<u64>,
    /// Tensors to start from (safetensors): text inputs, latents, sigmas
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// Write the final latents (safetensors)
    #[arg(long, value_name = "FILE")]
    pub save_latents: Option<PathBuf>,
    /// Compare the final latents with those of a file; exit code 8 if they differ
    #[arg(long, value_name = "FILE")]
    pub check_outputs: Option<PathBuf>,
    /// Largest relative L1 difference for --check-outputs [default: 0.0001]
    #[arg(long, value_name = "X", requires = "check_outputs", value_parser = parse_value::<f64>)]
    pub tolerance: Option<f64>,
    /// Repeat the decisions of a --trace file, without comparing anything
    #[arg(long, value_name = "FILE", conflicts_with = "cache")]
    pub replay: Option<PathBuf>,
    /// Refuse a run whose cache would keep more: bytes, or with K, M or G (powers of 1024)
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub cache_memory: Option<u64>,
    /// Write the full record of every decision (JSON)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors and warnings
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// Make each picture with all processes that MPI has started (mpirun -n 4 dbcache-trt …), each with a share of the
    /// tokens: ulysses or gather, with their number if it is to be checked (ulysses=4)
    #[arg(long, value_name = "METHOD")]
    pub context_parallel: Option<Ranked>,
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

impl GenerateArgs {
    /// How one generation runs. Which part of --count it makes is added by `generate.rs`.
    pub fn request(&self) -> anyhow::Result<RequestOptions> {
        let cache = match &self.replay {
            Some(path) => {
                let given: Vec<String> =
                    self.policy.overrides().given().map(|option| format!("--{}", option.flag())).collect();
                if !given.is_empty() {
                    anyhow::bail!(Error::with_kind(
                        ErrorKind::Usage,
                        format!(
                            "--replay repeats the recorded policy, so {} cannot be used with it; leave one out",
                            given.join(", ")
                        )
                    ));
                }
                read_replay(path)?
            }
            None => read_policy(&self.cache)?.with(self.policy.overrides())?,
        };
        Ok(RequestOptions {
            cache,
            cache_dtype: self.cache_dtype.unwrap_or_default(),
            cache_place: self.cache_place.unwrap_or_default(),
            steps: self.steps,
            guidance: self.guidance,
            guidance_2: self.guidance_2,
            true_cfg: self.true_cfg,
            guidance_rescale: self.guidance_rescale,
            size: self.size,
            frames: self.frames,
            fps: self.fps,
            per_sample: self.per_sample,
            decode_tile: self.decode_tile,
            decode_slices: self.decode_slices,
            seed: self.seed.unwrap_or_default(),
            cache_memory: self.cache_memory,
            ..RequestOptions::default()
        })
    }
}

#[derive(Debug, Args)]
pub struct SetupArgs {
    /// What to set up: cpu, cuda, tensorrt, tensorrt-rtx, openvino or webgpu, or a list of them [default: cpu]
    #[arg(long, value_name = "LIST")]
    pub provider: Option<Targets>,
    /// Use only this tool: uv, pip or npm [default: the first that works]
    #[arg(long, value_name = "TOOL")]
    pub via: Option<Via>,
    /// Only show what is installed, and how many bytes it takes; of large files only the size is compared
    #[arg(long, conflicts_with_all = ["provider", "via"])]
    pub list: bool,
    /// Only read what is installed, and show where this program looks; exit code 3 if nothing can be used or something is
    /// damaged
    #[arg(long, conflicts_with_all = ["provider", "via", "list"])]
    pub check: bool,
    /// Remove what is installed for a provider, in all its versions
    #[arg(long, value_name = "PROVIDER", conflicts_with_all = ["provider", "via", "list", "check"])]
    pub remove: Option<Target>,
}

#[derive(Debug, Args)]
pub struct ProvidersArgs {
    /// Options for some of them, such as the file of a plugin (openvino:library=FILE)
    #[arg(long, value_name = "LIST")]
    pub provider: Option<Providers>,
    /// ONNX Runtime's library file [default: ORT_DYLIB_PATH, beside the program, where setup puts it, the system's]
    #[arg(long, value_name = "FILE")]
    pub ort_library: Option<PathBuf>,
    /// Also list the options of each
    #[arg(long)]
    pub options: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct InspectArgs {
    /// An engine directory, or a PNG file that this program made
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Compare the content hash of all weights
    #[arg(long)]
    pub verify: bool,
    /// Where the model is now: its folder, a component's, or one of a Hugging Face cache [default: where the engine says]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Also say how many bytes this cache policy would keep, and which sessions would be loaded for it
    #[arg(long, value_name = "TAG")]
    pub cache: Option<String>,
    #[command(flatten)]
    pub stages: StagesArgs,
    /// Describe it as it would compute in fp32, fp16 or bf16 [default: as exported]
    #[arg(long, value_name = "DTYPE", value_parser = choice::<ComputeChoice>(ComputeChoice::NAMES))]
    pub compute: Option<ComputeChoice>,
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// The run that --cache is asked for.
#[derive(Debug, Args)]
#[command(next_help_heading = "For --cache")]
pub struct MemoryArgs {
    /// Picture size in pixels [default: the engine's]
    #[arg(long, value_name = "WxH", value_parser = parse_size, requires = "cache")]
    pub size: Option<(u64, u64)>,
    /// Frames of a video [default: the engine's]
    #[arg(long, value_name = "N", requires = "cache", value_parser = parse_value::<u64>)]
    pub frames: Option<u64>,
    /// Pictures that run together [default: 1]
    #[arg(long, value_name = "N", requires = "cache", value_parser = parse_value::<usize>)]
    pub batch: Option<usize>,
    /// Denoising steps [default: the engine's]
    #[arg(long, value_name = "N", requires = "cache", value_parser = parse_value::<usize>)]
    pub steps: Option<usize>,
    /// Guidance scale [default: the engine's]
    #[arg(long, value_name = "X", value_parser = parse_scale, requires = "cache")]
    pub guidance: Option<f32>,
    /// Classifier-free guidance for a model that does not have it by itself
    #[arg(long, value_name = "X", value_parser = parse_scale, requires = "cache")]
    pub true_cfg: Option<f32>,
    /// In which dtype the cache keeps its tensors: stream, f16 or bf16 [default: that of the streams]
    #[arg(long, value_name = "DTYPE", requires = "cache")]
    pub cache_dtype: Option<CacheDType>,
    /// Text tokens, for an engine without a tokenizer [default: the most that it takes]
    #[arg(long, value_name = "N", requires = "cache", value_parser = parse_value::<u64>)]
    pub text_length: Option<u64>,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct WriteStagesArgs {
    /// The engine directory, as the exporter wrote it
    #[arg(long, value_name = "DIR")]
    pub engine: PathBuf,
    /// The new folder to write: one ONNX file for each session, the weights, and stages.json with the shapes of all inputs
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// Cache policy: a session ends wherever it looks at the streams
    #[arg(long, value_name = "TAG", default_value = "none")]
    pub cache: String,
    /// Smallest and largest picture, and extents of other dimensions, such as 512..1024,batch=1..2 [default: the engine's
    /// size, a batch of 1, any text]
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<Profile>,
    /// What will run them: tensorrt takes no bf16 where graphs begin and end, and is given f32 there [default: cpu]
    #[arg(long, value_name = "LIST")]
    pub provider: Option<Providers>,
    /// Where the model is now: its folder, a component's, or one of a Hugging Face cache [default: where the engine says]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    pub stages: StagesArgs,
    /// In which dtype the transformer computes: fp32, fp16 or bf16; the decoder stays as exported [default: as exported]
    #[arg(long, value_name = "DTYPE", value_parser = choice::<ComputeChoice>(ComputeChoice::NAMES))]
    pub compute: Option<ComputeChoice>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(subcommand)]
    pub command: TraceCommand,
}

#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Says where two runs part and why; exit code 8 if their decisions differ
    Diff(TraceDiffArgs),
}

#[derive(Debug, Args)]
pub struct TraceDiffArgs {
    /// A file that --trace has written
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another one
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use dbcache_trt::EngineOptions;
    use dbcache_trt::cache::{PolicyConfig, PolicyOption};
    use dbcache_trt::options::{Options, Scope, scope};

    use super::*;

    /// Flags that only the command has: files, texts, and what is printed.
    const OF_THE_COMMAND: [&str; 13] = [
        "context-parallel", // hosts hand over a group
        "engine",
        "prompt",
        "negative-prompt",
        "output",
        "count",
        "inputs",
        "save-latents",
        "check-outputs",
        "tolerance",
        "trace",
        "json",
        "quiet",
    ];

    /// Options that have no effect on the command: its engine serves one policy.
    const OF_HOSTS: [&str; 1] = ["other-plan"];

    /// A legal value, other than the default, for each option that does not belong to a policy. (`policy.rs` has the options
    /// of policies.)
    const VALUES: [(&str, &str); 31] = [
        ("threads", "3"),
        ("spin", "true"),
        ("ort-library", "a.so"),
        ("weights", "folder"),
        ("weights-mode", "mapped"),
        ("stages", "fused"),
        ("stage-bytes", "3M"),
        ("arithmetic", "graphs"),
        ("compute", "bf16"),
        ("provider", "tensorrt:fp16,cuda"),
        ("allow-fallback", "true"),
        ("build-cache", "folder"),
        ("require-built", "true"),
        ("profile", "64..128,batch=1..2"),
        ("verify", "true"),
        ("cache", "f1b0"),
        ("cache-dtype", "f16"),
        ("cache-place", "host"),
        ("cache-memory", "2K"),
        ("per-sample", "true"),
        ("decode-tile", "64"),
        ("decode-slices", "true"),
        ("steps", "4"),
        ("guidance", "-1.5"),
        ("true-cfg", "2"),
        ("guidance-2", "3"),
        ("size", "64x32"),
        ("guidance-rescale", "0.5"),
        ("frames", "17"),
        ("fps", "12.5"),
        ("seed", "7"),
    ];

    #[test]
    fn flags_and_options_by_name_are_the_same() {
        let command = Cli::command();
        let flags = command.get_arguments().filter(|argument| !argument.is_hide_set());
        let flags = flags.filter_map(|argument| argument.get_long());
        let mut flags: Vec<&str> = flags.filter(|flag| !OF_THE_COMMAND.contains(flag)).collect();
        let mut names = Options::names();
        names.retain(|name| !OF_HOSTS.contains(&name.as_str()));
        flags.sort_unstable();
        names.sort_unstable();
        assert_eq!(flags, names);
        // A batch means something else here: part of --count. A replay needs a file; see tests/library/replay.rs.
        let policy: Vec<String> = PolicyOption::all().iter().map(PolicyOption::flag).collect();
        let apart = ["batch", "replay"];
        let untested = |name: &&String| {
            !policy.contains(name) && !apart.contains(&name.as_str()) && !VALUES.iter().any(|(known, _)| known == *name)
        };
        assert_eq!(names.iter().find(untested), None);
    }

    #[test]
    fn a_flag_and_an_option_by_name_do_the_same() -> anyhow::Result<()> {
        let plain = format!("{:?} {:?}", EngineOptions::default(), RequestOptions::default());
        for (name, value) in VALUES {
            let flag = format!("--{name}");
            let line = ["dbcache-trt", "--engine", "x", &flag, value];
            let args = Cli::try_parse_from(if value == "true" { &line[..4] } else { &line[..] })?.generate;
            let request = args.request()?;
            let by_flag = format!("{:?} {request:?}", args.load.options(&request.cache));
            let mut options = Options::default();
            options.set(name, value)?;
            assert_eq!(by_flag, format!("{:?} {:?}", options.engine(), options.request()?), "{name}");
            assert_ne!(by_flag, plain, "{name}");
            // An engine is loaded for the policy of its requests.
            let engine = EngineOptions { cache: PolicyConfig::None, ..options.engine().clone() };
            let is_of_engine = format!("{engine:?}") != format!("{:?}", EngineOptions::default());
            assert_eq!(scope(name) == Some(Scope::Engine), is_of_engine, "{name}");
        }
        Ok(())
    }
}
