//! The API types of group `sluice.dev`, their CustomResourceDefinitions, and the reference made from these.
//!
//! The rules that can be checked without knowing the model are in the definitions themselves (bounds and CEL), so no
//! webhook is needed; what depends on the model is a condition of the status.

mod autoscaling;
mod batching;
mod crd;
mod deployment;
mod devices;
mod expert_placement;
mod gateway;
mod model;
mod placement;
mod pod;
mod reference;
mod role;
mod role_scaler;
mod scheduler;
mod schemas;
mod status;
mod update;

pub use autoscaling::{
    Behavior, ExpertBounds, ExpertReplicas, Metric, MetricType, MetricValue, MoEAutoscalingPolicy,
    MoEAutoscalingPolicySpec, MoEAutoscalingPolicyStatus, RatioBounds, RoleScaling, RoleScalingStatus,
    ScaleDown, ScaleUp, ScalingPolicy, ScalingPolicyType, SelectPolicy,
};
pub use batching::{Batching, KvCache};
pub use crd::{GROUP, all, file_name, to_yaml};
pub use deployment::{Layout, MoEDeployment, MoEDeploymentSpec};
pub use devices::{DeviceClaim, Devices};
pub use expert_placement::{
    ExpertPlacement, ExpertPlacementSpec, ExpertPlacementStatus, PlacedUnit, PlacedWorker, UnitState,
};
pub use gateway::{Gateway, GatewayLimits, GatewayService, SecretName, ServiceType};
pub use model::{
    Dtype, HostPathSource, HuggingFaceSource, ImagePullPolicy, ImageSource, Model, ModelCache, ModelSource,
    SecretKey, VolumeClaimSource,
};
pub use placement::{Pin, Placement, PlacementPolicy};
pub use pod::{
    Affinity, ConfigMapVolume, EmptyDirMedium, EmptyDirVolume, EnvSource, EnvVar, FieldRef, HostPathType,
    HostPathVolume, KeyRef, LabelOperator, LabelRequirement, LabelSelector, NodeAffinity, NodeOperator,
    NodeRequirement, NodeSelector, NodeSelectorTerm, PersistentVolumeClaimVolume, PodAffinity,
    PodAffinityTerm, PodSettings, PreferredNodes, Resources, SecretVolume, Toleration, TolerationEffect,
    TolerationOperator, Volume, VolumeMount, WeightedPodAffinityTerm,
};
pub use reference::reference;
pub use role::{AttentionRole, ExpertRole, HybridRole, Role};
pub use role_scaler::{PodPhase, PodRecord, RoleScaler, RoleScalerSpec, RoleScalerStatus};
pub use scheduler::{Scheduler, SchedulerPolicy};
pub use status::{Cohort, CohortState, Counts, MoEDeploymentStatus, PressureSummary};
pub use update::UpdateStrategy;
