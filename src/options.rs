//! Options by name and text, for faces that have no types: the names are the command's long flags.
//!
//! A new option of [`EngineOptions`] or [`RequestOptions`] is one line of `TABLE` (and a flag in `src/cli/args.rs`,
//! which a test there asks for). Nothing is decided here: what is left out stays the library's default.

mod files;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

pub use self::files::{read_policy, read_replay, read_trace};
use crate::cache::{PolicyOption, PolicyOverrides};
use crate::error::{At, Error, Result};
use crate::nearest::nearest;
use crate::request::engine_options::EngineOptions;
use crate::request::options::RequestOptions;
use crate::runtime::provider::{BY_COMPUTE, is_precision};
pub use crate::units::parse_bytes;
use crate::words::problem_of;

/// What an option is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// How an engine is loaded.
    Engine,
    /// How one generation runs.
    Request,
}

/// One option: its name, what it is for, and how its text is read.
struct Entry {
    name: &'static str,
    scope: Scope,
    set: fn(&mut Options, &str) -> Result<()>,
}

const fn engine(name: &'static str, set: fn(&mut Options, &str) -> Result<()>) -> Entry {
    Entry { name, scope: Scope::Engine, set }
}

const fn request(name: &'static str, set: fn(&mut Options, &str) -> Result<()>) -> Entry {
    Entry { name, scope: Scope::Request, set }
}

/// All options but those of the cache policies, which [`PolicyOption::all`] lists.
const TABLE: &[Entry] = &[
    engine("threads", |options, text| some(&mut options.engine.library.threads, text)),
    engine("spin", |options, text| plain(&mut options.engine.library.spin, text)),
    engine("ort-library", |options, text| some(&mut options.engine.library.path, text)),
    engine("weights", |options, text| some(&mut options.engine.weights_folder, text)),
    engine("weights-mode", |options, text| plain(&mut options.engine.weights, text)),
    engine("stages", |options, text| plain(&mut options.engine.stages, text)),
    engine("stage-bytes", |options, text| {
        options.engine.stage_bytes = Some(parse_bytes(text).map_err(|problem| bad(text, problem))?);
        Ok(())
    }),
    engine("other-plan", |options, text| plain(&mut options.engine.other_plan, text)),
    engine("arithmetic", |options, text| plain(&mut options.engine.arithmetic, text)),
    engine("compute", |options, text| plain(&mut options.engine.compute, text)),
    engine("provider", |options, text| plain(&mut options.engine.provider, text)),
    engine("allow-fallback", |options, text| plain(&mut options.engine.allow_fallback, text)),
    engine("build-cache", |options, text| plain(&mut options.engine.build_cache, text)),
    engine("require-built", |options, text| plain(&mut options.engine.require_built, text)),
    engine("profile", |options, text| some(&mut options.engine.profile, text)),
    engine("verify", |options, text| plain(&mut options.engine.verify, text)),
    request("cache", |options, text| {
        options.request.cache = read_policy(text)?;
        Ok(())
    }),
    request("replay", |options, text| {
        options.request.cache = read_replay(text.as_ref())?;
        Ok(())
    }),
    request("cache-dtype", |options, text| plain(&mut options.request.cache_dtype, text)),
    request("cache-place", |options, text| plain(&mut options.request.cache_place, text)),
    request("cache-memory", |options, text| {
        options.request.cache_memory = Some(parse_bytes(text).map_err(|problem| bad(text, problem))?);
        Ok(())
    }),
    request("per-sample", |options, text| plain(&mut options.request.per_sample, text)),
    request("steps", |options, text| some(&mut options.request.steps, text)),
    request("guidance", |options, text| {
        options.request.guidance = Some(parse_scale(text).map_err(|problem| bad(text, problem))?);
        Ok(())
    }),
    request("guidance-2", |options, text| {
        options.request.guidance_2 = Some(parse_scale(text).map_err(|problem| bad(text, problem))?);
        Ok(())
    }),
    request("true-cfg", |options, text| {
        options.request.true_cfg = Some(parse_scale(text).map_err(|problem| bad(text, problem))?);
        Ok(())
    }),
    request("size", |options, text| {
        options.request.size = Some(parse_size(text).map_err(|problem| bad(text, problem))?);
        Ok(())
    }),
    request("guidance-rescale", |options, text| some(&mut options.request.guidance_rescale, text)),
    request("frames", |options, text| some(&mut options.request.frames, text)),
    request("fps", |options, text| some(&mut options.request.fps, text)),
    request("decode-tile", |options, text| some(&mut options.request.decode_tile, text)),
    request("decode-slices", |options, text| plain(&mut options.request.decode_slices, text)),
    request("batch", |options, text| some(&mut options.request.batch, text)),
    request("seed", |options, text| plain(&mut options.request.seed, text)),
];

