// Chromium, and the PNG files that it makes.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import puppeteer from 'puppeteer-core';

const LIMIT = 300 * 1024;

/** Calls `use` with a headless browser that reaches only this machine. */
export async function withBrowser(use) {
    const profile = mkdtempSync(join(tmpdir(), 'handoff-pictures-'));
    const browser = await puppeteer.launch({
        executablePath: process.env.HANDOFF_TEST_CHROMIUM,
        userDataDir: profile,
        args: [
            // Root has no sandbox, and containers have little shared memory.
            '--no-sandbox', '--disable-dev-shm-usage', '--no-proxy-server',
            '--disable-background-networking', '--disable-component-update',
            '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
            // Draws WebGL without a GPU.
            '--enable-unsafe-swiftshader',
            // The same edges of letters on every machine.
            '--font-render-hinting=none', '--disable-lcd-text', '--force-color-profile=srgb',
            // Not by emulation, in which xterm.js mistakes the size of its canvas.
            '--force-device-scale-factor=2',
        ],
    });
    try {
        return await use(browser);
    } finally {
        await browser.close();
        rmSync(profile, { recursive: true, force: true });
    }
}

/** The errors of pages: a page that has one may be incomplete. */
const errors = [];

/** Opens a page, whose errors savePicture reports. */
export async function newPage(browser, viewport) {
    const page = await browser.newPage();
    page.on('pageerror', (error) => errors.push(error));
    await page.setViewport({ ...viewport, deviceScaleFactor: 0 });
    return page;
}

/** Writes the element `selector` as a PNG with a palette of at most 256 colours. */
export async function savePicture(page, selector, file) {
    await page.evaluate(() => document.fonts.ready);
    const element = await page.waitForSelector(selector);
    const png = await element.screenshot({ type: 'png' });
    if (errors.length) throw new AggregateError(errors, 'errors in the page');
    const { status, stdout, stderr } = spawnSync(
        'pngquant', ['--strip', '--speed', '1', '--nofs', '256', '-'], { input: png, maxBuffer: 1 << 26 });
    if (status !== 0) throw new Error(`pngquant failed: ${stderr}`);
    if (stdout.length > LIMIT) throw new Error(`${file} would have ${stdout.length} bytes, more than ${LIMIT}`);
    writeFileSync(file, stdout);
    console.log(`${basename(file)}: ${Math.ceil(stdout.length / 1024)} KiB`);
}

/** The URL of a page or picture that is not served anywhere. */
export const dataUrl = (type, data) => `data:${type};base64,${Buffer.from(data).toString('base64')}`;

/** Polls until `check` returns a true value, and returns it. */
export async function until(what, check, seconds = 60) {
    const end = Date.now() + seconds * 1000;
    while (Date.now() < end) {
        const value = await check();
        if (value) return value;
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`${what}: not within ${seconds} s`);
}
