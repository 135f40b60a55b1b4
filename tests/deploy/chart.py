"""Renders the Helm chart with Helm's own engine, and compares it with what kustomize has built.

    chart.py render CHART VALUES… > MANIFESTS    fails if a value breaks the schema, or if Helm's linter has a finding
    chart.py compare KUSTOMIZE HELM              fails unless both have the same objects, but for the namespace
    chart.py reject CHART VALUES…                checks that the schema rejects wrong values

The package helm-python-sdk has Helm's Go code (v4) as a library; the program `helm` is not needed.
"""

import copy
import re
import sys

import helm_python as helm
import yaml

NAME = NAMESPACE = "handoff"
# Labels and the annotation that only Helm sets.
HELMS_OWN = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart", "checksum/settings")
# The only finding of the linter that is accepted.
ICON = "icon is recommended"
# Values that the schema must reject: where they are, and the value.
WRONG = [
    (("settings", "HANDOFF_IDV_URL"), None),
    (("settings", "HANDOFF_IDV_URL"), "idv.example.com"),
    (("settings", "HANDOFF_CONCURRENCY"), 64),
    (("settings", "HANDOFF_SHUTDOWN_GRACE"), "1m"),
    (("settings", "HANDOFF_AMQP_URL"), "amqp://guest:guest@rabbitmq"),
    (("settings", "HANDOFF_IDV_API_KEY"), "key"),
    (("settings", "concurrency"), "64"),
    (("image", "repository"), ""),
    (("image", "digest"), "sha256:1"),
    (("keda", "rabbitmq", "host"), "https://user:password@rabbitmq:15671/"),
    (("keda", "rabbitmq", "host"), "https://rabbitmq:15671"),
    (("keda", "trigger"), "cpu"),
    (("keda", "maxReplica"), 3),
    (("replicas",), 3),
    (("externalSecrets", "refreshInterval"), "0"),
    (("networkPolicy", "dnsAddresses"), ["169.254.20.10"]),
]


def merged(paths):
    values = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            merge(values, yaml.safe_load(file))
    return values


def merge(values, more):
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merge(values[key], value)
        else:
            values[key] = value


def render(path, *values):
    given = merged(values)
    with helm.Chart.load(path) as chart:
        chart.validate_schema(given)
        rendered = chart.render(given, name=NAME, namespace=NAMESPACE)
    for name, text in sorted(rendered.items()):
        if "<no value>" in text:
            print(f"{name} uses a value that does not exist", file=sys.stderr)
            return 1
        if not name.endswith(".txt"):
            print(f"---\n# {name}\n{text}")
    findings = [found for found in helm.lint(path, given, namespace=NAMESPACE)["messages"] if found["error"] != ICON]
    for found in findings:
        print(f"{found['path']}: {found['error']}", file=sys.stderr)
    return 1 if findings else 0


def reject(path, *values):
    faults = []
    with helm.Chart.load(path) as chart:
        for place, value in WRONG:
            wrong = copy.deepcopy(merged(values))
            part = wrong
            for key in place[:-1]:
                part = part.setdefault(key, {})
            part[place[-1]] = value
            if value is None:
                del part[place[-1]]
            try:
                chart.validate_schema(wrong)
            except helm.HelmError:
                continue
            faults.append(f"values.schema.json accepts {'.'.join(place)}: {value}")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(WRONG)} wrong values", file=sys.stderr)
    return 1 if faults else 0


def normal(value):
    """Without what must differ: Helm's labels and checksum, and the hash that kustomize appends to a name."""
    if isinstance(value, dict):
        kept = {key: normal(part) for key, part in value.items() if key not in HELMS_OWN}
        return {key: part for key, part in kept.items() if (key, part) != ("annotations", {})}
    if isinstance(value, list):
        return [normal(part) for part in value]
    if isinstance(value, str):
        return re.sub(rf"^{NAME}-[a-z0-9]{{10}}$", NAME, value)
    return value


def objects(path):
    with open(path, encoding="utf-8") as file:
        found = [normal(manifest) for manifest in yaml.safe_load_all(file) if manifest]
    return {f"{manifest['kind']} {manifest['metadata']['name']}": manifest for manifest in found}


def differences(left, right, path):
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            if key not in left or key not in right:
                yield f"{path}.{key}: only {'Helm' if key in right else 'kustomize'} has it"
            else:
                yield from differences(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right)):
            yield from differences(*pair, f"{path}[{index}]")
    elif left != right:
        yield f"{path}: {left!r} in kustomize, {right!r} in Helm"


def compare(kustomize, chart):
    left, right = objects(kustomize), objects(chart)
    # Helm needs the namespace before it installs the chart.
    del left[f"Namespace {NAMESPACE}"]
    faults = list(differences(left, right, ""))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(left)} objects of kustomize, {len(right)} of Helm", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit({"render": render, "compare": compare, "reject": reject}[sys.argv[1]](*sys.argv[2:]))
