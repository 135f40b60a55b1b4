"""Checks manifests that kustomize has built: against their schemas, and for consistency.

    manifests.py REFERENCE ALERTS DASHBOARD [managed] [openshift] [helm] < MANIFESTS

REFERENCE is the folder docs/reference; `managed` says that RabbitMQ and Redis are outside of the cluster, `openshift`
that the manifests are for OpenShift, and `helm` that the namespace is made elsewhere.

kubernetes-validate checks the built-in kinds; models generated from the resource definitions check those
of KEDA and the Prometheus operator. A key that is not in the schema is a fault.
"""

import pathlib
import re
import sys
import urllib.parse

import kubernetes_validate
import yaml
from cloudcoil.models import keda, prometheus_operator

import network

MODELS = {
    "ScaledObject": keda.v1alpha1.ScaledObject,
    "TriggerAuthentication": keda.v1alpha1.TriggerAuthentication,
    "ServiceMonitor": prometheus_operator.v1.ServiceMonitor,
    "PrometheusRule": prometheus_operator.v1.PrometheusRule,
}
# Keys that are newer than the models, with their values: `behavior` is of KEDA 2.17. Newer models need Python 3.14.
NEWER = {".spec.fallback.behavior": {"static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"}}
KUBERNETES = "1.30"  # the oldest supported version; later ones accept the same keys


def dropped(given, kept, path=""):
    """Yields the path of each key that the model has dropped because it is unknown."""
    if isinstance(given, dict):
        for key, value in given.items():
            if isinstance(value, str) and value in NEWER.get(f"{path}.{key}", ()):
                continue
            if not isinstance(kept, dict) or key not in kept:
                yield f"{path}.{key}"
            else:
                yield from dropped(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for index, value in enumerate(given):
            yield from dropped(value, kept[index], f"{path}[{index}]")


def by_schema(manifest):
    if manifest["kind"] == "ExternalSecret":  # by external-secrets/check.mjs
        return
    model = MODELS.get(manifest["kind"])
    if not model:
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
    for path in dropped(manifest, kept):
        yield f"{path} is not in the definition"


def seconds(duration):
    number, unit = duration.rstrip("hms"), duration.lstrip("0123456789")
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def deployment(manifests, reference, kind_of):
    """Yields whether the Deployment fits its settings and the other manifests, and the fault if not."""
    found = manifests["Deployment"]
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    labels = found["spec"]["template"]["metadata"]["labels"]
    settings = manifests["ConfigMap"]["data"]
    files = {variable["name"]: variable["value"] for variable in container["env"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}

    grace, limit = seconds(settings["HANDOFF_SHUTDOWN_GRACE"]), pod["terminationGracePeriodSeconds"]
    yield limit >= grace + 5, f"terminationGracePeriodSeconds {limit} must be at least 5 above HANDOFF_SHUTDOWN_GRACE ({grace} s)"
    (port,) = container["ports"]
    yield settings["HANDOFF_HTTP_ADDR"] == f"[::]:{port['containerPort']}", "HANDOFF_HTTP_ADDR must listen on the port of the probes"
    yield manifests["ConfigMap"]["metadata"]["name"] == container["envFrom"][0]["configMapRef"]["name"], "envFrom must name the ConfigMap"
    yield pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "seccompProfile must be RuntimeDefault"
    yield pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"], "the pod must not run as root or mount a service account token"
    security = container["securityContext"]
    yield security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], "the container must not be able to write files or gain privileges"
    yield security["capabilities"] == {"drop": ["ALL"]}, "the container must drop all capabilities"
    for probe, path in (("livenessProbe", "/livez"), ("startupProbe", "/livez"), ("readinessProbe", "/readyz")):
        yield container[probe]["httpGet"]["path"] == path, f"{probe} must use {path}: with another path, an outage restarts pods"
    for bound in ("requests", "limits"):
        yield {"memory", "ephemeral-storage"} <= container["resources"][bound].keys(), f"the container must have {bound} of memory and ephemeral-storage"
    for name in [*settings, *(name.removesuffix("_FILE") for name in files)]:
        yield f"`{name}`" in reference, f"{name} is not a documented setting"
    for name, path in files.items():
        mount = mounts.get(path.rpartition("/")[0])
        yield name.endswith("_FILE") and mount and "subPath" not in mount, f"{name} must be in a mounted directory, without subPath"
    for volume in pod["volumes"]:
        yield "secret" in volume, f"the volume {volume['name']} must be a secret"

    def selects(selector):
        return selector.items() <= labels.items() and selector
    yield selects(found["spec"]["selector"]["matchLabels"]), "the Deployment does not select its pods"
    yield selects(manifests["Service"]["spec"]["selector"]), "the Service does not select the pods"
    yield selects(manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]), "the NetworkPolicy does not select the pods"
    yield selects(manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]), "the PodDisruptionBudget does not select the pods"
    for spread in pod["topologySpreadConstraints"]:
        yield selects(spread["labelSelector"]["matchLabels"]), "topologySpreadConstraints does not select the pods"
        yield spread.get("matchLabelKeys") == ["pod-template-hash"], "topologySpreadConstraints must count the pods of one revision"
    fixed = {"runAsUser", "runAsGroup", "fsGroup"} & pod["securityContext"].keys()
    yield not fixed or "openshift" not in kind_of, f"OpenShift refuses a fixed {', '.join(sorted(fixed))}"
    yield from network.checks(manifests["NetworkPolicy"], {port["name"]: port["containerPort"]}, kind_of)


