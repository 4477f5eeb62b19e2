//! What a set-up tells while it works.

use std::fmt;
use std::path::PathBuf;

use super::via::Via;
use crate::units::bytes_in_words;

/// What happens while setting up. `Display` is one line for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetupEvent {
    /// Another process sets up in the same folder; its result will do.
    Waiting,
    /// A tool starts to download.
    Running {
        /// The tool.
        via: Via,
        /// Its command line.
        command: String,
    },
    /// A tool still works.
    StillRunning {
        /// The tool.
        via: Via,
        /// For how long.
        seconds: u64,
    },
    /// What will be done for a provider, before anything is fetched.
    Planned {
        /// The provider.
        what: &'static str,
        /// How many bytes are to be downloaded.
        download: u64,
        /// How many bytes they become on the disk.
        disk: u64,
        /// Where.
        folder: PathBuf,
        /// How many bytes of an earlier setup are kept.
        kept: u64,
    },
    /// One package of several is fetched.
    Fetching {
        /// The package.
        package: &'static str,
        /// Its version.
        version: &'static str,
        /// How many bytes are to be downloaded.
        bytes: u64,
        /// Which one, from 1.
        place: usize,
        /// Of how many.
        of: usize,
    },
    /// More of the package that is being fetched has arrived.
    Arrived {
        /// How many bytes of its archive; about as many, where a tool unpacks while it downloads.
        bytes: u64,
        /// Of how many.
        of: u64,
    },
    /// A tool failed; the next one is tried.
    Failed {
        /// The tool.
        via: Via,
        /// Why, in its own words.
        reason: String,
    },
}

impl fmt::Display for SetupEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another setup"),
            Self::Running { command, .. } => write!(f, "running {command}"),
            Self::StillRunning { via, seconds } => write!(f, "{via} has been running for {seconds} seconds"),
            Self::Planned { what, download, disk, folder, kept } => {
                let (download, disk, folder) = (bytes_in_words(*download), bytes_in_words(*disk), folder.display());
                write!(f, "{what}: {download} to download, {disk} on the disk, in {folder}")?;
                match kept {
                    0 => Ok(()),
                    kept => write!(f, "; {} are there already", bytes_in_words(*kept)),
                }
            }
            Self::Fetching { package, version, bytes, place, of } => {
                write!(f, "[{place}/{of}] {package} {version}, {}", bytes_in_words(*bytes))
            }
            Self::Arrived { bytes, of } => write!(f, "{} of {}", bytes_in_words(*bytes), bytes_in_words(*of)),
            Self::Failed { via, reason } => write!(f, "{via}: {reason}"),
        }
    }
}
