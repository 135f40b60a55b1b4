// Reads events and writes a request and an ending, with the types that json-schema-to-typescript makes.
//
//   node check.js EVENTS REQUESTS ENDINGS
import { appendFileSync, readFileSync } from 'node:fs';
import type { HandoffFailedEvent } from './ts/failed.js';
import type { HandoffReadyEvent } from './ts/ready.js';
import type { VerificationEnding } from './ts/ending.js';
import type { VerificationRequest } from './ts/request.js';

const [, , events, requests, endings] = process.argv as [string, string, string, string, string];

for (const line of readFileSync(events, 'utf8').trim().split('\n')) {
    const event = JSON.parse(line) as HandoffReadyEvent | HandoffFailedEvent;
    // Compiles only if `type` is a constant that distinguishes the two.
    if (event.type === 'handoff.ready') {
        const link: string = event.data.url;
        console.log(`ready ${event.data.userId} ${new URL(link).pathname} ${event.data.reused}`);
    } else {
        const code: 'invalid_request' | 'request_expired' | 'platform_rejected' | 'retries_exhausted' = event.data.reason.code;
        const user: string | null = event.data.userId;
        console.log(`failed ${user} ${code} ${event.data.attempts.toFixed()}`);
    }
}

const request: VerificationRequest = { userId: 'ts-user', metadata: { plan: 'basic' } };
// @ts-expect-error: the user is required
const nobody: VerificationRequest = { workflowId: 'default' };
const ending: VerificationEnding = { userId: 'ts-user' };
const session: VerificationEnding = { sessionId: 7 };
// @ts-expect-error: an ending names a user or a session
const neither: VerificationEnding = { workflowId: 'default' };
// @ts-expect-error: null means absent
const absent: VerificationEnding = { userId: null };
void [nobody, neither, absent];
appendFileSync(requests, `${JSON.stringify(request)}\n`);
appendFileSync(endings, `${JSON.stringify(ending)}\n${JSON.stringify(session)}\n`);
