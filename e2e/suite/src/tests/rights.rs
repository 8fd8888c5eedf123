//! With `watchNamespaces`, the operator has no right outside them: asked of the API server, not of the chart.

use crate::install;
use crate::objects::Space;
use anyhow::ensure;

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    let (tools, own) = (&space.world.tools, space.namespace.as_str());
    let watched = format!("watchNamespaces={{{own}}}");
    let flags = ["install", "rights", "charts/sluice", "--namespace", own, "--set", &watched];
    // Its roles are what is looked at; another operator runs already, and has the CRDs.
    let rest = ["--set", "replicas=0,crds.install=false,rbac.aggregate=false"];
    tools.helm(flags).args(rest).args(install::values(space.world)).text().await?;
    let wrong = answers(space).await;
    tools.helm(["uninstall", "rights", "--namespace", own, "--wait"]).text().await?;
    let wrong = wrong?;
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

async fn answers(space: &Space<'_>) -> anyhow::Result<Vec<String>> {
    let own = space.namespace.as_str();
    let who = format!("--as=system:serviceaccount:{own}:rights");
    let mut wrong = Vec::new();
    for (verb, resource, namespace, expected) in [
        ("get", "secrets", own, true),
        ("create", "pods", own, true),
        ("patch", "moedeployments.sluice.dev/status", own, true),
        ("create", "roles.rbac.authorization.k8s.io", own, true),
        ("update", "leases.coordination.k8s.io", own, true),
        ("get", "secrets", "kube-system", false),
        ("list", "secrets", "default", false),
        ("list", "secrets", install::NAMESPACE, false),
        ("watch", "moedeployments.sluice.dev", "default", false),
        ("create", "pods", "default", false),
        // Not even at home.
        ("bind", "roles.rbac.authorization.k8s.io", own, false),
        ("escalate", "roles.rbac.authorization.k8s.io", own, false),
        ("impersonate", "serviceaccounts", own, false),
        ("create", "pods/exec", own, false),
        ("create", "serviceaccounts/token", own, false),
        ("get", "configmaps", own, false),
    ] {
        // kubectl takes what follows a slash for a name.
        let (kind, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let sub = format!("--subresource={sub}");
        let ask = ["auth", "can-i", verb, kind, &sub, "--namespace", namespace, &who];
        let said = space.world.tools.kubectl(ask).output().await?;
        // It fails for "no", too.
        let may = said.stdout.trim() == "yes";
        if may != expected {
            wrong.push(format!("may {verb} {resource} in {namespace}: {may} {}", said.stderr.trim()));
        }
    }
    Ok(wrong)
}
