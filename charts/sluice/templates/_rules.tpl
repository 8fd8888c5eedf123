{{- /*
What the operator does where it serves MoEDeployments. It holds what it grants to agents (get, list and watch of
expertplacements), so it needs neither `bind` nor `escalate`. `create` and `patch` together are server-side apply.
*/}}
{{- define "sluice.rules" -}}
- apiGroups: [sluice.dev]
  resources: [moedeployments, moeautoscalingpolicies]
  verbs: [get, list, watch, patch, update]
- apiGroups: [sluice.dev]
  resources: [rolescalers, expertplacements]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [sluice.dev]
  resources: [moedeployments/status, moeautoscalingpolicies/status, rolescalers/status, expertplacements/status]
  verbs: [get, patch, update]
# Owners whose deletion waits for what they own.
- apiGroups: [sluice.dev]
  resources: [moedeployments/finalizers, rolescalers/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods, services, secrets, serviceaccounts]
  verbs: [get, list, watch, create, patch, update, delete]
# The readiness gate.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [get, patch, update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
