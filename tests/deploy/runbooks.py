"""Checks that every alert has a runbook in the operations guide and a unit test in which it fires.

    runbooks.py ALERTS ALERTS_TEST OPERATIONS
"""

import re
import sys

import yaml

# A placeholder, which a team replaces with where it publishes the guide.
BASE = "https://handoff.example.com"


def main(alerts_path, test_path, operations_path):
    with open(alerts_path, encoding="utf-8") as file:
        rules = [rule for group in yaml.safe_load(file)["groups"] for rule in group["rules"]]
    with open(test_path, encoding="utf-8") as file:
        tests = [case for test in yaml.safe_load(file)["tests"] for case in test["alert_rule_test"]]
    with open(operations_path, encoding="utf-8") as file:
        headings = re.findall(r"^#+ (\w+)$", file.read(), re.MULTILINE)
    fires = {case["alertname"] for case in tests if case["exp_alerts"]}
    alerts = [rule["alert"] for rule in rules]

    faults = [f"{heading} in {operations_path} is not an alert" for heading in headings
              if heading.startswith("Handoff") and heading not in alerts]
    for rule in rules:
        name = rule["alert"]
        if name not in headings:
            faults.append(f"{name} has no section in {operations_path}")
        if rule["annotations"].get("runbook_url") != f"{BASE}/docs/operations.md#{name.lower()}":
            faults.append(f"the annotation `runbook_url` of {name} does not link to its section")
        if name not in fires:
            faults.append(f"{name} fires in no unit test")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(alerts)} alerts, {len(tests)} cases", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
