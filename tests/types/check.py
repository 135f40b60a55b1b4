"""Reads events and writes a request and an ending, with the types that datamodel-code-generator makes.

    python3 check.py EVENTS REQUESTS ENDINGS
"""

import json
import sys
from urllib.parse import urlsplit

from handoff.ending import VerificationEnding
from handoff.failed import HandoffFailedEvent
from handoff.ready import HandoffReadyEvent
from handoff.request import VerificationRequest
from pydantic import ValidationError

events, requests, endings = sys.argv[1:]

for line in open(events, encoding="utf-8"):
    if json.loads(line)["type"] == "handoff.ready":
        data = HandoffReadyEvent.model_validate_json(line).data
        assert data.expiresAt.tzinfo is not None
        print("ready", data.userId, urlsplit(data.url).path, str(data.reused).lower())
    else:
        data = HandoffFailedEvent.model_validate_json(line).data
        print("failed", data.userId, data.reason.code.value, data.attempts)


def rejects(type, value):
    try:
        type.model_validate(value)
    except ValidationError:
        return
    sys.exit(f"{type.__name__} takes {value}")


rejects(VerificationRequest, {"workflowId": "default"})
rejects(VerificationRequest, {"userId": ""})
rejects(VerificationRequest, {"userId": "a\n"})
rejects(VerificationEnding, {"workflowId": "default"})
rejects(VerificationEnding, {"userId": None})
request = VerificationRequest(userId="python-user", metadata={"plan": "basic"})
with open(requests, "a", encoding="utf-8") as file:
    print(request.model_dump_json(exclude_none=True), file=file)
with open(endings, "a", encoding="utf-8") as file:
    for value in {"userId": "python-user"}, {"sessionId": "7"}:
        print(VerificationEnding.model_validate(value).model_dump_json(exclude_none=True), file=file)
