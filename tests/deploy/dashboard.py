"""Runs all queries of the dashboard on a Prometheus that has scraped a real worker.

    dashboard.py PROMETHEUS_URL DASHBOARD ALERTS REFERENCE

Fails if a query fails or returns no data, or if a metric of an alert does not exist. Needs only Python.
"""

import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# Queries that may return no data, by a part of their text, with the reason.
MAY_BE_EMPTY = {
    "ALERTS{": "no alert should be firing",
    "handoff_lease_wait_seconds": "needs two replicas with requests for the same user",
}
# The values of Grafana's variables.
VARIABLES = {"$__rate_interval": "30s", "$job": ".*"}
# How long to wait for missing data; Prometheus scrapes every second.
SECONDS = 30


def ask(url, path, **parameters):
    query = urllib.parse.urlencode(parameters, doseq=True)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=10) as answer:
            answer = json.load(answer)
    except urllib.error.HTTPError as error:
        answer = json.load(error)
    if answer["status"] != "success" or answer.get("warnings"):
        raise ValueError(answer.get("error") or answer["warnings"])
    return answer["data"]


def queries(dashboard):
    """Yields the name of each query's place, and the query."""
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


def layout(dashboard):
    """Yields layout faults that Grafana does not report: duplicate ids and overlapping panels."""
    taken = {}
    for panel in dashboard["panels"]:
        if [other["id"] for other in dashboard["panels"]].count(panel["id"]) > 1:
            yield f"{panel['title']}: another panel has the same id"
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x >= 24 or taken.setdefault((x, y), panel["title"]) != panel["title"]:
                    yield f"{panel['title']} does not fit at {x}, {y}"
                    break


def answered(url, expression):
    """Returns whether the answer contains a finite number; 0 divided by 0 does not count."""
    result = ask(url, "query", query=expression)["result"]
    return any(math.isfinite(float(sample["value"][1])) for sample in result)


def optional(text):
    return any(part in text for part in MAY_BE_EMPTY)


def metrics(text):
    return set(re.findall(r"\b(?:handoff|rabbitmq|process)_[a-z_]+", text))


def main(url, dashboard_path, alerts_path, reference_path):
    with open(dashboard_path, encoding="utf-8") as file:
        dashboard = json.load(file)
    with open(alerts_path, encoding="utf-8") as file:
        alerts = "\n".join(line for line in file if not line.lstrip().startswith("#"))
    with open(reference_path, encoding="utf-8") as file:
        documented = metrics(file.read())

    wanted = {}
    for place, expression in queries(dashboard):
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        wanted[place] = expression
    for variable in dashboard["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", str(variable.get("definition", "")))
        if found:
            wanted[f"variable {variable['name']}"] = f"count by ({found[2]}) ({found[1]})"
    for name in metrics(alerts):
        wanted[f"metric {name} of an alert"] = f'{{__name__="{name}"}}'

    faults = list(layout(dashboard))
    faults += [
        f"{name} is not in {reference_path}"
        for name in sorted(metrics(" ".join(wanted.values()) + alerts))
        if name.startswith("handoff_") and re.sub("_(bucket|count|sum)$", "", name) not in documented
    ]
    required = [place for place, expression in wanted.items() if not optional(expression)]
    # A query that has returned data is not run again: on a busy machine its 30 s of data may be over when the last query
    # gets its first.
    answers = set()
    deadline = time.monotonic() + SECONDS
    while True:
        missing = []
        for place, expression in wanted.items():
            if place in answers:
                continue
            try:
                empty = not answered(url, expression)
            except ValueError as error:
                faults.append(f"{place}: {error}: {expression}")
                continue
            if not empty:
                answers.add(place)
            elif place in required:
                missing.append(f"{place}: no data for {expression}")
        if faults or not missing or time.monotonic() > deadline:
            break
        time.sleep(1)
    for fault in faults + missing:
        print(fault, file=sys.stderr)
    print(f"{len(wanted)} queries, {len(required)} of which must return data", file=sys.stderr)
    return 1 if faults or missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
