"""Makes a unit test of KEDA's query on Prometheus, from the ScaledObject that kustomize has built.

    keda_query.py < MANIFESTS > TEST    TEST is for `promtool test rules`

Each replica reports the same queue, each has requests of its own, and another namespace has a long queue.
"""

import sys

import yaml


def series(name, namespace, pod, value, queue=None):
    labels = {"job": "handoff", "namespace": namespace, "pod": pod, "instance": f"{pod}:9464"}
    if queue:
        labels["queue"] = queue
    written = ", ".join(f'{key}="{text}"' for key, text in labels.items())
    return {"series": f"{name}{{{written}}}", "values": value}


def main():
    found = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest}
    scaled = found["ScaledObject"]
    namespace = scaled["metadata"]["namespace"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    others = [
        series("handoff_queue_messages", "globex", "x", "9000x5", "request"),
        series("handoff_in_flight", "globex", "x", "64x5"),
    ]
    own = [
        *(series("handoff_queue_messages", namespace, pod, "100x5", "request") for pod in "ab"),
        *(series("handoff_queue_messages", namespace, pod, "7x5", "retry") for pod in "ab"),
        series("handoff_in_flight", namespace, "a", "10x5"),
        series("handoff_in_flight", namespace, "b", "20x5"),
    ]
    # Not connected: the worker reports no queue.
    lost = [series("handoff_in_flight", namespace, "a", "10x5")]
    tests = [
        ("KEDA counts each request of its namespace once", own + others, [{"labels": "{}", "value": 130}]),
        ("KEDA gets no value while no worker is connected", lost + others, []),
    ]
    yaml.safe_dump({"tests": [
        {"name": name, "interval": "1m", "input_series": given, "promql_expr_test": [{"expr": query, "eval_time": "2m", "exp_samples": expected}]}
        for name, given, expected in tests
    ]}, sys.stdout, sort_keys=False)


if __name__ == "__main__":
    main()
