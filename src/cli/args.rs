//! What the command line can say. Parsed here; decided, defaulted and checked by the library.

mod policy;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dbcache_trt::setup::Via;
use dbcache_trt::{ArithmeticChoice, CacheDType, EngineOptions, LibraryOptions, StagesChoice, WeightsChoice};

pub use self::policy::PolicyArgs;

/// After `--help`: what a tag is, and the exit codes.
const AFTER_HELP: &str = "\
CACHE TAGS
  none                          every block runs on every step
  f8b16  f8b16w4r0.12mc3        DBCache: tokens in any order; what is left out is F8 B8 W8 I1 R0.12, no limits
  fb                            FBCache: F1 B0 R0.08 W8, at most 8 skipped steps
  dbcache  cache-dit  prune     presets: F8 B8 R0.12 W8; F8 B0 R0.08 W8; DBPrune F8 B8 R0.08 W8
  DBCache_F8B0_W8I1M0MC0_R0.08  tags that cache-dit prints
  policy.json  {\"Fn_compute_blocks\": 1}   options by their names in cache-dit
  tokens: f Fn, b Bn, w warm-up steps, i warm-up interval, r threshold, m max cached steps, mc max continuous cached
  steps, a max accumulated diff, l l1 threshold, ic important condition, ds downsample factor, scm:MASK[:static] steps
  mask (digits, slow, medium, fast, ultra), fr refresh hint, cf cfg compute first, cds cfg diff compute separate, t foca
  dmd calibrators, id s nt computed last blocks; prune_: DBPrune, np dt mp ui … (the README explains them)

EXIT CODES
  0 success, 2 usage, 3 ONNX Runtime's library, 4 engine directory, 5 input, 6 ONNX Runtime, 7 not a number,
  8 outputs or decisions differ, 9 file, 70 a bug, 130 cancelled";

/// Runs diffusion transformers block by block on ONNX Runtime, and skips the blocks that dual block caching proves
/// unnecessary.
#[derive(Debug, Parser)]
#[command(name = "dbcache-trt", version, after_long_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, max_term_width = 120)]
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
    /// Shows an engine directory, or how a picture was made
    Inspect(InspectArgs),
    /// Works on what --trace has written
    Trace(TraceArgs),
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
    /// The picture's file (PNG); with several pictures the seed is put before the ending [default: out.png]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Cache policy: a tag, a JSON object, or a JSON file; see below
    #[arg(long, value_name = "TAG", default_value = "none")]
    pub cache: String,
    /// Keep the cache's tensors as f16 or bf16: half the memory for a little accuracy [default: stream]
    #[arg(long, value_name = "DTYPE")]
    pub cache_dtype: Option<CacheDType>,
    /// How many pictures; picture k has the seed SEED + k
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1)]
    pub count: usize,
    /// Pictures that run, and decide, together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Each picture of a batch decides for itself
    #[arg(long)]
    pub per_sample: bool,
    /// Denoising steps [default: the engine's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Guidance scale [default: the engine's]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// Classifier-free guidance for a model that does not have it by itself: two runs a step
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub true_cfg: Option<f32>,
    /// Picture size in pixels [default: the engine's]
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub size: Option<(u64, u64)>,
    /// The first picture's seed: the same noise as PyTorch's CPU generator [default: 0]
    #[arg(long, value_name = "N")]
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
    #[arg(long, value_name = "X", requires = "check_outputs", allow_negative_numbers = true)]
    pub tolerance: Option<f64>,
    /// Repeat the decisions of a --trace file, without comparing anything
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cache", "PolicyArgs"])]
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
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// How the engine is loaded.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine options")]
pub struct LoadArgs {
    /// Threads that compute [default: physical cores; 1 where blocks are too small to share]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Let idle threads spin: faster on a quiet machine, much slower on a busy one
    #[arg(long)]
    spin: bool,
    /// ONNX Runtime's library file [default: ORT_DYLIB_PATH, beside the program, where setup puts it, the system's]
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,
    /// The folder of the weights, instead of the one that the engine names
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Where the weights live: packed (fast steps), mapped (no f32 copy; for models that do not fit), or by size
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Auto)]
    weights_mode: Mode,
    /// One block a session (fits every cache), or all in one (a little faster; only without a cache)
    #[arg(long, value_name = "PLAN", value_enum, default_value_t = Stages::PerBlock)]
    stages: Stages,
    /// How residuals and diffs are computed: loops where possible, or always ONNX graphs
    #[arg(long, value_name = "WAY", value_enum, default_value_t = Arithmetic::Auto, hide_short_help = true)]
    arithmetic: Arithmetic,
    /// Compare the content hash of all weights before anything runs
    #[arg(long)]
    verify: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Auto,
    Packed,
    Mapped,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Arithmetic {
    Auto,
    Graphs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Stages {
    PerBlock,
    Fused,
}

impl LoadArgs {
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            library: LibraryOptions { path: self.ort_library.clone(), threads: self.threads, spin: self.spin },
            weights: match self.weights_mode {
                Mode::Auto => WeightsChoice::Auto,
                Mode::Packed => WeightsChoice::Packed,
                Mode::Mapped => WeightsChoice::Mapped,
            },
            stages: match self.stages {
                Stages::PerBlock => StagesChoice::PerBlock,
                Stages::Fused => StagesChoice::Fused,
            },
            arithmetic: match self.arithmetic {
                Arithmetic::Auto => ArithmeticChoice::Auto,
                Arithmetic::Graphs => ArithmeticChoice::Graphs,
            },
            weights_folder: self.weights.clone(),
            verify: self.verify,
        }
    }
}

