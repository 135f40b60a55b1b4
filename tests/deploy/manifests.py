"""Checks manifests that kustomize has built: against the schemas, and what must hold between them.

    manifests.py REFERENCE ALERTS < MANIFESTS

Kubernetes' own kinds are checked by kubernetes-validate, those of KEDA and the Prometheus operator by
models made of their definitions. A key that no schema knows is a fault.
"""

import sys

import kubernetes_validate
import yaml
from cloudcoil.models import keda, prometheus_operator

MODELS = {
    "ScaledObject": keda.v1alpha1.ScaledObject,
    "TriggerAuthentication": keda.v1alpha1.TriggerAuthentication,
    "ServiceMonitor": prometheus_operator.v1.ServiceMonitor,
    "PrometheusRule": prometheus_operator.v1.PrometheusRule,
}
KUBERNETES = "1.30"  # the oldest that is checked; what it knows, later ones know


def lost(given, kept, path=""):
    """What a model has dropped, since it does not know it."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{path}.{key}"
            else:
                yield from lost(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for index, value in enumerate(given):
            yield from lost(value, kept[index], f"{path}[{index}]")


def by_schema(manifest):
    model = MODELS.get(manifest["kind"])
    if model is None:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
        return
    try:
        kept = model.model_validate(manifest).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValueError as error:
        yield str(error)
        return
    for path in lost(manifest, kept):
        yield f"{path} is not in the definition"


def seconds(duration):
    number, unit = duration.rstrip("hms"), duration.lstrip("0123456789")
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def deployment(manifests, reference):
    """What must hold between the Deployment, its settings and what points at it."""
    found = manifests["Deployment"]
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    labels = found["spec"]["template"]["metadata"]["labels"]
    settings = manifests["ConfigMap"]["data"]
    files = {variable["name"]: variable["value"] for variable in container["env"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}

    grace, limit = seconds(settings["HANDOFF_SHUTDOWN_GRACE"]), pod["terminationGracePeriodSeconds"]
    yield limit >= grace + 5, f"terminationGracePeriodSeconds {limit} is not 5 above the grace of {grace} s"
    (port,) = container["ports"]
    yield settings["HANDOFF_HTTP_ADDR"] == f"0.0.0.0:{port['containerPort']}", "probes cannot reach HANDOFF_HTTP_ADDR"
    yield manifests["ConfigMap"]["metadata"]["name"] == container["envFrom"][0]["configMapRef"]["name"], "other settings"
    yield pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "no seccomp"
    yield pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"], "more rights than needed"
    security = container["securityContext"]
    yield security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], "a container that can write"
    yield security["capabilities"] == {"drop": ["ALL"]}, "capabilities are left"
    for probe, path in (("livenessProbe", "/livez"), ("startupProbe", "/livez"), ("readinessProbe", "/readyz")):
        yield container[probe]["httpGet"]["path"] == path, f"{probe} must ask {path}, or an outage kills pods"
    yield container["resources"].keys() >= {"requests", "limits"}, "no resources"
    for name in [*settings, *(name.removesuffix("_FILE") for name in files)]:
        yield f"`{name}`" in reference, f"{name} is not a setting"
    for name, path in files.items():
        mount = mounts.get(path.rpartition("/")[0])
        yield name.endswith("_FILE") and mount and "subPath" not in mount, f"{name} is not in a directory that is mounted"
    for volume in pod["volumes"]:
        yield "secret" in volume, f"the volume {volume['name']} is not a secret"

    def selects(selector):
        return selector.items() <= labels.items() and selector
    yield selects(found["spec"]["selector"]["matchLabels"]), "the Deployment does not select its pods"
    yield selects(manifests["Service"]["spec"]["selector"]), "the Service selects other pods"
    yield selects(manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]), "the NetworkPolicy selects other pods"
    yield selects(manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]), "the PodDisruptionBudget selects other pods"
    for spread in pod["topologySpreadConstraints"]:
        yield selects(spread["labelSelector"]["matchLabels"]), "other pods are spread"


def operators(manifests):
    """The same for what KEDA and the Prometheus operator take."""
    service, monitor = manifests["Service"], manifests["ServiceMonitor"]
    yield monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items(), "no Service to monitor"
    yield service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "handoff", 'alerts are about job="handoff"'
    (endpoint,), (port,) = monitor["spec"]["endpoints"], service["spec"]["ports"]
    yield endpoint["port"] == port["name"], "the ServiceMonitor asks another port"
    scaled, authentication = manifests["ScaledObject"], manifests["TriggerAuthentication"]
    found, (trigger,) = manifests["Deployment"], scaled["spec"]["triggers"]
    yield scaled["spec"]["scaleTargetRef"]["name"] == found["metadata"]["name"], "KEDA scales something else"
    yield "replicas" not in found["spec"], "KEDA and the Deployment both set the number of replicas"
    yield trigger["authenticationRef"]["name"] == authentication["metadata"]["name"], "KEDA has no address"
    metadata = trigger["metadata"]
    yield (metadata["protocol"], metadata["excludeUnacknowledged"]) == ("http", "false"), "unacked ones are not counted"
    settings = manifests["ConfigMap"]["data"]
    yield metadata["queueName"] == settings.get("HANDOFF_QUEUE", "verification.requested"), "KEDA looks at another queue"
    yield metadata["value"] == settings["HANDOFF_CONCURRENCY"], "KEDA's value is not HANDOFF_CONCURRENCY"
    yield {"maxReplicaCount", "fallback"} <= scaled["spec"].keys(), "nothing bounds the replicas in an outage"


def main(reference_path, alerts_path):
    with open(reference_path, encoding="utf-8") as file:
        reference = file.read()
    with open(alerts_path, encoding="utf-8") as file:
        alerts = yaml.safe_load(file)
    manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "handoff"}, "spec": alerts}

    faults = []
    for manifest in [*manifests, rule]:
        faults += [f"{manifest['kind']} {fault}" for fault in by_schema(manifest)]
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    checks = []
    try:
        checks += deployment(kinds, reference)
        if "ScaledObject" in kinds:
            checks += operators(kinds)
    except KeyError as missing:
        faults.append(f"{missing} is missing")
    faults += [fault for holds, fault in checks if not holds]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(manifests)} manifests: {', '.join(kinds)}; {len(checks)} rules", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