/// Names that options had before, each with the one that it has now.
const OLD_NAMES: [(&str, &str); 1] = [("engine-cache", "build-cache")];

/// The name that an option has now.
fn present(name: &str) -> &str {
    OLD_NAMES.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new)
}

/// Options of engines and requests, set one by one. One object can serve both: an engine reads those of its scope, a
/// request the others.
#[derive(Clone, Debug, Default)]
pub struct Options {
    engine: EngineOptions,
    request: RequestOptions,
    policy: PolicyOverrides,
    given: BTreeMap<String, String>,
}

impl Options {
    /// Sets one option; a second value replaces the first. A name that an option had before is read, and a warning in the
    /// log says the new one.
    ///
    /// # Errors
    /// `Usage` for an unknown name, with the nearest known one, and for a text that is no value of the option. Then
    /// nothing is changed.
    pub fn set(&mut self, name: &str, text: &str) -> Result<()> {
        let given = name;
        let name = present(given);
        if name != given {
            tracing::warn!("the option `{given}` is now `{name}`");
        }
        let mut changed = self.clone();
        match TABLE.iter().find(|entry| entry.name == name) {
            Some(entry) => (entry.set)(&mut changed, text)
                .map_err(|error| error.about(name))
                .at(format_args!("the option `{name}`"))?,
            None if changed.policy.set(name, text)? => {}
            None => return Err(unknown(name)),
        }
        changed.given.insert(name.to_owned(), text.to_owned());
        // An engine that is loaded with these options has its stages for this policy.
        changed.engine.cache = changed.request().map(|request| request.cache).unwrap_or_default();
        *self = changed;
        Ok(())
    }

    /// How an engine is loaded.
    pub fn engine(&self) -> &EngineOptions {
        &self.engine
    }

    /// How a generation runs: the policy with its overrides.
    ///
    /// # Errors
    /// `Usage` for options that exclude each other or that the policy lacks.
    pub fn request(&self) -> Result<RequestOptions> {
        let is_replay = self.given.contains_key("replay");
        if is_replay && let Some(other) = self.given.keys().find(|name| *name == "cache" || is_of_policy(name)) {
            return Err(Error::option(
                other,
                "has no effect with the option `replay`, which repeats what was recorded; leave one out",
            ));
        }
        let cache = self.request.cache.clone().with(&self.policy).map_err(|error| error.about("cache"))?;
        Ok(RequestOptions { cache, ..self.request.clone() })
    }

    /// Options of engines that are set here but not to what `loaded` has: they would have no effect on a request.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_loaded(&self, loaded: &Self) -> Result<()> {
        let is_other = |(name, text): &(&String, &String)| {
            scope(name) == Some(Scope::Engine) && loaded.given.get(*name) != Some(*text)
        };
        let Some((name, text)) = self.given.iter().find(is_other) else { return Ok(()) };
        let loaded = loaded.given.get(name).map_or("its default".to_owned(), |other| format!("`{other}`"));
        Err(Error::option(
            name,
            format_args!("is `{text}`, but the engine was loaded with {loaded}; load another engine, or leave it out"),
        ))
    }

    /// What was set, by name.
    pub fn given(&self) -> impl Iterator<Item = (&str, &str)> {
        self.given.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The names of all options.
    pub fn names() -> Vec<String> {
        TABLE
            .iter()
            .map(|entry| entry.name.to_owned())
            .chain(PolicyOption::all().iter().map(PolicyOption::flag))
            .collect()
    }
}

fn is_of_policy(name: &str) -> bool {
    PolicyOption::all().iter().any(|option| option.flag() == name)
}

/// What an option is for; none for an unknown one.
pub fn scope(name: &str) -> Option<Scope> {
    let name = present(name);
    let known = TABLE.iter().find(|entry| entry.name == name).map(|entry| entry.scope);
    known.or_else(|| is_of_policy(name).then_some(Scope::Request))
}

fn unknown(name: &str) -> Error {
    if is_precision(name) {
        return Error::usage(format!("there is no option `{name}`: {BY_COMPUTE}")).about(name);
    }
    if name.is_empty() {
        return Error::usage("an option without a name; give one, such as `cache`").about(name);
    }
    let near = nearest(name, Options::names()).map(|known| format!("; the nearest known one is `{known}`"));
    Error::usage(format!("unknown option `{name}`{}", near.unwrap_or_default())).about(name)
}

fn plain<T: FromStr<Err: Display + 'static>>(place: &mut T, text: &str) -> Result<()> {
    *place = parse_value(text).map_err(|problem| bad(text, problem))?;
    Ok(())
}

