// Programs that a picture needs: they run until it is made, and log into a folder.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync } from 'node:fs';
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
    const [stops, logs] = [[], []];
    const start = (name, command, args, env = {}) => {
        const log = join(folder, `${name}.log`);
        const output = openSync(log, 'w');
        const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', output, output] });
        closeSync(output);
        const exited = once(child, 'exit');
        logs.push(log);
        const stop = async () => {
            if (child.exitCode === null) child.kill();
            await exited;
        };
        stops.push(stop);
        return stop;
    };
    try {
        return await use(start);
    } catch (error) {
        for (const log of logs) console.error(`${log}:\n${readFileSync(log, 'utf8').slice(-2000)}`);
        throw error;
    } finally {
        await Promise.all(stops.map((stop) => stop()));
    }
}
