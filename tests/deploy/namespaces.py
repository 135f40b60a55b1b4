"""Makes unit tests in which the alert must fire for one namespace while another is healthy, or has the same fault.

    namespaces.py ALERTS ALERTS_TEST > TEST    TEST is for `promtool test rules`

From each unit test of one namespace it makes two: one with busy, healthy workers in another namespace, which must
neither hide nor change the alert, and one with the same fault in both namespaces, where each must have its alert.
"""

import pathlib
import re
import sys

import yaml

FAULTY, OTHER = "acme", "globex"
BUSY = "0+100000x{n}"
# Metrics of workers that do a hundred times the work of those in the tests, without a fault.
HEALTHY = {
    "up": "1x{n}",
    "process_start_time_seconds": "100x{n}",
    "handoff_in_flight": "50x{n}",
    "handoff_platform_paused": "0x{n}",
    "handoff_broker_connected": "1x{n}",
    "handoff_broker_reconnects_total": "0x{n}",
    "handoff_cache_errors_total": "0x{n}",
    "handoff_retry_queues_stuck": "0x{n}",
    "handoff_retry_late_seconds_count": BUSY,
    'handoff_retry_late_seconds_bucket{le="60.0"}': BUSY,
    'handoff_queue_consumers{queue="request"}': "9x{n}",
    'handoff_queue_messages{queue="request"}': "0x{n}",
    'handoff_queue_messages{queue="ended"}': "0x{n}",
    'handoff_queue_messages{queue="dead"}': "0x{n}",
    'rabbitmq_detailed_queue_consumers{vhost="/", queue="verification.requested"}': "9x{n}",
    'rabbitmq_detailed_queue_messages{vhost="/", queue="verification.requested.retry.1m"}': "9x{n}",
    'rabbitmq_detailed_queue_messages_ready{vhost="/", queue="verification.requested.retry.1m"}': "9x{n}",
    "rabbitmq_alarms_memory_used_watermark": "0x{n}",
    "rabbitmq_alarms_free_disk_space_watermark": "0x{n}",
    'handoff_requests_total{outcome="ready"}': BUSY,
    'handoff_requests_total{outcome="failed"}': "0x{n}",
    'handoff_requests_total{outcome="retried"}': "0x{n}",
    'handoff_publishes_total{kind="ready", outcome="confirmed"}': BUSY,
    'handoff_publishes_total{kind="ready", outcome="unroutable"}': "0x{n}",
    **{f'handoff_platform_calls_total{{call="{call}", outcome="ok"}}': BUSY for call in ("token", "session")},
    **{f'handoff_request_duration_seconds_bucket{{le="{le}"}}': BUSY for le in ("2.5", "10", "60", "+Inf")},
    **{f'handoff_end_to_end_seconds_bucket{{le="{le}"}}': BUSY for le in ("10", "60", "300", "+Inf")},
    **{
        f'handoff_platform_call_duration_seconds_bucket{{call="token", le="{le}"}}': BUSY
        for le in ("2.5", "10", "60", "+Inf")
    },
}


def labelled(series, labels):
    name, _, rest = series.partition("{")
    given = rest.rstrip("}")
    return f"{name}{{{', '.join(filter(None, [given, labels]))}}}"


def healthy(samples):
    for series, values in HEALTHY.items():
        job = "rabbitmq" if series.startswith("rabbitmq") else "handoff"
        labels = f'job="{job}", namespace="{OTHER}", instance="z:9464", pod="z"'
        yield {"series": labelled(series, labels), "values": values.format(n=samples)}


def in_namespace(test, namespace):
    return [
        {"series": labelled(given["series"], f'namespace="{namespace}", pod="{namespace}-1"'), "values": given["values"]}
        for given in test["input_series"]
    ]


def alerts_in(case, namespace):
    for alert in case["exp_alerts"]:
        annotations = dict(alert["exp_annotations"])
        if case["alertname"] == "HandoffNoWorker":
            annotations["summary"] += f" in the namespace {namespace}"
            yield {"exp_labels": {"severity": "critical", "namespace": namespace}, "exp_annotations": annotations}
        else:
            labels = {**alert["exp_labels"], "namespace": namespace}
            if "instance" in labels:  # an alert for each worker
                labels["pod"] = f"{namespace}-1"
            yield {"exp_labels": labels, "exp_annotations": annotations}


def variants(test):
    cases = test["alert_rule_test"]
    for name, series, namespaces in (
        ("and another namespace is healthy", list(healthy(120)), [FAULTY]),
        ("and so in another namespace", in_namespace(test, OTHER), [FAULTY, OTHER]),
    ):
        yield {
            "name": f"{test['name']}, {name}",
            "interval": test["interval"],
            "input_series": in_namespace(test, FAULTY) + series,
            "alert_rule_test": [
                {**case, "exp_alerts": [alert for namespace in namespaces for alert in alerts_in(case, namespace)]}
                for case in cases
            ],
        }


def main(alerts_path, test_path):
    with open(test_path, encoding="utf-8") as file:
        tests = yaml.safe_load(file)["tests"]
    # Tests that name namespaces themselves, and the one without any worker, stay as they are.
    tests = [test for test in tests if not re.search("namespace=|knows of no worker", str(test))]
    made = [variant for test in tests for variant in variants(test)]
    yaml.safe_dump(
        {"rule_files": [str(pathlib.Path(alerts_path).resolve())], "evaluation_interval": "1m", "tests": made},
        sys.stdout, sort_keys=False,
    )
    print(f"{len(made)} tests with two namespaces", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
