// What Prometheus records of two workers while the platform is down for a minute.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import amqp from 'amqplib';
import { until } from './browser.mjs';
import { answers, freePort, withPrograms } from './programs.mjs';
import { startSandbox } from './sandbox.mjs';

/** The course of the load, in seconds. */
const [BEFORE, OUTAGE, AFTER] = [50, 60, 50];
const REQUESTS_PER_SECOND = 25;
const SCRAPE_SECONDS = 1;
/** As Grafana sets its variables for a data source with this scrape interval. */
const VARIABLES = { __rate_interval: `${4 * SCRAPE_SECONDS}s`, job: '.*' };

/** Publishes requests at a steady rate, one in five for a user who has a link, until `stop` is called. */
async function load(amqpUrl) {
    const connection = await amqp.connect(amqpUrl);
    const channel = await connection.createChannel();
    // Without a queue for events, requests are retried.
    const { queue } = await channel.assertQueue('', { exclusive: true });
    await channel.bindQueue(queue, 'handoff', 'handoff.*');
    await channel.consume(queue, () => {}, { noAck: true });
    let sent = 0;
    const timer = setInterval(() => {
        const user = sent % 5 === 4 ? sent % 50 : sent;
        sent += 1;
        channel.publish('verification', 'verification.requested', Buffer.from(JSON.stringify({ userId: `user-${user}` })),
            { messageId: `request-${sent}`, persistent: true, mandatory: true, timestamp: Math.floor(Date.now() / 1000) });
    }, 1000 / REQUESTS_PER_SECOND);
    return async () => {
        clearInterval(timer);
        await connection.close();
    };
}

/** Runs the outage, and returns each panel of the dashboard with the answers to its queries. */
export async function recordOutage(handoff, root) {
    const folder = process.env.HANDOFF_SERVICES_DIR;
    const dashboard = JSON.parse(readFileSync(join(root, 'deploy/grafana/handoff.json'), 'utf8'));
    const prometheus = `http://127.0.0.1:${await freePort()}`;
    const workers = [await freePort(), await freePort()];
    const targets = workers.map((port, n) =>
        `      - {targets: ["127.0.0.1:${port}"], labels: {instance: "worker-${n + 1}"}}`);
    writeFileSync(join(folder, 'prometheus.yml'), [
        `global: {scrape_interval: ${SCRAPE_SECONDS}s}`, 'scrape_configs:',
        '  - job_name: handoff', '    static_configs:', ...targets, ''].join('\n'));

    return withPrograms(folder, async (start) => {
        const { fail, settings } = await startSandbox(start, handoff);
        workers.forEach((port, n) => start(`worker-${n + 1}`, handoff, ['run'], {
            ...settings, HANDOFF_HTTP_ADDR: `127.0.0.1:${port}`,
        }));
        start('prometheus', 'prometheus', [`--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/tsdb`,
            `--web.listen-address=${new URL(prometheus).host}`]);
        const urls = [`${prometheus}/-/ready`, ...workers.map((port) => `http://127.0.0.1:${port}/readyz`)];
        for (const url of urls) await until(url, () => answers(url));

        const stop = await load(process.env.HANDOFF_AMQP_URL);
        // The first seconds have no rates yet.
        await sleep(5_000);
        const from = Date.now() / 1000;
        await sleep(BEFORE * 1000);
        const down = Date.now() / 1000;
        await fail({ token: { status: 503 }, session: { status: 503 } });
        await sleep(OUTAGE * 1000);
        await fail({});
        const up = Date.now() / 1000;
        await sleep(AFTER * 1000);
        const to = Date.now() / 1000;
        await stop();

        const query = async (expr) => {
            const text = expr.replace(/\$(\w+)/g, (_, name) => VARIABLES[name]);
            const parameters = new URLSearchParams({ query: text, start: from, end: to, step: SCRAPE_SECONDS });
            const answer = await (await fetch(`${prometheus}/api/v1/query_range?${parameters}`)).json();
            if (answer.status !== 'success') throw new Error(`${text}: ${answer.error}`);
            return answer.data.result;
        };
        for (const panel of dashboard.panels) {
            for (const target of panel.targets ?? []) target.result = await query(target.expr);
        }
        return { from: from * 1000, down: down * 1000, up: up * 1000, to: to * 1000, panels: dashboard.panels };
    });
}