def namespace(manifests):
    """As `deployment`, for the namespace of an overlay."""
    found = manifests["Namespace"]["metadata"]
    for mode in ("enforce", "warn", "audit"):
        yield found["labels"].get(f"pod-security.kubernetes.io/{mode}") == "restricted", f"the namespace must {mode} the Pod Security Standard restricted"
    for manifest in manifests.values():
        if manifest["kind"] != "Namespace":
            yield manifest["metadata"].get("namespace") == found["name"], f"the {manifest['kind']} is in another namespace"


def operators(manifests, reference):
    """As `deployment`, for the resources of KEDA and the Prometheus operator."""
    service, monitor = manifests["Service"], manifests["ServiceMonitor"]
    yield monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items(), "the ServiceMonitor does not select the Service"
    yield service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "handoff", 'the alerts need job="handoff"'
    (endpoint,), (port,) = monitor["spec"]["endpoints"], service["spec"]["ports"]
    yield endpoint["port"] == port["name"], "the ServiceMonitor uses another port than the Service"
    scaled = manifests["ScaledObject"]
    found, (trigger,) = manifests["Deployment"], scaled["spec"]["triggers"]
    yield scaled["spec"]["scaleTargetRef"]["name"] == found["metadata"]["name"], "the ScaledObject does not target the Deployment"
    yield "replicas" not in found["spec"], "KEDA and the Deployment both set the number of replicas"
    metadata, settings = trigger["metadata"], manifests["ConfigMap"]["data"]
    if trigger["type"] == "prometheus":
        yield "TriggerAuthentication" not in manifests, "the TriggerAuthentication is not used"
        for name in set(re.findall(r"handoff_\w+", metadata["query"])):
            yield f"`{name}`" in reference, f"KEDA queries {name}, which is not a documented metric"
        namespaces = re.findall(r'namespace="([^"]*)"', metadata["query"])
        yield set(namespaces) == {found["metadata"]["namespace"]}, "KEDA must query the namespace of the workers"
        yield len(namespaces) == metadata["query"].count("{"), "KEDA must query the namespace of the workers in each selector"
        yield metadata["ignoreNullValues"] == "false", "KEDA must not take missing metrics for an empty queue"
        value = metadata["threshold"]
    else:
        authentication = manifests["TriggerAuthentication"]
        yield trigger["authenticationRef"]["name"] == authentication["metadata"]["name"], "the ScaledObject does not use the TriggerAuthentication"
        yield (metadata["protocol"], metadata["excludeUnacknowledged"]) == ("http", "false"), "KEDA must count unacked messages, through the management API"
        yield metadata["queueName"] == settings.get("HANDOFF_QUEUE", "verification.requested"), "KEDA must use the queue of HANDOFF_QUEUE"
        secret = {target["parameter"] for target in authentication["spec"]["secretTargetRef"]}
        yield {"username", "password"} <= secret, "KEDA must get user and password as parameters of their own"
        host = urllib.parse.urlsplit(metadata.get("host", ""))
        yield host.scheme == "https" and "host" not in secret, "KEDA's host must be in the ScaledObject, and an https URL"
        yield "@" not in host.netloc, "KEDA's host must have no user and password"
        yield host.path == "/" and metadata.get("vhostName"), "KEDA's host must end with a slash, and vhostName name the virtual host"
        value = metadata["value"]
    yield value == settings["HANDOFF_CONCURRENCY"], "KEDA's value must be HANDOFF_CONCURRENCY"
    yield "maxReplicaCount" in scaled["spec"], "the ScaledObject must limit the replicas in an outage"
    yield scaled["spec"]["fallback"].get("behavior") == "currentReplicasIfHigher", "KEDA must not remove replicas while it cannot query: fallback.behavior"


