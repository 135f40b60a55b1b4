//! What the binary under test logs and reports, where a test awaits or asserts it, by subsystem.

// The life of the process.
pub const SERVING_HTTP: &str = "serving /livez, /readyz and /metrics";
pub const AUTHORITIES_UNREADABLE: &str =
    "certificate authorities cannot be read: TLS connections that need them will fail";
pub const UNKNOWN_SETTING: &str = "unknown setting ignored: check its name";
pub const SHUTTING_DOWN: &str = "shutting down";
pub const STOPPED: &str = "stopped";
pub const SECOND_SIGNAL: &str = "handoff: stopped at once by a second signal";
pub const TRACES_DISABLED: &str = "invalid OTLP settings: running without traces";
pub const SPANS_DROPPED: &str = "trace export failed: dropping spans until it succeeds";

// Consuming, and one line for each request.
pub const CONSUMING: &str = "consuming";
/// The field of `CONSUMING` with the prefetch window's state, and two of its values.
pub const WINDOW: &str = "prefetch_mode";
pub const WINDOW_FULL: &str = "normal";
pub const WINDOW_ONE_AT_A_TIME: &str = "one at a time";
pub const NOT_CONSUMING: &str = "cannot consume from RabbitMQ: retrying";
pub const NO_MEMORY: &str =
    "large message exceeds the memory set aside: requeueing it until there is room";
pub const WINDOW_GROWN: &str = "prefetch changed";
pub const SERVING_ALONE: &str =
    "message redelivered often: serving it alone, then on a new connection";
pub const REQUEST_FINISHED: &str = "request finished";
pub const HANDED_BACK: &str = "request requeued: it will be redelivered";
pub const HELD_TOO_LONG: &str = "request held too long: moved to the end of the queue";

// RabbitMQ.
pub const HOLD_LIMIT_LOWERED: &str =
    "RabbitMQ's consumer_timeout is shorter than requests are held: holding them for less";
pub const RABBITMQ_SETTINGS_CHANGED: &str = "RabbitMQ settings changed: replacing the connection";
pub const NOT_REPLACED: &str =
    "cannot connect with changed RabbitMQ settings: retrying, still consuming with the former ones";
pub const ENDINGS_NOT_CONSUMED: &str = "cannot consume endings: links are not forgotten; retrying";
pub const FORMER_SETTINGS: &str = "connected with the former RabbitMQ settings: still trying the changed ones, which have not worked yet";
pub const RABBITMQ_LOST: &str = "connection lost: reconnecting to RabbitMQ";
pub const CONSUMER_OF_ENDINGS_FORGOTTEN: &str =
    "RabbitMQ lost the consumer of endings: the queue has messages and no consumer";
pub const CONSUMER_FORGOTTEN: &str =
    "RabbitMQ lost the consumer: the queue has messages and no consumer";
pub const TOPOLOGY_DIFFERS: &str = "topology check failed: still consuming";
pub const PUBLISHING_BLOCKED: &str =
    "publishing blocked by RabbitMQ (memory or disk alarm): waiting";
pub const PUBLISHING_UNBLOCKED: &str = "publishing unblocked by RabbitMQ: resumed";
pub const COPY_NOT_TAKEN: &str = "publish not confirmed: retrying";
pub const FAILED_EVENT_UNROUTABLE: &str = "handoff.failed unroutable: no queue is bound for it";

// The platform and the gate before it.
pub const BREAKER_OPEN: &str = "platform paused: circuit breaker open";
pub const TOKEN_REFUSED: &str = "platform paused: token call refused, check API key and URL";
pub const DEEPLINK_REFUSED: &str =
    "platform paused: deeplink call refused, check API key, URL and flow";
pub const HALF_OPEN_FOR_NEXT: &str =
    "no request is held: circuit breaker half-open, the next request is the probe";
pub const HALF_OPEN_AFTER_ANSWER: &str =
    "platform answers another replica: circuit breaker half-open, the next request is the probe";
pub const REOPENED: &str = "probe failed: circuit breaker open again";
pub const EXPIRY_IGNORED: &str = "expiresAt of a deeplink is missing, unreadable or past: ignored";
pub const RATE_LIMITED: &str = "platform paused: rate limited";
/// The field of `RATE_LIMITED` with the pause in seconds.
pub const RETRY_AFTER: &str = "retry_after_s";
pub const RESUMED: &str = "platform answers again: circuit breaker closed";
pub const CALL_RETRIED: &str = "platform call failed: retrying";
pub const SECRET_FILE_INVALID: &str = "secret file is invalid: keeping the former value";
pub const SECRET_FILE_CHANGED: &str = "secret file changed: using the new value";
/// The field `error` of `SECRET_FILE_INVALID` for an empty file.
pub const API_KEY_FILE_EMPTY: &str = "HANDOFF_IDV_API_KEY_FILE: names a file that is empty";
pub const TOKEN_CALL_UNCONNECTED: &str = "the token call could not connect to the platform";

// Redis.
pub const REDIS_UNAVAILABLE: &str = "Redis unavailable: serving requests without the cache";
pub const REDIS_REFUSES: &str = "Redis refuses commands: serving requests without the cache";
pub const REDIS_ACCEPTS: &str = "Redis accepts commands again: using the cache";
pub const REDIS_CREDENTIALS_REFUSED: &str = "user or password refused";
pub const REDIS_RECONNECTED: &str = "Redis available again: using the cache";
pub const REDIS_CONNECTION_DISCARDED: &str = "Redis connection dropped: reconnecting";
pub const REQUEST_WITHOUT_CACHE: &str = "Redis unavailable: serving the request without it";
pub const LINK_NOT_STORED: &str = "link not stored in Redis: publishing it anyway";

// Error texts that appear in log fields, events and dead letters.
pub const UNTRUSTED_AUTHORITY: &str = "authority that is not trusted";
pub const WRONG_CERTIFICATE_NAME: &str = "for another name";
/// `renew` is repeated with a wrong type: two mistakes, each reported once.
pub const REPEATED_MISTAKE_ONCE: &str =
    "`renew` appears more than once; `renew` must be true or false; it is a number";

// `handoff sandbox`.
pub const SANDBOX_READY: &str = "sandbox ready";
pub const SANDBOX_STOPPING: &str = "sandbox stopping";
pub const WEBHOOK_CALLED: &str = "webhook called";
pub const WEBHOOK_FAILED: &str = "webhook call failed";
pub const WEBHOOK_DROPPED: &str = "webhook call dropped";
