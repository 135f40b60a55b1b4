// The sandbox: the simulated platform of the pictures.

import { answers, freePort } from './programs.mjs';
import { until } from './browser.mjs';

/** Starts a sandbox, and returns its URL, the settings of its workers, and a function that injects faults. */
export async function startSandbox(start, handoff) {
    const url = `http://127.0.0.1:${await freePort()}`;
    start('sandbox', handoff, ['sandbox', '--addr', new URL(url).host, '--latency', '80ms', '--jitter', '60ms']);
    await until('the sandbox', () => answers(`${url}/sandbox/stats`));
    return {
        settings: { HANDOFF_IDV_URL: url, HANDOFF_IDV_API_KEY: 'sandbox-key', HANDOFF_IDV_WORKFLOW_ID: 'onboarding' },
        async fail(faults) {
            const body = JSON.stringify(faults);
            const headers = { 'content-type': 'application/json' };
            const { ok, status } = await fetch(`${url}/sandbox/faults`, { method: 'PUT', body, headers });
            if (!ok) throw new Error(`the sandbox answers ${status} to ${body}`);
        },
    };
}
