//! The manifest of a deployment, from a file: checked by the rules that the API server checks it by, and read again when
//! it changes.

use kube::CustomResourceExt;
use kube::core::cel::{Validator, apply_defaults, compile_schema};
use serde_json::Value;
use sluice_crds::MoEDeployment;
use std::path::{Path, PathBuf};

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("{}: {why}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A manifest.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    text: String,
    object: Value,
    /// The deployment it says.
    pub moe: MoEDeployment,
}

impl Manifest {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let text = read(path)?;
        let (object, moe) = parse(path, &text, None)?;
        Ok(Self { path: path.into(), text, object, moe })
    }

    /// Reads it again, if it has changed. It may not change what cannot be changed.
    ///
    /// # Errors
    /// What is wrong with it; what was read before stays.
    pub fn again(&mut self) -> Result<bool, ManifestError> {
        let text = read(&self.path)?;
        if text == self.text {
            return Ok(false);
        }
        let (object, moe) = parse(&self.path, &text, Some(&self.object))?;
        let is_new = object != self.object;
        (self.text, self.object, self.moe) = (text, object, moe);
        Ok(is_new)
    }

    /// The namespace, which on one machine is but a word.
    pub fn namespace(&self) -> &str {
        self.moe.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.moe.metadata.name.as_deref().unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<String, ManifestError> {
    std::fs::read_to_string(path).map_err(|source| ManifestError::Read { path: path.into(), source })
}

fn parse(path: &Path, text: &str, old: Option<&Value>) -> Result<(Value, MoEDeployment), ManifestError> {
    let wrong = |why: String| ManifestError::Wrong { path: path.into(), why };
    let object: Value = serde_saphyr::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or("nothing");
    if kind != "MoEDeployment" {
        return Err(wrong(format!("it is a {kind}: give a file with one MoEDeployment")));
    }
    let schema = MoEDeployment::crd().spec.versions.into_iter().next().and_then(|v| v.schema);
    let schema = schema.and_then(|s| serde_json::to_value(s.open_api_v3_schema).ok()).unwrap_or_default();
    let object = apply_defaults(&schema, &object);
    if let Err(errors) = Validator::new().validate_compiled(&compile_schema(&schema), &object, old) {
        let all: Vec<String> = errors.into_vec().into_iter().map(|e| e.message).collect();
        return Err(wrong(all.join("; ")));
    }
    let moe: MoEDeployment = serde_json::from_value(object.clone()).map_err(|e| wrong(e.to_string()))?;
    if moe.metadata.name.as_deref().is_none_or(str::is_empty) {
        return Err(wrong("metadata.name is missing".into()));
    }
    Ok((object, moe))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
apiVersion: sluice.dev/v1alpha1
kind: MoEDeployment
metadata: {name: tiny}
spec:
  model: {source: {hostPath: {path: /models/tiny}}}
  attention: {replicas: 1, devicesPerPod: 0}
  experts: {replicas: 2, devicesPerPod: 0}
";

    #[test]
    fn it_is_checked_as_the_api_server_checks_it_and_read_again() {
        let dir = std::env::temp_dir().join(format!("sluice-manifest-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("moe.yaml");
        let write = |from: &str, to: &str| {
            assert!(TEXT.contains(from), "{from}");
            std::fs::write(&path, TEXT.replace(from, to)).unwrap();
        };
        assert!(Manifest::read(&path).unwrap_err().to_string().contains("cannot read"));
        for (from, to, says) in [
            ("kind: MoEDeployment", "kind: Pod", "it is a Pod"),
            ("attention:", "atention:", "attention and experts are given together"),
            ("replicas: 2", "replicsa: 2", "replicsa"),
            ("{hostPath: {path: /models/tiny}}", "{}", "exactly one of"),
        ] {
            write(from, to);
            let said = Manifest::read(&path).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
        write("replicas: 2", "replicas: 2");
        let mut manifest = Manifest::read(&path).unwrap();
        assert_eq!((manifest.namespace(), manifest.name()), ("default", "tiny"));
        assert!(!manifest.again().unwrap());
        write("replicas: 2", "replicas: 4");
        assert!(manifest.again().unwrap());
        assert_eq!(manifest.moe.spec.experts.as_ref().unwrap().replicas, 4);
        write("path: /models/tiny", "path: /models/other");
        let said = manifest.again().unwrap_err().to_string();
        assert!(said.contains("immutable"), "{said}");
        assert_eq!(manifest.moe.spec.experts.as_ref().unwrap().replicas, 4, "what was there stays");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
