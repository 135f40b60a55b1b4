// An OTLP/HTTP collector that keeps what it receives: JSON from Node.js, protobuf from the worker.

import { once } from 'node:events';
import { createServer } from 'node:http';
import { buffer } from 'node:stream/consumers';
import protobuf from 'protobufjs';

// The parts of opentelemetry/proto/collector/trace/v1/trace_service.proto that a viewer shows.
const { root } = protobuf.parse(`
    syntax = "proto3";
    message Request { repeated ResourceSpans resource_spans = 1; }
    message ResourceSpans { Resource resource = 1; repeated ScopeSpans scope_spans = 2; }
    message Resource { repeated KeyValue attributes = 1; }
    message ScopeSpans { Scope scope = 1; repeated Span spans = 2; }
    message Scope { string name = 1; string version = 2; }
    message KeyValue { string key = 1; AnyValue value = 2; }
    message AnyValue { oneof value { string string_value = 1; bool bool_value = 2; int64 int_value = 3; double double_value = 4; } }
    message Span {
        bytes trace_id = 1; bytes span_id = 2; bytes parent_span_id = 4; string name = 5; SpanKind kind = 6;
        fixed64 start_time_unix_nano = 7; fixed64 end_time_unix_nano = 8; repeated KeyValue attributes = 9; Status status = 15;
    }
    message Status { string message = 2; StatusCode code = 3; }
    enum StatusCode { STATUS_CODE_UNSET = 0; STATUS_CODE_OK = 1; STATUS_CODE_ERROR = 2; }
    enum SpanKind {
        SPAN_KIND_UNSPECIFIED = 0; SPAN_KIND_INTERNAL = 1; SPAN_KIND_SERVER = 2; SPAN_KIND_CLIENT = 3; SPAN_KIND_PRODUCER = 4;
        SPAN_KIND_CONSUMER = 5;
    }`);
const Request = root.lookupType('Request');
const IDS = ['traceId', 'spanId', 'parentSpanId'];

/** The JSON form of OTLP, in which ids are hexadecimal. */
function fromProtobuf(body) {
    const { resourceSpans } = Request.toObject(Request.decode(body), { longs: String, enums: String, arrays: true });
    for (const { scopeSpans } of resourceSpans) {
        for (const span of scopeSpans.flatMap(({ spans }) => spans)) {
            for (const id of IDS) span[id] = Buffer.from(span[id] ?? []).toString('hex');
        }
    }
    return resourceSpans;
}

/** Starts a collector. `spans()` counts the spans so far. */
export async function startCollector() {
    const resourceSpans = [];
    const server = createServer(async (request, response) => {
        const body = await buffer(request);
        const isJson = request.headers['content-type'].startsWith('application/json');
        resourceSpans.push(...(isJson ? JSON.parse(body).resourceSpans : fromProtobuf(body)));
        response.writeHead(200, { 'content-type': request.headers['content-type'] }).end(isJson ? '{}' : '');
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        resourceSpans,
        spans: () => resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans)),
        stop: () => server.close(),
    };
}
