// dashboard.png: panels of the Grafana dashboard while the platform is down for a minute.
//
//   with-services dashboard.mjs FILE HANDOFF ROOT
//
// Grafana itself is in no package registry, but its components are: these draw the panels that deploy/grafana/handoff.json
// describes, with what a real Prometheus answers to their queries.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { newPage, savePicture, withBrowser } from './browser.mjs';
import { bundle } from './bundle.mjs';
import { recordOutage } from './outage.mjs';

const [file, handoff, root] = process.argv.slice(2);
// Two parts: the overview, shortly before the outage ends, and the panels that it changes most, from start to end.
const OVERVIEW = [
    'Replicas consuming', 'Replicas paused', 'Requests settled', 'Failed requests', 'Users wait (p95)', 'Requests waiting',
];
const CHARTS = [
    'Deliveries by outcome', 'End-to-end time', 'Calls', 'Replicas paused, by reason', 'Messages ready, by queue', 'In flight',
];
const WIDTH = 1200;

/** Serves one page and the icons of @grafana/ui. */
async function serve(page, { script, style }) {
    const ui = join(dirname(createRequire(import.meta.url).resolve('@grafana/ui/package.json')), 'dist');
    const html = `<!doctype html><meta charset="utf-8"><style>${style}</style>
        <style>body { margin: 0; background: #f4f5f5; } #picture { width: ${WIDTH + 32}px; padding: 16px; }</style>
        <div id="picture"></div><script src="/script.js"></script>`;
    await page.setRequestInterception(true);
    page.on('request', (request) => {
        const { pathname } = new URL(request.url());
        if (pathname === '/') return request.respond({ contentType: 'text/html', body: html });
        if (pathname === '/script.js') return request.respond({ contentType: 'text/javascript', body: script });
        const icon = pathname.match(/^\/public\/build\/(img\/icons\/.*\.svg)$/);
        if (icon) return request.respond({ contentType: 'image/svg+xml', body: readFileSync(join(ui, 'public', icon[1])) });
        return request.respond({ status: 404, body: '' });
    });
    await page.goto('http://127.0.0.1/');
}

const [recorded, program] = [await recordOutage(handoff, root), await bundle('dashboard.jsx')];
const { from, down, up, to } = recorded;
const named = (titles) => titles.map((title) => {
    const panel = recorded.panels.find((panel) => panel.title === title);
    if (!panel?.targets.some(({ result }) => result.length)) throw new Error(`no data for the panel ${title}`);
    return panel;
});
const clock = (time) => new Date(time).toISOString().slice(11, 19);
const late = up - 2_000;
const parts = [
    { title: `${clock(late)} UTC, ${Math.round((late - down) / 1000)} s into the outage`, panels: named(OVERVIEW), from, to: late },
    { title: `${clock(from)} to ${clock(to)} UTC: the platform answers 503 from ${clock(down)} to ${clock(up)}`, panels: named(CHARTS), from, to },
].map((part) => ({ ...part, width: WIDTH }));

await withBrowser(async (browser) => {
    const page = await newPage(browser, { width: WIDTH + 32, height: 1400 });
    await serve(page, program);
    await page.evaluate((parts) => window.draw(document.getElementById('picture'), parts), parts);
    await page.waitForSelector('.uplot canvas');
    await page.waitForNetworkIdle();
    await savePicture(page, '#picture', file);
});
