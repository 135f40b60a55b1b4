// trace.png: the trace of a request, from the service that publishes it to the same service as it receives the event.
//
//   with-services trace.mjs FILE HANDOFF
//
// The service is the program below, with OpenTelemetry's instrumentation of amqplib. It and the worker export their spans
// to one collector, and the trace viewer of Perses shows them.

import { createRequire } from 'node:module';
import { context, SpanKind, trace } from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { registerInstrumentations } from '@opentelemetry/instrumentation';
import { AmqplibInstrumentation } from '@opentelemetry/instrumentation-amqplib';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';
import { newPage, savePicture, until, withBrowser } from './browser.mjs';
import { bundle } from './bundle.mjs';
import { startCollector } from './collector.mjs';
import { answers, freePort, withPrograms } from './programs.mjs';
import { startSandbox } from './sandbox.mjs';

const [file, handoff] = process.argv.slice(2);
const [WIDTH, HEIGHT] = [1200, 472];

/** Instruments this program, and returns its tracer and a function that exports what is left. */
function instrument(collector) {
    const exporter = new OTLPTraceExporter({ url: `${collector.url}/v1/traces` });
    const provider = new NodeTracerProvider({
        resource: resourceFromAttributes({ 'service.name': 'shop' }), spanProcessors: [new BatchSpanProcessor(exporter)],
    });
    provider.register();
    registerInstrumentations({ instrumentations: [new AmqplibInstrumentation()] });
    return { tracer: provider.getTracer('shop'), flush: () => provider.forceFlush() };
}

/** Publishes a request, and waits for its event, as the handler of a web request does. */
async function verify(tracer, channel, events) {
    const span = tracer.startSpan('POST /signup', { kind: SpanKind.SERVER });
    await context.with(trace.setSpan(context.active(), span), async () => {
        channel.publish('verification', 'verification.requested', Buffer.from(JSON.stringify({ userId: 'ann' })),
            { messageId: 'signup-20418', persistent: true, mandatory: true });
        const { type } = await events.next();
        if (type !== 'handoff.ready') throw new Error(`the event is ${type}`);
    });
    span.end();
}

/** Consumes events, one at a time. */
async function consumeEvents(channel) {
    const { queue } = await channel.assertQueue('shop.events', { exclusive: true });
    await channel.bindQueue(queue, 'handoff', 'handoff.*');
    let received;
    await channel.consume(queue, (message) => {
        channel.ack(message);
        received?.(message.properties);
    });
    return { next: () => new Promise((resolve) => { received = resolve; }) };
}

const collector = await startCollector();
const { tracer, flush } = instrument(collector);
// Loaded here, because only then is it instrumented.
const amqp = createRequire(import.meta.url)('amqplib');

await withPrograms(process.env.HANDOFF_SERVICES_DIR, async (start) => {
    const { fail, settings } = await startSandbox(start, handoff);
    const probes = `127.0.0.1:${await freePort()}`;
    const stopWorker = start('worker', handoff, ['run'], {
        ...settings, HANDOFF_HTTP_ADDR: probes, OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    });
    await until('the worker', () => answers(`http://${probes}/readyz`));
    // The trace shows a retry, too.
    await fail({ session: { status: 503, times: 1 } });

    const connection = await amqp.connect(process.env.HANDOFF_AMQP_URL);
    const channel = await connection.createChannel();
    await verify(tracer, channel, await consumeEvents(channel));
    await connection.close();
    await flush();
    // The worker exports its spans at the latest when it exits.
    await stopWorker();
});
collector.stop();
const traces = new Set(collector.spans().map(({ traceId }) => traceId));
if (traces.size !== 1) throw new Error(`${traces.size} traces instead of one`);

/** Drags the line between names and bars to the right, so that the names fit. */
async function widenNames(page) {
    const row = await (await page.waitForSelector('[data-index="0"]')).boundingBox();
    // In the header above the rows: a click on a row opens the details of its span.
    const y = row.y - 10;
    await page.mouse.move(row.x + row.width * 0.25, y);
    await page.mouse.down();
    await page.mouse.move(row.x + row.width * 0.42, y, { steps: 5 });
    await page.mouse.up();
    await page.mouse.move(0, 0);
}

const { script, style } = await bundle('trace.jsx');
await withBrowser(async (browser) => {
    const page = await newPage(browser, { width: WIDTH, height: HEIGHT });
    await page.setContent(`<!doctype html><meta charset="utf-8"><style>${style}
        body { margin: 0; } #picture { box-sizing: border-box; width: ${WIDTH}px; height: ${HEIGHT}px; padding: 16px; background: #fff; }
        </style><div id="picture"></div>`);
    await page.addScriptTag({ content: script });
    await page.evaluate((trace) => window.draw(document.getElementById('picture'), trace), { resourceSpans: collector.resourceSpans });
    await page.waitForFunction((count) => document.querySelectorAll('[data-index]').length === count, {}, collector.spans().length);
    await widenNames(page);
    await savePicture(page, '#picture', file);
});