def monitoring(manifests, alerts, dashboard):
    """As `deployment`, for the copies of the alerts and the dashboard."""
    yield manifests["PrometheusRule"]["spec"] == alerts, "the PrometheusRule differs from the alerts"
    yield "grafana_dashboard" in manifests["dashboard"]["metadata"]["labels"], "Grafana's sidecar does not find the dashboard"
    yield list(manifests["dashboard"]["data"].values()) == [dashboard], "the ConfigMap differs from the dashboard"


def external_secrets(manifests):
    """As `deployment`, for the secrets that the External Secrets operator makes."""
    made = {}
    for name, manifest in manifests.items():
        if manifest["kind"] == "ExternalSecret":
            spec = manifest["spec"]
            yield spec["refreshInterval"] != "0", f"{name} must be refreshed, or a rotated secret never arrives"
            yield spec["target"]["deletionPolicy"] == "Retain", f"{name} must keep its secret while the vault has no value"
            made[spec["target"]["name"]] = {entry["secretKey"] for entry in spec["data"]}
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    wanted = {}
    for volume in pod["volumes"]:
        paths = [variable["value"].rpartition("/") for variable in container["env"]]
        wanted[volume["secret"]["secretName"]] = {file for folder, _, file in paths if folder == folders[volume["name"]]}
    for target in manifests["TriggerAuthentication"]["spec"]["secretTargetRef"]:
        wanted.setdefault(target["name"], set()).add(target["key"])
    wanted = {name: keys for name, keys in wanted.items() if keys}
    yield made == wanted, f"the ExternalSecrets make {made}, but the manifests use {wanted}"


def kind(manifest):
    """The kind, but for the second ConfigMap and the ExternalSecrets, which are several."""
    if manifest["kind"] == "ExternalSecret":
        return f"{manifest['kind']} {manifest['metadata']['name']}"
    if manifest["metadata"]["name"].endswith("-dashboard"):
        return "dashboard"
    return manifest["kind"]


def main(reference_path, alerts_path, dashboard_path, *kind_of):
    pages = ("settings.md", "metrics-and-logs.md")
    reference = "".join((pathlib.Path(reference_path) / page).read_text(encoding="utf-8") for page in pages)
    with open(alerts_path, encoding="utf-8") as file:
        alerts = yaml.safe_load(file)
    with open(dashboard_path, encoding="utf-8") as file:
        dashboard = file.read()
    manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]

    faults = []
    for manifest in manifests:
        faults += [f"{manifest['kind']} {fault}" for fault in by_schema(manifest)]
    kinds = {kind(manifest): manifest for manifest in manifests}
    checks = []
    try:
        checks += deployment(kinds, reference, kind_of)
        if "ScaledObject" in kinds:
            if "helm" not in kind_of:
                checks += namespace(kinds)
            checks += operators(kinds, reference)
            checks += monitoring(kinds, alerts, dashboard)
        if any(manifest["kind"] == "ExternalSecret" for manifest in manifests):
            checks += external_secrets(kinds)
    except KeyError as missing:
        faults.append(f"{missing} is missing")
    faults += [fault for holds, fault in checks if not holds]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(manifests)} manifests: {', '.join(kinds)}; {len(checks)} rules", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
