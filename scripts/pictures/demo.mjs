// demo.png: `make demo` in a terminal, alongside its last link on a phone.
//
//   demo.mjs FILE

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { dataUrl, newPage, savePicture, until, withBrowser } from './browser.mjs';

const [file] = process.argv.slice(2);
const COLUMNS = 80;
// `--serve` keeps the link open until the phone has shown it. What it prints after this line is not shown.
const COMMAND = 'make demo ARGS=--serve';
const LAST_LINE = 'Everything runs until Ctrl-C';
const PHONE = { width: 412, height: 915, isMobile: true, hasTouch: true };

/** Runs the demo in a pseudo-terminal. `script` allocates it. */
async function withDemo(use) {
    const env = { ...process.env, TERM: 'xterm-256color' };
    // As if typed in a shell, not below another make.
    for (const name of ['MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'MAKEOVERRIDES']) delete env[name];
    const demo = spawn(
        'script', ['--quiet', '--return', '--command', `stty cols ${COLUMNS} rows 50; exec ${COMMAND}`, '/dev/null'],
        { env, stdio: ['pipe', 'pipe', 'inherit'] });
    const exited = once(demo, 'exit');
    let output = '';
    demo.stdout.setEncoding('utf8').on('data', (text) => { output += text; });
    try {
        await until('the demo', () => {
            if (demo.exitCode !== null) throw new Error(`the demo ended: ${output}`);
            return output.includes(LAST_LINE);
        }, 300);
        return await use(output.slice(0, output.indexOf(LAST_LINE)).trimEnd());
    } finally {
        demo.stdin.write('\x03'); // Ctrl-C
        await exited;
    }
}

/** Opens a link as a person does, and returns a screenshot of the page of the verification. */
async function onPhone(browser, link) {
    const page = await newPage(browser, PHONE);
    await page.goto(link);
    await Promise.all([page.waitForNavigation(), page.click('#continue')]);
    await page.waitForSelector('#user');
    const screenshot = await page.screenshot();
    await page.close();
    return screenshot;
}

/** Shows the output in a terminal emulator, as high as it needs to be, and the phone next to it. */
async function compose(browser, output, phone) {
    const page = await newPage(browser, { width: 1200, height: 1200 });
    await page.setContent(`<!doctype html><style>
        body { margin: 0; background: #fff; }
        #picture { display: inline-flex; align-items: center; gap: 28px; padding: 20px; background: #fff; }
        .frame { border: 1px solid #c9ccd1; border-radius: 10px; overflow: hidden; background: #f1f2f4; }
        .bar { height: 26px; border-bottom: 1px solid #c9ccd1; display: flex; gap: 7px; align-items: center; padding-left: 12px; }
        .bar i { width: 10px; height: 10px; border-radius: 50%; background: #c9ccd1; }
        #terminal { padding: 10px 12px; background: #1b1f24; }
        #phone { padding: 12px; border-radius: 34px; }
        #phone img { display: block; width: 351px; border-radius: 23px; }
        .xterm .xterm-viewport { overflow: hidden !important; }
    </style>
    <div id="picture">
        <div class="frame"><div class="bar"><i></i><i></i><i></i></div><div id="terminal"></div></div>
        <div class="frame" id="phone"><img src="${dataUrl('image/png', phone)}"></div>
    </div>`);
    const { resolve } = createRequire(import.meta.url);
    await page.addStyleTag({ path: resolve('@xterm/xterm/css/xterm.css') });
    await page.addScriptTag({ path: resolve('@xterm/xterm/lib/xterm.js') });
    await page.addScriptTag({ path: resolve('@xterm/addon-webgl/lib/addon-webgl.js') });
    await page.evaluate(async (text, columns) => {
        const terminal = new Terminal({
            cols: columns, rows: 200, fontSize: 14, fontFamily: 'DejaVu Sans Mono, IPAGothic, monospace', scrollback: 0,
            cursorInactiveStyle: 'none', theme: { background: '#1b1f24', foreground: '#e6e8eb' },
        });
        await new Promise((written) => terminal.write(text, written));
        terminal.resize(columns, terminal.buffer.active.cursorY + 1);
        terminal.open(document.getElementById('terminal'));
        // Draws the blocks of the QR code without the gaps that a font leaves between lines.
        terminal.loadAddon(new WebglAddon.WebglAddon(true));
        // The renderer draws in the next frame.
        await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
    }, `$ ${COMMAND}\r\n${output}`, COLUMNS);
    await savePicture(page, '#picture', file);
}

await withDemo((output) => withBrowser(async (browser) => {
    // The demo prints the link on a line of its own.
    const links = output.match(/^https?:\/\/\S+\/capture\?url=\S+/gm);
    if (!links) throw new Error(`no link in the output of the demo: ${output}`);
    await compose(browser, output, await onPhone(browser, links.at(-1)));
}));
