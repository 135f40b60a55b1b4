// The main job in Node.js, written for speed: one process, one thread.
//
// It does the same as benches/floor and reads the same settings. Any error ends it with status 1.

import amqp from 'amqplib';
import Redis from 'ioredis';
import { Pool } from 'undici';

// Handles errors of requests, connections and the start alike.
process.on('uncaughtException', fail);

function fail(error) {
  console.error(`node: ${error.message || error.code || error}`);
  process.exit(1);
}

function setting(name) {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

const concurrency = Number(setting('HANDOFF_CONCURRENCY'));
const requests = setting('HANDOFF_QUEUE');
const events = setting('HANDOFF_EVENT_EXCHANGE');
const apiKey = setting('HANDOFF_IDV_API_KEY');
const platform = setting('HANDOFF_IDV_URL');
// Parsed once, not for each call.
const tokens = new URL(`${platform}/api/device/ephemeral`);
const sessions = new URL(`${platform}/api/sessions`);
sessions.searchParams.set('workflowId', setting('HANDOFF_IDV_WORKFLOW_ID'));

const http = new Pool(tokens.origin, { connections: concurrency });

// Auto-pipelining batches the commands of one turn of the event loop.
const cache = new Redis(setting('HANDOFF_REDIS_URL'), {
  enableAutoPipelining: true,
  lazyConnect: true,
  maxRetriesPerRequest: 0,
  retryStrategy: null,
});

async function call(url, authorization, body) {
  const { statusCode, body: answer } = await http.request({
    method: 'POST',
    path: url.pathname + url.search,
    headers: { authorization, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (statusCode >= 300) throw new Error(`the platform answers ${statusCode}`);
  return answer.json();
}

async function makeLink({ userId, metadata }) {
  const { authorization } = await call(tokens, apiKey, { ttl: 3600 });
  const session = await call(sessions, authorization, {
    metadata: { externalUserId: userId, request: metadata ?? null },
  });
  const token = encodeURIComponent(authorization);
  const inner = `${platform}/mobile?authorization=${token}&sessionId=${session.id}`;
  return `${platform}/capture?url=${encodeURIComponent(inner)}`;
}

// Resolves once RabbitMQ has confirmed the event.
function publish({ requestId, userId }, url, reused) {
  const event = {
    specversion: '1.0',
    id: requestId,
    source: '/node',
    type: 'handoff.ready',
    datacontenttype: 'application/json',
    data: { requestId, userId, url, reused },
  };
  const options = {
    contentType: 'application/cloudevents+json',
    persistent: true,
    mandatory: true,
    correlationId: requestId,
  };
  return new Promise((resolve, reject) => {
    publishing.publish(
      events,
      'handoff.ready',
      Buffer.from(JSON.stringify(event)),
      options,
      (error) => (error ? reject(error) : resolve()),
    );
  });
}

async function serve(message) {
  const request = JSON.parse(message.content.toString());
  const key = `node:${request.userId}`;
  const found = await cache.get(key);
  const link = found ?? (await makeLink(request));
  if (found === null) await cache.setex(key, 3600, link);
  await publish(request, link, found !== null);
  consuming.ack(message);
}

cache.on('error', fail);
cache.on('end', () => fail('Redis connection lost'));
await cache.connect();

const connection = await amqp.connect(setting('HANDOFF_AMQP_URL'), { noDelay: true });
// Events have a separate channel, so that their confirms do not queue behind deliveries.
const publishing = await connection.createConfirmChannel();
const consuming = await connection.createChannel();
for (const one of [connection, publishing, consuming]) one.on('error', fail);
const lost = () => fail('RabbitMQ connection lost');
connection.on('close', lost);
// RabbitMQ returns an unroutable event before it confirms it.
publishing.on('return', ({ fields, properties }) => {
  fail(`the event for ${properties.correlationId} was returned: ${fields.replyText}`);
});

const serving = new Set();
await consuming.prefetch(concurrency);
const { consumerTag } = await consuming.consume(requests, (message) => {
  if (message === null) fail('RabbitMQ cancelled the consumer');
  const request = serve(message).finally(() => serving.delete(request));
  serving.add(request);
});

process.once('SIGTERM', async () => {
  await consuming.cancel(consumerTag);
  // Wait for the requests in flight.
  await Promise.all(serving);
  // Closing the channel first flushes the acks; closing only the connection would overtake them.
  await consuming.close();
  connection.off('close', lost);
  await connection.close();
  process.exit(0);
});
