//! The options of the cache policies: one flag for each row of [`PolicyOption::all`].

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use dbcache_trt::cache::{OptionGroup, PolicyOption, PolicyOverrides};

/// Options of the cache policy, each on top of --cache. Rarely used ones are shown by --help only.
#[derive(Clone, Debug, Default)]
pub struct PolicyArgs {
    overrides: PolicyOverrides,
}

impl PolicyArgs {
    pub fn overrides(&self) -> &PolicyOverrides {
        &self.overrides
    }
}

impl Args for PolicyArgs {
    fn augment_args(command: Command) -> Command {
        let groups = [OptionGroup::Both, OptionGroup::DbCache, OptionGroup::DbPrune, OptionGroup::Calibrator];
        let of_group = |group| PolicyOption::all().iter().filter(move |option| option.group() == group);
        command.args(groups.into_iter().flat_map(of_group).map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PolicyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for option in PolicyOption::all() {
            if let Some(text) = matches.get_one::<String>(option.name()) {
                // `checked` has read it before.
                let set = self.overrides.set(&option.flag(), text);
                set.map_err(|error| Error::raw(ErrorKind::ValueValidation, error))?;
            }
        }
        Ok(())
    }
}

fn arg(option: &'static PolicyOption) -> Arg {
    Arg::new(option.name())
        .long(option.flag())
        .value_name(option.value_name())
        .help(help(option))
        .help_heading(heading(option.group()))
        .hide_short_help(!option.is_common())
        .value_parser(move |text: &str| checked(option, text))
}

/// A text that is a value of this option.
fn checked(option: &PolicyOption, text: &str) -> Result<String, String> {
    option.check(text)?;
    Ok(text.to_owned())
}

/// As the help of other flags: without the last full stop, and with flags for options.
fn help(option: &PolicyOption) -> String {
    let about = option.about().trim_end_matches('.').replace('`', "");
    if option.takes_none() { format!("{about} [or none]") } else { about }
}

fn heading(group: OptionGroup) -> &'static str {
    match group {
        OptionGroup::Both => "Cache options (each overrides a part of --cache)",
        OptionGroup::DbCache => "Cache options of DBCache",
        OptionGroup::DbPrune => "Cache options of DBPrune",
        OptionGroup::Calibrator => "Cache options of calibrators",
    }
}

/// The tokens of tags and their options in two columns, for `--help`.
pub fn tokens() -> String {
    let rows: Vec<String> = PolicyOption::all()
        .iter()
        .map(|option| format!("{:<11}{:<42}", option.tokens().join(" "), option.name()))
        .collect();
    let lines = rows.chunks(2).map(|pair| format!("  {}", pair.concat().trim_end()));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    /// A value for each kind of option.
    fn value(option: &PolicyOption) -> String {
        match option.value_name().as_str() {
            "BOOL" => "true".into(),
            "N" => "2".into(),
            "X" => "0.3".into(),
            "IDS" => "0,2".into(),
            "MASK" => "1101".into(),
            words => words.split('|').next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn every_option_has_a_flag_that_reaches_it() -> anyhow::Result<()> {
        for option in PolicyOption::all() {
            let flag = format!("--{}", option.flag());
            let parse = |value: &str| Cli::try_parse_from(["dbcache-trt", "--engine", "x", &flag, value]);
            let policy = parse(&value(option))?.generate.policy;
            let given: Vec<&str> = policy.overrides().given().map(PolicyOption::name).collect();
            assert_eq!(given, [option.name()]);
            assert_eq!(parse("none").is_ok(), option.takes_none(), "{flag}");
            assert!(parse("?").is_err_and(|error| error.to_string().contains(&flag)), "{flag}");
        }
        Ok(())
    }

    #[test]
    fn a_replay_takes_no_policy() {
        let parse = |arguments: &[&str]| {
            let always = ["dbcache-trt", "--engine", "x", "--replay", "trace.json"];
            Cli::try_parse_from(always.iter().chain(arguments)).map_err(|error| error.to_string())
        };
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--cache", "none"]).is_err_and(|error| error.contains("--cache")));
    }
}
