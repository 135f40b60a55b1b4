"""The main job in Python, written for speed: asyncio on uvloop, one process.

It does the same as benches/floor and reads the same settings. Any error ends it with status 1.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from urllib.parse import quote

import aio_pika
import aiohttp
import uvloop
from redis.asyncio import BlockingConnectionPool, Redis
from yarl import URL

# A command occupies a connection for a millisecond or less, so a few serve any number of requests.
# The blocking pool waits for a free connection; the default pool raises an error.
REDIS_CONNECTIONS = 32


class Worker:
    def __init__(self, http, cache, events):
        self.http = http
        self.cache = cache
        self.events = events
        self.platform = platform = os.environ["HANDOFF_IDV_URL"]
        self.key = os.environ["HANDOFF_IDV_API_KEY"]
        workflow = os.environ["HANDOFF_IDV_WORKFLOW_ID"]
        # Parsed once, not for each call.
        self.tokens = URL(f"{platform}/api/device/ephemeral")
        self.sessions = URL(f"{platform}/api/sessions").with_query(workflowId=workflow)

    async def serve(self, message):
        request = json.loads(message.body)
        key = f"python:{request['userId']}"
        found = await self.cache.get(key)
        if not found:
            link = await self.link(request)
            await self.cache.set(key, link, ex=3600)
        else:
            link = found.decode()
        await self.publish(request, link, reused=found is not None)
        await message.ack()

    async def link(self, request):
        answer = await self.call(self.tokens, self.key, {"ttl": 3600})
        token = answer["authorization"]
        metadata = {"externalUserId": request["userId"], "request": request.get("metadata")}
        session = await self.call(self.sessions, token, {"metadata": metadata})
        authorization = quote(token, safe="")
        inner = f"{self.platform}/mobile?authorization={authorization}&sessionId={session['id']}"
        return f"{self.platform}/capture?url={quote(inner, safe='')}"

    async def call(self, url, authorization, body):
        headers = {"Authorization": authorization}
        async with self.http.post(url, headers=headers, json=body) as answer:
            return await answer.json()

    async def publish(self, request, link, reused):
        request_id = request["requestId"]
        event = {
            "specversion": "1.0",
            "id": request_id,
            "source": "/python",
            "type": "handoff.ready",
            "datacontenttype": "application/json",
            "data": {
                "requestId": request_id,
                "userId": request["userId"],
                "url": link,
                "reused": reused,
            },
        }
        message = aio_pika.Message(
            json.dumps(event).encode(),
            content_type="application/cloudevents+json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            correlation_id=request_id,
        )
        # Waits for the confirm; raises if RabbitMQ rejects or returns the event.
        await self.events.publish(message, "handoff.ready", mandatory=True)


async def run():
    concurrency = int(os.environ["HANDOFF_CONCURRENCY"])
    pool = BlockingConnectionPool.from_url(
        os.environ["HANDOFF_REDIS_URL"], max_connections=REDIS_CONNECTIONS, timeout=None
    )
    async with (
        await aio_pika.connect(os.environ["HANDOFF_AMQP_URL"]) as connection,
        Redis.from_pool(pool) as cache,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=True,
        ) as http,
    ):
        # Events have a separate channel, so that their confirms do not queue behind deliveries.
        publishing = await connection.channel(publisher_confirms=True, on_return_raises=True)
        events = await publishing.get_exchange(os.environ["HANDOFF_EVENT_EXCHANGE"], ensure=False)
        consuming = await connection.channel()
        await consuming.set_qos(prefetch_count=concurrency)
        queue = await consuming.get_queue(os.environ["HANDOFF_QUEUE"], ensure=False)
        worker = Worker(http, cache, events)
        end = asyncio.get_running_loop().create_future()

        def finish():
            if not end.done():
                end.set_result(None)

        def lose(*_):
            if not end.done():
                end.set_exception(ConnectionError("RabbitMQ cancelled the consumer"))

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, finish)
        connection.close_callbacks.add(lose)
        consuming.close_callbacks.add(lose)
        (await consuming.get_underlay_channel()).on_consumer_cancel_callbacks.add(lose)

        # The first failed request ends the group, and thereby the process.
        async with asyncio.TaskGroup() as requests:

            async def begin(message):
                requests.create_task(worker.serve(message))

            subscription = await queue.consume(begin)
            await end
            # Leaving the group waits for the requests in flight.
            await queue.cancel(subscription)


def main():
    # Errors are printed once, below. The libraries would log them again, with links.
    logging.disable()
    try:
        uvloop.run(run())
    except Exception as error:
        # Of a group the first counts: the others were cut off because of it.
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        sys.exit(f"python: {type(error).__name__}: {error}")


main()