#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Use only this tool: uv, pip or npm [default: the first that works]
    #[arg(long, value_name = "TOOL", conflicts_with = "check")]
    pub via: Option<Via>,
    /// Only show what is installed and where this program looks; exit code 3 if nothing can be used
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// An engine directory, or a PNG file that this program made
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Compare the content hash of all weights
    #[arg(long)]
    pub verify: bool,
    /// The folder of the weights, instead of the one that the engine names
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Also say how many bytes this cache policy would keep
    #[arg(long, value_name = "TAG")]
    pub cache: Option<String>,
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
    /// Pictures that run together [default: 1]
    #[arg(long, value_name = "N", requires = "cache")]
    pub batch: Option<usize>,
    /// Denoising steps [default: the engine's]
    #[arg(long, value_name = "N", requires = "cache")]
    pub steps: Option<usize>,
    /// Guidance scale [default: the engine's]
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "cache")]
    pub guidance: Option<f32>,
    /// Classifier-free guidance for a model that does not have it by itself
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "cache")]
    pub true_cfg: Option<f32>,
    /// In which dtype the cache keeps its tensors: stream, f16 or bf16 [default: that of the streams]
    #[arg(long, value_name = "DTYPE", requires = "cache")]
    pub cache_dtype: Option<CacheDType>,
    /// Text tokens, for an engine without a tokenizer [default: the most that it takes]
    #[arg(long, value_name = "N", requires = "cache")]
    pub text_length: Option<u64>,
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

/// Digits, and K, M or G for powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let unit = units.iter().find(|(unit, _)| text.ends_with([*unit, unit.to_ascii_lowercase()]));
    let (digits, shift) = unit.map_or((text, 0), |(_, shift)| (&text[..text.len() - 1], *shift));
    let bytes = if digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
    let bytes = bytes.and_then(|bytes| bytes.checked_mul(1 << shift));
    bytes.ok_or_else(|| "expected bytes, such as 1048576, 512K, 64M or 2G".to_owned())
}

fn parse_size(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once(['x', 'X']).ok_or("expected WIDTHxHEIGHT, such as 1024x768")?;
    match (parts.0.parse(), parts.1.parse()) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err("expected WIDTHxHEIGHT, such as 1024x768".into()),
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
}