fn some<T: FromStr<Err: Display + 'static>>(place: &mut Option<T>, text: &str) -> Result<()> {
    *place = Some(parse_value(text).map_err(|problem| bad(text, problem))?);
    Ok(())
}

fn bad(text: &str, problem: impl Display) -> Error {
    Error::usage(format!("`{text}`: {problem}"))
}

/// Any value that is read from a text, such as a number.
///
/// # Errors
/// What was expected.
pub fn parse_value<T: FromStr<Err: Display + 'static>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|problem| problem_of(&problem))
}

/// Beyond this a scale of guidance is a typing error: published pipelines use 1 to 20.
const MAX_SCALE: f32 = 1000.0;

/// A scale of guidance, dimensionless.
///
/// # Errors
/// What was expected.
pub fn parse_scale(text: &str) -> Result<f32, String> {
    let scale = text.parse().ok().filter(|scale| (-MAX_SCALE..=MAX_SCALE).contains(scale));
    scale.ok_or_else(|| format!("expected a number from -{MAX_SCALE} to {MAX_SCALE}"))
}

/// `(width, height)` in pixels, from such a text as `1024x768`.
///
/// # Errors
/// What was expected.
pub fn parse_size(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once(['x', 'X']).ok_or("expected WIDTHxHEIGHT, such as 1024x768")?;
    match (parts.0.parse(), parts.1.parse()) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err("expected WIDTHxHEIGHT, such as 1024x768".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_cannot_be_set_is_refused_by_name() {
        for (name, text, words) in [
            ("step", "4", "unknown option `step`; the nearest known one is `steps`"),
            ("Cache", "none", "the nearest known one is `cache`"),
            (
                "precision",
                "fp16",
                "there is no option `precision`: the dtype in which graphs compute is chosen by the option `compute`",
            ),
            ("compute", "int8", "the option `compute`: `int8`: unknown compute dtype"),
            ("max-warmup-step", "4", "the nearest known one is `max-warmup-steps`"),
            ("steps", "four", "the option `steps`: `four`: expected a whole number of at least 0"),
            ("fps", "x", "the option `fps`: `x`: expected a number"),
            ("max-cached-steps", "x", "expected a whole number of at least 0, or `none`"),
            ("size", "64", "expected WIDTHxHEIGHT"),
            ("spin", "maybe", "the option `spin`: `maybe`"),
            ("cache", "f8z", "the option `cache`: "),
            ("max-warmup-steps", "x", "the option `max-warmup-steps` is `x`"),
            ("stages", "some", "the option `stages`: "),
            ("other-plan", "none", "expected `load`, `add` or `refuse`"),
        ] {
            let mut options = Options::default();
            let error = options.set(name, text).unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::Usage, Some(name)), "{error}");
            assert!(error.to_string().contains(words), "{name}: {error}");
            assert_eq!(options.given().count(), 0, "{name}");
        }
    }

    #[test]
    fn a_name_that_an_option_had_before_is_read() -> Result<()> {
        for (old, new) in OLD_NAMES {
            let (mut before, mut now) = (Options::default(), Options::default());
            before.set(old, "folder")?;
            now.set(new, "folder")?;
            assert_eq!(format!("{before:?}"), format!("{now:?}"), "{old}");
            assert_eq!(before.given().collect::<Vec<_>>(), [(new, "folder")]);
            assert_eq!(scope(old), scope(new));
            assert!(!Options::names().iter().any(|name| name == old), "{old}");
            assert_eq!(Options::default().set(old, "").unwrap_err().field(), Some(new));
        }
        Ok(())
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let refused = Options::default().set("replay", "no/such.json").unwrap_err();
        assert_eq!((refused.kind(), refused.field()), (ErrorKind::Io, Some("no/such.json")), "{refused}");
    }

    #[test]
    fn overrides_come_on_top_of_the_policy_in_any_order() -> Result<()> {
        let mut options = Options::default();
        options.set("max-warmup-steps", "2")?;
        options.set("cache", "f1b0")?;
        assert_eq!(options.request()?.cache.to_string(), "f1b0w2i1r0.12");
        assert_eq!(options.engine().cache, options.request()?.cache);
        options.set("cache", "none")?;
        let refused = options.request().unwrap_err();
        assert_eq!(refused.field(), Some("cache"));
        assert!(refused.to_string().contains("max_warmup_steps"), "{refused}");
        Ok(())
    }

    #[test]
    fn a_request_refuses_other_engine_options() -> Result<()> {
        let (mut loaded, mut asked) = (Options::default(), Options::default());
        asked.set("steps", "3")?;
        asked.check_loaded(&loaded)?;
        asked.set("threads", "2")?;
        assert!(asked.check_loaded(&loaded).is_err_and(|error| error.field() == Some("threads")));
        loaded.set("threads", "2")?;
        asked.check_loaded(&loaded)
    }
}
