//! The controller: a `MoEDeployment` becomes pods, a placement of experts, and a gateway that serves.
//!
//! A reconcile is read top to bottom in [`reconcile`]: observe ([`stores`], [`pressure`]), decide ([`pods`], [`placing`]:
//! pure), build ([`build`]: pure), apply ([`apply`]), and say ([`status`]: pure).

pub mod admin;
pub mod apply;
pub mod authority;
pub mod build;
pub mod certificates;
pub mod context;
pub mod finalize;
pub mod keyring;
pub mod leader;
pub mod local;
pub mod names;
pub mod placement;
pub mod placing;
pub mod pods;
pub mod pressure;
pub mod reconcile;
pub mod release;
pub mod roles;
pub mod run;
pub mod status;
pub mod stores;
pub mod workers;
