//! What the library's errors leave to this command: how options are spelled, and the command line that helps.

use std::path::Path;

use clap::{Command, CommandFactory};
use dbcache_trt::cache::PolicyConfig;
use dbcache_trt::{
    ArithmeticChoice, BuildCache, CacheDType, ComputeChoice, EngineOptions, Error, ErrorKind, StagesChoice,
};

use super::args::Cli;

/// Spells options as flags: the library's "the option `cache=none`" is `--cache none` here.
pub fn spelled(text: &str) -> String {
    // Most texts name none, and all flags take a moment to list.
    if !text.contains("option `") {
        return text.to_owned();
    }
    let flags = flags(&Cli::command());
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("option `") {
        let Some((option, end)) = after.split_once('`') else { break };
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        if flags.iter().any(|flag| flag == name) {
            done.push_str(before.strip_suffix("the ").unwrap_or(before));
            done.push_str("--");
            done.push_str(name);
            done.extend(value.into_iter().flat_map(|value| [" ", value]));
        } else {
            done.push_str(before);
            done.push_str("option `");
            done.push_str(option);
            done.push('`');
        }
        rest = end;
    }
    done.push_str(rest);
    done
}

/// The long flags of a command and of those below it.
fn flags(command: &Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned);
    own.chain(command.get_subcommands().flat_map(flags)).collect()
}

/// Adds to an error about an engine that is not compiled the command that compiles it.
pub fn with_build_command(error: Error, directory: &Path, options: &EngineOptions) -> Error {
    match error.kind() {
        ErrorKind::NotBuilt => {
            let command = command(directory, options);
            Error::with_kind(ErrorKind::NotBuilt, format!("{error}; compile with `{command}`"))
        }
        _ => error,
    }
}

/// The command that compiles what an engine with these options needs.
fn command(directory: &Path, options: &EngineOptions) -> String {
    // A replay needs the plan of the policy that it repeats.
    let cache = match &options.cache {
        PolicyConfig::Replay { config, .. } => config,
        cache => cache,
    };
    let mut words = vec!["dbcache-trt".to_owned(), "build".to_owned()];
    let mut add = |flag: &str, value: String| {
        words.push(format!("--{flag}"));
        words.push(quoted(value));
    };
    add("engine", directory.display().to_string());
    add("provider", options.provider.to_string());
    if *cache != PolicyConfig::None {
        add("cache", cache.to_string());
    }
    if options.stages != StagesChoice::default() {
        add("stages", options.stages.to_string());
    }
    if options.arithmetic == ArithmeticChoice::Stages {
        add("arithmetic", "stages".to_owned());
        if options.cache_dtype != CacheDType::Stream {
            add("cache-dtype", options.cache_dtype.as_str().to_owned());
        }
    }
    if options.compute != ComputeChoice::default() {
        add("compute", options.compute.to_string());
    }
    if let Some(bytes) = options.stage_bytes {
        add("stage-bytes", bytes.to_string());
    }
    if let Some(profile) = &options.profile {
        add("profile", profile.to_string());
    }
    if let BuildCache::Folder(folder) = &options.build_cache {
        add("build-cache", folder.display().to_string());
    }
    if let Some(folder) = &options.weights_folder {
        add("weights", folder.display().to_string());
    }
    if let Some(library) = &options.library.path {
        add("ort-library", library.display().to_string());
    }
    if options.allow_fallback {
        words.push("--allow-fallback".to_owned());
    }
    words.join(" ")
}

/// For a shell, where it needs that.
fn quoted(text: String) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use dbcache_trt::OtherPlan;

    use super::*;

    #[test]
    fn options_are_spelled_as_flags() {
        for (text, shown) in [
            ("the option `steps` is 0", "--steps is 0"),
            ("use the option `cache=none`, or another option `size`", "use --cache none, or another --size"),
            (
                "there is no option `fp17`; the option `provider=cuda`: x",
                "there is no option `fp17`; --provider cuda: x",
            ),
            ("the option `max_cached_steps` and the option `", "the option `max_cached_steps` and the option `"),
        ] {
            assert_eq!(spelled(text), shown);
        }
    }

    #[test]
    fn the_command_says_all_that_the_keys_depend_on() {
        let mut options = EngineOptions { provider: "openvino".parse().unwrap(), ..EngineOptions::default() };
        assert_eq!(command(Path::new("m"), &options), "dbcache-trt build --engine m --provider openvino");
        options.cache = "f1b0w2i1r0.1".parse().unwrap();
        options.stages = StagesChoice::Blocks(3);
        options.compute = ComputeChoice::Bf16;
        options.stage_bytes = Some(5);
        // Of no effect without arithmetic in the stages.
        options.cache_dtype = CacheDType::F16;
        options.profile = Some("8..16,batch=1..2".parse().unwrap());
        options.build_cache = BuildCache::Folder("my builds".into());
        options.weights_folder = Some("it's".into());
        options.allow_fallback = true;
        options.other_plan = OtherPlan::Refuse;
        assert_eq!(
            command(Path::new("m"), &options),
            "dbcache-trt build --engine m --provider openvino --cache f1b0w2i1r0.1 --stages 3 --compute bf16 --stage-bytes 5 --profile \
             8x8..16x16,batch=1..2 --build-cache 'my builds' --weights 'it'\\''s' --allow-fallback"
        );
    }
}
