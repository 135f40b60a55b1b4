// The main job in Node.js, as one writes it for speed: one process, one thread.
//
// It does what benches/floor does and reads the same settings. Any error ends it with status 1.

import amqp from 'amqplib';
import Redis from 'ioredis';
import { Pool } from 'undici';

// Wherever it comes from: a request, a connection that is lost, the start.
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

// Auto-pipelining sends together what one turn of the event loop asks for.
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
    metadata: { userId, of: metadata ?? null },
  });
  const token = encodeURIComponent(authorization);
  const inner = `${platform}/mobile?authorization=${token}&sessionId=${session.id}`;
  return `${platform}/capture?url=${encodeURIComponent(inner)}`;
}

// Resolves once RabbitMQ has confirmed the event.
function tell({ requestId, userId }, url, reused) {
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
  await tell(request, link, found !== null);
  consuming.ack(message);
}

cache.on('error', fail);
cache.on('end', () => fail('Redis is lost'));
await cache.connect();

const connection = await amqp.connect(setting('HANDOFF_AMQP_URL'), { noDelay: true });
// A channel of its own for events: their confirms do not queue up behind requests.
const publishing = await connection.createConfirmChannel();
const consuming = await connection.createChannel();
for (const one of [connection, publishing, consuming]) one.on('error', fail);
const lost = () => fail('RabbitMQ is lost');
connection.on('close', lost);
// RabbitMQ returns an event that no queue takes before it confirms it.
publishing.on('return', ({ fields, properties }) => {
  fail(`the event for ${properties.correlationId} came back: ${fields.replyText}`);
});

const serving = new Set();
await consuming.prefetch(concurrency);
const { consumerTag } = await consuming.consume(requests, (message) => {
  if (message === null) fail('RabbitMQ ended the subscription');
  const request = serve(message).finally(() => serving.delete(request));
  serving.add(request);
});

process.once('SIGTERM', async () => {
  await consuming.cancel(consumerTag);
  // What has been delivered is served to its end.
  await Promise.all(serving);
  // With the acknowledgements on their way: closing the connection alone would overtake them.
  await consuming.close();
  connection.off('close', lost);
  await connection.close();
  process.exit(0);
});
