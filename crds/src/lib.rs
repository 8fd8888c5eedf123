//! The API types of group `sluice.dev`, and their CustomResourceDefinitions.
//!
//! The rules that can be checked without knowing the model are in the definitions themselves (bounds and CEL), so no
//! webhook is needed; what depends on the model is a condition of the status.

mod crd;
mod deployment;
mod gateway;
mod model;
mod placement;
mod role;
mod scheduler;
mod status;

pub use crd::{GROUP, all, file_name, to_yaml};
pub use deployment::{Layout, MoEDeployment, MoEDeploymentSpec};
pub use gateway::{Gateway, GatewayLimits, SecretName};
pub use model::{
    Dtype, HostPathSource, HuggingFaceSource, ImagePullPolicy, ImageSource, Model, ModelSource, SecretKey,
    VolumeClaimSource,
};
pub use placement::{Pin, Placement, PlacementPolicy};
pub use role::{
    AttentionRole, EnvVar, ExpertRole, HybridRole, PodSettings, Resources, Toleration, TolerationEffect,
    TolerationOperator,
};
pub use scheduler::{Scheduler, SchedulerPolicy};
pub use status::{Counts, MoEDeploymentStatus, PressureSummary};
