//! Why a build that the store holds of the same graph and parameters is not the one that is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::BuildStore;
use super::key::{Ingredients, KeyProfile};
use crate::error::Result;

/// One kind of ingredient that is not the same, each value as a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    what: &'static str,
    held: String,
    wanted: String,
}

/// All that keeps a build from being used, such as ``for the GPU `A`; this one is `B` ``.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Differences(Vec<Difference>);

impl Differences {
    /// Compares two builds of one graph. `device` is the word for what the provider compiles for.
    pub(crate) fn between(held: &Ingredients, wanted: &Ingredients, device: &'static str) -> Self {
        let [of, to] = [&held.target, &wanted.target];
        let settings = |held, wanted| unlike(held, wanted, &|key, value| format!("{key}={value}"), "no");
        let extents = unlike(&held.profiles, &wanted.profiles, &extents, "any");
        let [sdk, other_sdk] = unlike_parts(&of.sdk, &to.sdk);
        let pairs = [
            ("version of keys", [held.key_version.to_string(), wanted.key_version.to_string()]),
            (device, [of.device.clone(), to.device.clone()]),
            ("driver", [of.driver.clone(), to.driver.clone()]),
            ("compiler", [sdk, other_sdk]),
            ("ONNX Runtime", [of.onnxruntime.clone(), to.onnxruntime.clone()]),
            ("provider's settings", settings(&of.options, &to.options)),
            ("session's settings", settings(&of.session, &to.session)),
            ("profile", extents),
        ];
        let unlike = pairs.into_iter().filter(|(_, [held, wanted])| held != wanted);
        Self(unlike.map(|(what, [held, wanted])| Difference { what, held, wanted }).collect())
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let article = |what: &str| if what == "ONNX Runtime" { "" } else { "the " };
        let held = self.0.iter().map(|one| format!("{}{} `{}`", article(one.what), one.what, one.held));
        let wanted: Vec<String> = self.0.iter().map(|one| format!("`{}`", one.wanted)).collect();
        let begin = if wanted.len() == 1 { "this one is" } else { "here they are" };
        write!(f, "for {}; {begin} {}", held.collect::<Vec<_>>().join(" and "), wanted.join(" and "))
    }
}

/// Missing builds, and for what else a store holds builds of the same graphs.
#[derive(Clone, Debug, Default)]
pub(crate) struct MissingBuilds {
    count: usize,
    /// By what they are for: ``for the GPU `A`; this one is `B` ``.
    held: BTreeMap<String, usize>,
}

impl MissingBuilds {
    /// One more that is missing.
    pub(crate) fn add(&mut self, held_for: Option<&str>) {
        self.count += 1;
        if let Some(held_for) = held_for {
            *self.held.entry(held_for.to_owned()).or_default() += 1;
        }
    }

    /// For each reason: ``the cache holds 3 of them for the GPU `A`; this one is `B` ``.
    pub(crate) fn held(&self) -> impl Iterator<Item = String> {
        let total = self.count;
        self.held.iter().map(move |(held_for, count)| match *count {
            1 if total == 1 => format!("the cache holds it {held_for}"),
            count if count == total => format!("the cache holds them {held_for}"),
            count => format!("the cache holds {count} of them {held_for}"),
        })
    }

    /// A line for each reason, which can stand alone.
    pub(crate) fn lines(&self) -> Vec<String> {
        let missing = if self.count == 1 {
            "1 build is missing".to_owned()
        } else {
            format!("{} builds are missing", self.count)
        };
        self.held().map(|held| format!("{missing}: {held}")).collect()
    }
}

/// The entries of two maps that are not the same: those of the first, and those of the second.
fn unlike<T: PartialEq>(
    held: &BTreeMap<String, T>,
    wanted: &BTreeMap<String, T>,
    text: &impl Fn(&str, &T) -> String,
    absent: &str,
) -> [String; 2] {
    let keys: BTreeSet<&String> = held.keys().chain(wanted.keys()).collect();
    let keys: Vec<&String> = keys.into_iter().filter(|key| held.get(*key) != wanted.get(*key)).collect();
    [held, wanted].map(|map| {
        let one = |key: &&String| map.get(*key).map_or_else(|| format!("{absent} {key}"), |value| text(key, value));
        keys.iter().map(one).collect::<Vec<_>>().join(", ")
    })
}

fn extents(name: &str, [least, usual, most]: &KeyProfile) -> String {
    if least == most { format!("{name}={least}") } else { format!("{name}={least}..{most}, usually {usual}") }
}

/// Two lists with commas without what they have in common: the libraries of a compiler are many.
fn unlike_parts(held: &str, wanted: &str) -> [String; 2] {
    let [held, wanted] = [held, wanted].map(|list| list.split(", ").collect::<BTreeSet<_>>());
    let without = |of: &BTreeSet<&str>, other| of.difference(other).copied().collect::<Vec<_>>().join(", ");
    [without(&held, &wanted), without(&wanted, &held)]
}

impl BuildStore {
    /// For each wanted build, how the most similar one that is there differs: of the same graph, parameters and provider.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn similar(&self, wanted: &[&Ingredients], device: &'static str) -> Result<Vec<Option<Differences>>> {
        let held: Vec<Ingredients> = self.list()?.into_iter().filter_map(|build| build.into_ingredients()).collect();
        let nearest = |wanted: &&Ingredients| {
            let is_similar = |held: &&Ingredients| {
                held.graph == wanted.graph
                    && held.weights == wanted.weights
                    && held.target.provider == wanted.target.provider
            };
            let differences = held.iter().filter(is_similar).map(|held| Differences::between(held, wanted, device));
            // A build that differs in nothing is there, and was damaged or made meanwhile.
            differences.filter(|found| !found.0.is_empty()).min_by_key(|found| found.0.len())
        };
        Ok(wanted.iter().map(nearest).collect())
    }
}
