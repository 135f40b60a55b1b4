"""Answers what a NetworkPolicy allows, and lists the traffic that it must and must not allow."""

import ipaddress

TCP, UDP = "TCP", "UDP"


def pod(namespace, labels):
    return {"namespace": namespace, "labels": labels}


def address(text):
    return {"address": text}


NAME, COMPONENT, PART = (f"app.kubernetes.io/{key}" for key in ("name", "component", "part-of"))
# As RabbitMQ's cluster operator labels the pods of the cluster "production".
OPERATOR = {NAME: "production", COMPONENT: "rabbitmq", PART: "rabbitmq"}

# What the traffic is for, its peer, protocol and port.
ALLOWED_EGRESS = [
    ("DNS of the cluster", pod("kube-system", {"k8s-app": "kube-dns"}), UDP, 53),
    ("DNS of the cluster", pod("kube-system", {"k8s-app": "kube-dns"}), TCP, 53),
    # Its pods use the network of the node, so no pod selector matches them.
    ("NodeLocal DNSCache", address("169.254.20.10"), UDP, 53),
    ("NodeLocal DNSCache", address("169.254.20.10"), TCP, 53),
    # Policies see the port of the pod, not that of the Service (53).
    ("DNS of OpenShift", pod("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}), UDP, 5353),
    ("DNS of OpenShift", pod("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}), TCP, 5353),
    ("RabbitMQ of a chart", pod("rabbitmq", {NAME: "rabbitmq", "app.kubernetes.io/instance": "main"}), TCP, 5672),
    ("RabbitMQ of its operator", pod("rabbitmq", OPERATOR), TCP, 5672),
    ("RabbitMQ of its operator, TLS", pod("rabbitmq", OPERATOR), TCP, 5671),
    ("Redis", pod("redis", {NAME: "redis", COMPONENT: "master"}), TCP, 6379),
    ("Redis Sentinel", pod("redis", {NAME: "redis", COMPONENT: "node"}), TCP, 26379),
    ("Redis Cluster", pod("redis", {NAME: "redis-cluster"}), TCP, 6379),
    ("Redis Cluster, TLS", pod("redis", {NAME: "redis-cluster"}), TCP, 6380),
    ("Valkey", pod("redis", {NAME: "valkey", COMPONENT: "primary"}), TCP, 6379),
    ("Valkey Sentinel", pod("redis", {NAME: "valkey", COMPONENT: "node"}), TCP, 26379),
    ("Valkey Cluster", pod("redis", {NAME: "valkey-cluster"}), TCP, 6379),
    ("the collector of traces", pod("monitoring", {NAME: "opentelemetry-collector"}), TCP, 4318),
    ("the platform", address("203.0.113.10"), TCP, 443),
]
DENIED_EGRESS = [
    ("the cloud's metadata service", address("169.254.169.254"), TCP, 80),
    ("the cloud's metadata service", address("169.254.169.254"), TCP, 443),
    ("the cloud's metadata service as a DNS server", address("169.254.169.254"), UDP, 53),
    ("HTTPS inside the cluster's network", address("10.1.2.3"), TCP, 443),
    ("a DNS server on the internet", address("203.0.113.53"), UDP, 53),
    ("RabbitMQ's management API", pod("rabbitmq", OPERATOR), TCP, 15672),
    ("Redis Cluster's bus", pod("redis", {NAME: "redis-cluster"}), TCP, 16379),
    ("RabbitMQ's operator itself", pod("rabbitmq-system", {NAME: "rabbitmq-cluster-operator", COMPONENT: "rabbitmq-operator"}), TCP, 5672),
    ("another pod", pod("shop", {NAME: "web"}), TCP, 6379),
]
# None: the port of the metrics.
ALLOWED_INGRESS = [("scrapes", pod("monitoring", {NAME: "prometheus"}), TCP, None)]
OPENSHIFT_INGRESS = [("scrapes", pod("openshift-user-workload-monitoring", {NAME: "prometheus"}), TCP, None)]
DENIED_INGRESS = [("scrapes of others", pod("shop", {NAME: "web"}), TCP, None)]
# For overlays whose RabbitMQ and Redis are outside of the cluster.
MANAGED_EGRESS = [
    ("a managed RabbitMQ", address("10.1.2.3"), TCP, 5671),
    ("a managed Redis", address("10.1.2.3"), TCP, 6379),
    ("a managed Redis, TLS on Azure's port", address("10.1.2.3"), TCP, 6380),
]


def selects(selector, labels):
    """Whether a label selector matches; an empty one matches everything."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for term in selector.get("matchExpressions", []):
        value, operator = labels.get(term["key"]), term["operator"]
        holds = {
            "In": value is not None and value in term.get("values", []),
            "NotIn": value not in term.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[operator]
        if not holds:
            return False
    return True


def peer_matches(peer, other, own_namespace):
    if "ipBlock" in peer:
        if "address" not in other:
            return False
        ip, block = ipaddress.ip_address(other["address"]), peer["ipBlock"]
        return ip in ipaddress.ip_network(block["cidr"]) and not any(ip in ipaddress.ip_network(part) for part in block.get("except", []))
    if "address" in other:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other["namespace"]}):
            return False
    elif other["namespace"] != own_namespace:
        return False
    return selects(peer.get("podSelector", {}), other["labels"])


def allows(policy, direction, other, protocol, port, named_ports):
    """Whether the policy allows this traffic; `named_ports` are those of the policy's own pods."""
    rules, key = policy["spec"].get(direction, []), "to" if direction == "egress" else "from"
    own_namespace = policy["metadata"].get("namespace", "handoff")
    for rule in rules:
        ports = rule.get("ports")
        if ports and not any(
            given.get("protocol", TCP) == protocol and named_ports.get(given["port"], given["port"]) == port for given in ports
        ):
            continue
        peers = rule.get(key)
        if not peers or any(peer_matches(peer, other, own_namespace) for peer in peers):
            return True
    return False


def checks(policy, named_ports, kind_of):
    """Yields whether each piece of traffic is treated as it must be, and the fault if not."""
    cases = [("egress", case, True) for case in ALLOWED_EGRESS + (MANAGED_EGRESS if "managed" in kind_of else [])]
    cases += [("egress", case, False) for case in DENIED_EGRESS]
    cases += [("ingress", case, True) for case in (OPENSHIFT_INGRESS if "openshift" in kind_of else ALLOWED_INGRESS)]
    cases += [("ingress", case, False) for case in DENIED_INGRESS]
    for direction, (purpose, other, protocol, port), wanted in cases:
        port = port or named_ports["metrics"]
        verb = "allow" if wanted else "deny"
        yield (
            allows(policy, direction, other, protocol, port, named_ports) == wanted,
            f"the NetworkPolicy must {verb} {direction}: {purpose} ({protocol} {port})",
        )
