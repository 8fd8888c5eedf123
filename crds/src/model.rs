//! Which model, and where its files are.

use crate::schemas::{NO_PARENT, rules};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The model. It cannot be changed: another model is another deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Where the model directory (config.json, safetensors, tokenizer.json) comes from. Exactly one source.
    pub source: ModelSource,
    /// The type of the weights in memory. `Checkpoint` keeps the files' own. It decides bits, so it cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("dtype is immutable"))]
    pub dtype: Dtype,
    /// The name clients use in requests. Without it, the name of the deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub served_name: Option<String>,
}

/// The type of the weights in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Dtype {
    /// As in the files.
    #[default]
    Checkpoint,
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

/// Where a model directory comes from: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
"(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) + (has(self.image) ? 1 : 0) + (has(self.huggingFace) ? 1 : 0) == 1"
    ).message("exactly one of persistentVolumeClaim, hostPath, image and huggingFace must be given"),
    validation = Rule::new(
        "has(self.persistentVolumeClaim) == has(oldSelf.persistentVolumeClaim) && has(self.hostPath) == has(oldSelf.hostPath) && has(self.image) == has(oldSelf.image)"
    ).message("the model source is immutable")
)]
pub struct ModelSource {
    /// A claim that holds the model directory; it is mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the model source is immutable"))]
    pub persistent_volume_claim: Option<VolumeClaimSource>,
    /// A directory of the nodes; it is mounted read-only. The Pod Security level `restricted` refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the model source is immutable"))]
    pub host_path: Option<HostPathSource>,
    /// An OCI image, mounted as a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A repository of the Hugging Face hub. Every pod downloads what it needs of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeClaimSource {
    /// The claim, in the deployment's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// The model directory within the volume; the empty string is its root.
    #[serde(default)]
    #[schemars(
        length(max = 1024),
        regex(pattern = r"^(|[^/].*)$"),
        extend("x-kubernetes-validations" = rules([NO_PARENT]))
    )]
    pub path: String,
}

/// A directory of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPathSource {
    /// The absolute path, the same on every node.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^/"),
        extend("x-kubernetes-validations" = rules([NO_PARENT]))
    )]
    pub path: String,
}

/// An OCI image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    /// The image, best with a digest.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the model source is immutable"))]
    pub reference: String,
    /// When nodes pull it: if they lack it, at every start, or never.
    #[serde(default)]
    pub pull_policy: ImagePullPolicy,
    /// The model directory within the image; the empty string is its root.
    #[serde(default)]
    #[schemars(length(max = 1024), regex(pattern = r"^(|[^/].*)$"))]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("the model source is immutable"),
        validation = Rule::new(NO_PARENT.0).message(NO_PARENT.1)
    )]
    pub path: String,
}

/// When nodes pull an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// If a node lacks it.
    #[default]
    IfNotPresent,
    /// At every start.
    Always,
    /// Never: it must be there.
    Never,
}

/// A repository of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HuggingFaceSource {
    /// `owner/name`.
    #[schemars(length(min = 3, max = 200), regex(pattern = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the model source is immutable"))]
    pub repository: String,
    /// A branch, a tag, or best a commit.
    #[serde(default = "main")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the model source is immutable"))]
    pub revision: String,
    /// The hub, or a mirror that speaks its protocol.
    #[serde(default = "hub")]
    #[schemars(length(min = 8, max = 512), regex(pattern = r"^https?://[^/?#\s]+[^?#\s]*$"))]
    pub endpoint: String,
    /// A token for gated and private repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<SecretKey>,
    /// Where files are kept for later pods. Without it, every pod downloads them anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ModelCache>,
}

fn hub() -> String {
    "https://huggingface.co".into()
}

fn main() -> String {
    "main".into()
}

/// Where downloaded files are kept: exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules([(
    "has(self.hostPath) != has(self.persistentVolumeClaim)",
    "exactly one of hostPath and persistentVolumeClaim must be given",
)])))]
pub struct ModelCache {
    /// A directory of each node, made if there is none. The Pod Security level `restricted` refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathSource>,
    /// A claim that all pods can write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaimSource>,
}

/// One key of a Secret in the deployment's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key within it.
    #[serde(default = "token")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn token() -> String {
    "token".into()
}
