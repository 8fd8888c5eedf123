//! Volumes and where they are mounted.

use crate::schemas::{LABEL, NO_PARENT, quantity, rules};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A volume: a name and exactly one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([
    (
        "[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.persistentVolumeClaim), has(self.hostPath)].filter(given, given).size() == 1",
        "exactly one of configMap, secret, emptyDir, persistentVolumeClaim and hostPath must be given",
    ),
    ("!self.name.startsWith('sluice-')", "volumes that begin with sluice- are the operator's own"),
])))]
pub struct Volume {
    /// Its name within the pod. Those that begin with `sluice-` are the operator's own.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub name: String,
    /// The keys of a ConfigMap as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolume>,
    /// The keys of a Secret as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolume>,
    /// A directory that lives as long as the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolume>,
    /// A claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolume>,
    /// A directory or file of the node. The Pod Security level `restricted` refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathVolume>,
}

/// The keys of a ConfigMap as files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapVolume {
    /// The ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whether a pod starts without it.
    #[serde(default)]
    pub optional: bool,
}

/// The keys of a Secret as files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretVolume {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// Whether a pod starts without it.
    #[serde(default)]
    pub optional: bool,
}

/// A directory that lives as long as the pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EmptyDirVolume {
    /// On what it lies: the node's disk, or `Memory`.
    pub medium: EmptyDirMedium,
    /// How large it may become.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub size_limit: Option<IntOrString>,
}

/// On what an empty directory lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EmptyDirMedium {
    /// The node's disk.
    #[default]
    #[serde(rename = "")]
    Disk,
    /// The pod's memory.
    Memory,
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PersistentVolumeClaimVolume {
    /// The claim, in the deployment's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Whether it is mounted read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// A directory or file of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPathVolume {
    /// The absolute path.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^/"),
        extend("x-kubernetes-validations" = rules([NO_PARENT]))
    )]
    pub path: String,
    /// What must be there; the empty string checks nothing.
    #[serde(default)]
    pub r#type: HostPathType,
}

/// What must be at a path of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostPathType {
    /// Anything.
    #[default]
    #[serde(rename = "")]
    Unchecked,
    /// A directory, made if there is none.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A file, made if there is none.
    FileOrCreate,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Where the container finds a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The absolute path within the container.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^/[^:]*$"),
        extend("x-kubernetes-validations" = rules([NO_PARENT]))
    )]
    pub mount_path: String,
    /// The directory or file within the volume; the empty string is all of it.
    #[serde(default)]
    #[schemars(
        length(max = 1024),
        regex(pattern = r"^(|[^/].*)$"),
        extend("x-kubernetes-validations" = rules([NO_PARENT]))
    )]
    pub sub_path: String,
    /// Whether the container cannot write to it.
    #[serde(default)]
    pub read_only: bool,
}
