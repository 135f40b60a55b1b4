// Programs that a picture needs: they run until it is made, and log into a folder.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';

export async function freePort() {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address();
    server.close();
    await once(server, 'close');
    return port;
}

/** Whether a URL answers with a status of success. */
export const answers = (url) => fetch(url).then((response) => response.ok, () => false);

/** Calls `use` with a function that starts a program, and returns one that stops it. All end after `use`. */
export async function withPrograms(folder, use) {
    const stops = [];
    const start = (name, command, args, env = {}) => {
        const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
        const exited = once(child, 'exit');
        const log = createWriteStream(join(folder, `${name}.log`));
        child.stdout.pipe(log, { end: false });
        child.stderr.pipe(log, { end: false });
        const stop = async () => {
            if (child.exitCode === null) child.kill();
            await exited;
        };
        stops.push(stop);
        return stop;
    };
    try {
        return await use(start);
    } finally {
        await Promise.all(stops.map((stop) => stop()));
    }
}
