"""Runs the webhook receivers of docs/integrating.md, from "Finish" on a sandbox's page to the next, new link.

    webhook.py HANDOFF FOLDER    FOLDER holds webhook.py and webhook.mjs; needs pika, amqplib, RabbitMQ and Redis

HANDOFF_AMQP_URL and HANDOFF_REDIS_URL name the servers. No other worker may use them.
"""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import uuid

import pika

HANDOFF, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
AMQP_URL = os.environ["HANDOFF_AMQP_URL"]
ENDED = "verification.requested.ended"
SECRET = "s3cret-" + uuid.uuid4().hex
LIMIT = 30  # seconds


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def wait_for(what, condition):
    deadline = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT} s"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def running(name, command, text, **variables):
    """Runs a command until the end of the block. Yields the first line of its output with the text."""
    log = FOLDER / f"{name}.log"
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=FOLDER, env=environment, stdout=output, stderr=output)

    def line():
        assert process.poll() is None, f"{name} ended: {log.read_text()}"
        return next((line for line in log.read_text().splitlines() if text in line), None)

    try:
        yield wait_for(f"{text!r} of {name}", line)
    except BaseException:
        print(f"--- {name}\n{log.read_text()}", file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT)


def http_status(method, url, body=None, headers=None):
    url = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=LIMIT)
    # Not http.client's own rules: they would add a length.
    connection.putrequest(method, url.path + (url.query and "?" + url.query))
    headers = dict(headers or {})
    if body is not None:
        headers.setdefault("Content-Length", len(body))
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status


def expect(what, status, expected):
    assert status == expected, f"{what}: status {status} instead of {expected}"


class Broker:
    """Sees each verification.ended."""

    def __init__(self):
        self.connection = pika.BlockingConnection(pika.URLParameters(AMQP_URL))
        self.channel = self.connection.channel()

    def observe(self):
        self.queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(self.queue, "verification", "verification.ended")

    def has_queue(self, name):
        channel = self.connection.channel()
        try:
            channel.queue_declare(name, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        channel.close()
        return True

    def next(self):
        _, properties, body = self.channel.basic_get(self.queue, auto_ack=True)
        return properties and (properties, body)


def request(user):
    command = [HANDOFF, "request", "--user", user, "--workflow", "w", "--wait", f"{LIMIT}s"]
    output = subprocess.run(command, check=True, capture_output=True, timeout=2 * LIMIT).stdout
    return json.loads(output)["data"]


def check_refusals(hook, broker):
    good = json.dumps({"sessionId": "65f1c0ffee0ddba11ca7beef"}).encode()
    secret = {"X-Webhook-Secret": SECRET}
    for what, status, body, headers in [
        ("no secret", 401, good, {}),
        ("a wrong secret", 401, good, {"X-Webhook-Secret": SECRET[:-1] + "X"}),
        ("a part of the secret", 401, good, {"X-Webhook-Secret": SECRET[:-1]}),
        ("a longer secret", 401, good, {"X-Webhook-Secret": SECRET + "X"}),
        ("an empty secret", 401, good, {"X-Webhook-Secret": ""}),
        ("a secret beyond ASCII", 401, good, {"X-Webhook-Secret": "sécret"}),
        ("no length", 411, None, secret),
        ("a body that is too long", 413, b" " * 4097, secret),
        ("an announced body that is too long", 413, None, secret | {"Content-Length": "9999999999"}),
        ("no JSON", 400, b"sessionId", secret),
        ("no UTF-8", 400, b'{"sessionId":"\xff', secret),
        ("no session", 400, b"{}", secret),
        ("no object", 400, b"null", secret),
        ("deep nesting", 400, b"[" * 4096, secret),
        ("an empty session", 400, b'{"sessionId":""}', secret),
        ("a list of sessions", 400, b'{"sessionId":["a"]}', secret),
        ("half a character", 400, rb'{"sessionId":"\ud800"}', secret),
        ("a session that is too long", 400, json.dumps({"sessionId": "a" * 1025}).encode(), secret),
    ]:
        expect(what, http_status("POST", hook, body, headers), status)
        assert broker.next() is None, f"{what}: was published"


def check(name, receiver, flow):
    port = free_port()
    hook = f"http://127.0.0.1:{port}/webhook"
    user = f"{name}-user"
    good = json.dumps({"sessionId": "65f1c0ffee0ddba11ca7beef"}).encode()
    secret = {"X-Webhook-Secret": SECRET}
    variables = {"PORT": port, "WEBHOOK_SECRET": SECRET, "PYTHONUNBUFFERED": 1}

    with running(f"{name}-receiver", receiver, "listening", **variables, AMQP_URL="amqp://127.0.0.1:1"):
        expect("no RabbitMQ", http_status("POST", hook, good, secret), 503)

    broker = Broker()
    secret_file = FOLDER / "secret"
    secret_file.write_text(SECRET + "\n")
    with contextlib.ExitStack() as stack:
        start = lambda *args, **kwargs: stack.enter_context(running(*args, **kwargs))
        start(f"{name}-receiver", receiver, "listening", **variables, AMQP_URL=AMQP_URL)
        broker.channel.exchange_delete("verification")
        expect("no exchange", http_status("POST", hook, good, secret), 503)
        broker.channel.exchange_declare("verification", "topic", durable=True)
        expect("no queue", http_status("POST", hook, good, secret), 503)

        broker.observe()
        check_refusals(hook, broker)

        sandbox = [HANDOFF, "sandbox", "--addr", "127.0.0.1:0", "--webhook-url", hook]
        sandbox += ["--webhook-secret-file", str(secret_file)]
        url = start(f"{name}-sandbox", sandbox, "listening on").split()[-1]
        probes = free_port()
        start(
            f"{name}-worker", [HANDOFF, "run"], "consuming",
            HANDOFF_IDV_URL=url, HANDOFF_IDV_API_KEY="sandbox-key", HANDOFF_IDV_FLOW=flow,
            HANDOFF_KEY_PREFIX=uuid.uuid4().hex, HANDOFF_HTTP_ADDR=f"127.0.0.1:{probes}",
        )
        # The worker declares it alongside serving requests.
        wait_for(f"the queue {ENDED}", lambda: broker.has_queue(ENDED))
        first = request(user)
        again = request(user)
        assert not first["reused"] and again["reused"] and again["url"] == first["url"]

        began = int(time.time())
        expect("Finish", http_status("POST", first["mobileUrl"], b"end=finish"), 200)
        properties, body = wait_for("verification.ended", broker.next)
        assert json.loads(body) == {"sessionId": first["sessionId"]}, body
        assert began <= properties.timestamp <= time.time(), properties
        assert uuid.UUID(properties.message_id) and properties.delivery_mode == 2, properties
        assert properties.content_type == "application/json", properties

        def is_forgotten():
            connection = http.client.HTTPConnection("127.0.0.1", probes, timeout=LIMIT)
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
            return 'handoff_endings_total{outcome="forgotten"} 1' in metrics

        wait_for("the link to be forgotten", is_forgotten)
        new = request(user)
        assert not new["reused"] and new["url"] != first["url"], new
        expect("the former link", http_status("GET", first["mobileUrl"]), 410)
        expect("the new link", http_status("GET", new["mobileUrl"]), 200)
        assert broker.next() is None, "more than one verification.ended"
    broker.connection.close()


check("python", [sys.executable, "webhook.py"], "token")
check("node", ["node", "webhook.mjs"], "deeplink")
