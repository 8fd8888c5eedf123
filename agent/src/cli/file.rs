//! The configuration file: a TOML table whose keys are flags. Its values become the flags' defaults, so the flags and
//! the environment win over it and everything is checked by the same code.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};

/// What takes its flags from the file.
const SERVING: [&str; 5] = ["serve", "gateway", "attention", "experts", "hybrid"];

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not readable.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("the configuration file {} is not valid TOML: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key that is no flag.
    #[error(
        "the configuration file {} sets {key:?}, which is no flag of `sluice-agent` {} (see their --help)",
        path.display(), SERVING.join(", ")
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A table or an array, where a flag takes one value.
    #[error("the configuration file {} sets {key:?} to a {found}; write a string, a number or a boolean", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it is.
        found: &'static str,
    },
}

/// The path after `--config` or in `SLUICE_CONFIG`. Looked for before the flags are parsed, since it changes their
/// defaults.
pub fn path_of(args: &[OsString], env: Option<OsString>) -> Option<PathBuf> {
    let mut args = args.iter().skip(1).take_while(|a| a.as_os_str() != "--");
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else { continue };
        if text == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    env.filter(|p| !p.is_empty()).map(PathBuf::from)
}

/// Makes the file's values the defaults of the flags of all that serves, and of those `generate` shares with it.
///
/// # Errors
/// The file cannot be read, or sets what is no flag.
pub fn apply(command: Command, path: &Path) -> Result<Command, FileError> {
    let read = |source| FileError::Read { path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let table: toml::Table =
        text.parse().map_err(|source| FileError::Syntax { path: path.into(), source: Box::new(source) })?;
    let mut command = command;
    for (key, value) in table {
        let value =
            scalar(value).map_err(|found| FileError::Shape { path: path.into(), key: key.clone(), found })?;
        let flag = key.replace('_', "-");
        let mut known = false;
        for sub in SERVING.into_iter().chain(["generate"]) {
            let id = command
                .find_subcommand(sub)
                .and_then(|s| {
                    s.get_arguments().find(|a| a.get_long() == Some(flag.as_str()) && flag != "config")
                })
                .map(|a| a.get_id().clone());
            let Some(id) = id else { continue };
            // What only `generate` has is about one prompt, not about a deployment.
            known |= sub != "generate";
            if known {
                let value = value.clone();
                // A default does not count as given where a flag is required.
                let with = |a: Arg| a.required(false).default_value(value);
                command = command.mut_subcommand(sub, |s| s.mut_arg(id, with));
            }
        }
        if !known {
            return Err(FileError::Unknown { path: path.into(), key });
        }
    }
    Ok(command)
}

fn scalar(value: toml::Value) -> Result<String, &'static str> {
    match value {
        toml::Value::String(s) => Ok(s),
        toml::Value::Integer(i) => Ok(i.to_string()),
        toml::Value::Float(f) => Ok(f.to_string()),
        // Flags that are switches say on and off.
        toml::Value::Boolean(b) => Ok(if b { "on" } else { "off" }.into()),
        toml::Value::Datetime(_) => Err("date"),
        toml::Value::Array(_) => Err("list"),
        toml::Value::Table(_) => Err("table"),
    }
}
