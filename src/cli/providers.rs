//! `dbcache-trt providers`.

use dbcache_trt::{LibraryOptions, ProviderKind, provider_reports};
use serde_json::{Value, json};

use super::args::ProvidersArgs;
use super::print::line;
use super::remedy::spelled;

pub fn run(args: &ProvidersArgs) -> anyhow::Result<()> {
    let options = LibraryOptions { path: args.ort_library.clone(), ..LibraryOptions::default() };
    let reports = provider_reports(&options, args.provider.as_ref())?;
    if args.json {
        let providers: Vec<Value> = reports
            .iter()
            .map(|report| {
                let mut json = report.to_json();
                if args.options {
                    json["options"] = option_rows(report.kind);
                }
                json
            })
            .collect();
        return line(serde_json::to_string_pretty(&json!({ "version": 1, "providers": providers }))?);
    }
    for report in &reports {
        line(spelled(&report.to_string()))?;
        if args.options {
            for (name, expected, about) in report.kind.options() {
                line(format_args!("  {name:<20} {about}; {expected}"))?;
            }
        }
    }
    Ok(())
}

fn option_rows(kind: ProviderKind) -> Value {
    let row = |(name, expected, about)| json!({ "name": name, "expected": expected, "about": about });
    kind.options().map(row).collect()
}
