// Validates messages against their schemas with Ajv in strict mode.
//
//   node validate.mjs SCHEMAS EVENTS REQUESTS ENDINGS
import { readFileSync, readdirSync } from 'node:fs';
import { Ajv } from 'ajv';
import formats from 'ajv-formats';

const [, , schemas, events, requests, endings] = process.argv;
// A field may be null or of its type.
const ajv = new Ajv({ strict: true, allowUnionTypes: true });
formats.default(ajv);
const validators = Object.fromEntries(
    readdirSync(schemas).map((file) => [file, ajv.compile(JSON.parse(readFileSync(`${schemas}/${file}`, 'utf8')))]),
);
const messages = (file) => readFileSync(file, 'utf8').trim().split('\n').map((line) => JSON.parse(line));
let wrong = 0;
const validate = (schema, message, expected = true) => {
    const valid = validators[schema];
    if (valid(message) !== expected) {
        wrong += 1;
        console.error(`${schema}: ${JSON.stringify(message)}: ${expected ? ajv.errorsText(valid.errors) : 'is valid'}`);
    }
};
for (const event of messages(events)) {
    validate(`${event.type.split('.')[1]}.json`, event);
    validate(`${event.type.split('.')[1]}.json`, { ...event, id: undefined }, false);
}
for (const request of messages(requests)) {
    validate('request.json', request);
    const event = { specversion: '1.0', id: '1', source: '/test', type: 'verification.requested', data: request };
    validate('request-event.json', event);
    validate('request.json', event, false);
}
for (const ending of messages(endings)) {
    validate('ending.json', ending);
    validate('ending-event.json', { specversion: '1.0', id: '1', source: '/test', type: 'verification.ended', data: ending });
}
for (const ending of [{}, { workflowId: 'default' }, { userId: null }, { userId: null, sessionId: null }]) {
    validate('ending.json', ending, false);
}
process.exit(wrong ? 1 : 0);
