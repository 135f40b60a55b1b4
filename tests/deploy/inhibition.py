"""Checks the inhibition rules on a real Alertmanager: in one namespace each hides its targets, in another nothing.

    inhibition.py ALERTMANAGER_YML ALERTS

Starts prometheus-alertmanager (Debian) or alertmanager with the file, and sends it alerts.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import yaml

SECONDS = 30


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=10) as answer:
        return json.loads(answer.read() or "null")


def await_answer(url):
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def inhibited(url):
    """The name and namespace of each alert, and whether it is inhibited."""
    return {
        (alert["labels"]["alertname"], alert["labels"]["namespace"]): bool(alert["status"]["inhibitedBy"])
        for alert in ask(f"{url}/api/v2/alerts")
    }


def static_faults(rules, severities):
    """Yields rules that name no alert, hide a critical alert behind a warning, or apply across namespaces."""
    for rule in rules:
        source = re.fullmatch(r'alertname="(\w+)"', rule["source_matchers"][0])[1]
        pattern = re.fullmatch(r'alertname=~?"(.+)"', rule["target_matchers"][0])[1]
        targets = [name for name in severities if re.fullmatch(pattern, name)]
        alternatives = len(pattern.split("|"))
        if source not in severities or len(targets) != alternatives:
            yield f"{source}: a rule names an alert that does not exist"
        if severities.get(source) == "warning" and any(severities[target] == "critical" for target in targets):
            yield f"{source} is a warning, and hides a critical alert"
        if not {"cluster", "namespace"} <= set(rule["equal"]):
            yield f"{source} hides alerts of other namespaces"
        yield source, targets


def main(config_path, alerts_path):
    with open(config_path, encoding="utf-8") as file:
        rules = yaml.safe_load(file)["inhibit_rules"]
    with open(alerts_path, encoding="utf-8") as file:
        alerts = [rule for group in yaml.safe_load(file)["groups"] for rule in group["rules"]]
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in alerts}
    found = list(static_faults(rules, severities))
    faults = [fault for fault in found if isinstance(fault, str)]
    pairs = [pair for pair in found if not isinstance(pair, str)]

    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for source, targets in pairs:
        with tempfile.TemporaryDirectory() as folder:
            server = subprocess.Popen(
                [program, f"--config.file={config_path}", f"--storage.path={folder}", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            try:
                await_answer(f"{url}/-/ready")
                # Both namespaces have the consequences; only one has the cause.
                sent = [(source, "acme")] + [(target, namespace) for target in targets for namespace in ("acme", "globex")]
                ask(f"{url}/api/v2/alerts", [
                    {"labels": {"alertname": name, "namespace": namespace, "severity": severities[name], "instance": "a:9464"}}
                    for name, namespace in sent
                ])
                # A target may itself be the cause of another.
                wanted = {
                    (name, namespace): any(name in hidden and (cause, namespace) in sent for cause, hidden in pairs)
                    for name, namespace in sent
                }
                deadline = time.monotonic() + SECONDS
                while (got := inhibited(url)) != wanted and time.monotonic() < deadline:
                    time.sleep(0.1)
                faults += [
                    f"{source} must {'' if hidden else 'not '}hide {name} of {namespace}"
                    for (name, namespace), hidden in wanted.items() if got.get((name, namespace)) != hidden
                ]
            finally:
                server.terminate()
                server.wait()
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(pairs)} inhibition rules, {sum(len(targets) for _, targets in pairs)} targets", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
