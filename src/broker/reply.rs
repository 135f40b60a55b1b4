//! What RabbitMQ's refusals mean, in words of our own.
//!
//! RabbitMQ's texts quote the virtual host, which is part of the URL, and the user. A mistake in the URL
//! may put anything into the virtual host: in `amqp://…@a,amqp://user:password@b`, a password.

use std::time::Duration;

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// Anything longer is no limit.
const MAX_LIMIT_DIGITS: usize = 10;

/// RabbitMQ's code, a part of its text, and what this means. The first row that fits counts; an empty
/// part fits every text.
const CAUSES: [(&str, &str, &str); 38] = [
    (
        "NOT_ALLOWED",
        "channels opened for user",
        "the user's limit on channels is reached (set_user_limits: max-channels)",
    ),
    (
        "NOT_ALLOWED",
        "channels opened on node",
        "the node's limit on channels is reached (channel_max_per_node)",
    ),
    ("NOT_ALLOWED", CHANNEL_LIMIT, "the connection's limit on channels is reached (channel_max)"),
    (
        "NOT_ALLOWED",
        "user connection limit",
        "the user's limit on connections is reached (set_user_limits: max-connections)",
    ),
    (
        "NOT_ALLOWED",
        "node connection limit",
        "the node's limit on connections is reached (connection_max)",
    ),
    ("NOT_ALLOWED", "cluster connection limit", "the cluster's limit on connections is reached"),
    (
        "NOT_ALLOWED",
        "connection limit",
        "the virtual host's limit on connections is reached (set_vhost_limits: max-connections)",
    ),
    (
        "NOT_ALLOWED",
        "of consumers per channel",
        "the channel's limit on consumers is reached (consumer_max_per_channel)",
    ),
    ("NOT_ALLOWED", "refused for user", "the user has no permissions in the virtual host"),
    ("NOT_ALLOWED", "is down", "the virtual host is down: see RabbitMQ's log"),
    ("NOT_ALLOWED", "not found", "the virtual host does not exist: check the end of the URL"),
    ("NOT_ALLOWED", "", "see RabbitMQ's log"),
    (
        "ACCESS_REFUSED",
        " - Login was refused using authentication mechanism EXTERNAL",
        "the client certificate is no login: no user has its name (ssl_cert_login_from), or ssl_options.verify is \
         not verify_peer",
    ),
    ("ACCESS_REFUSED", " - Login was refused", "user or password refused"),
    ("ACCESS_REFUSED", " - configure access to ", "the user has no `configure` permission"),
    ("ACCESS_REFUSED", " - write access to ", "the user has no `write` permission"),
    ("ACCESS_REFUSED", " - read access to ", "the user has no `read` permission"),
    // RabbitMQ before 3.11 does not say which.
    ("ACCESS_REFUSED", " - access to ", "the user lacks a permission (configure, write or read)"),
    ("ACCESS_REFUSED", "exclusive use", "another consumer uses the queue exclusively"),
    ("ACCESS_REFUSED", "", "see RabbitMQ's log"),
    ("NOT_FOUND", " - no exchange ", "the exchange does not exist"),
    ("NOT_FOUND", " - no queue ", "the queue does not exist"),
    ("NOT_FOUND", "down or inaccessible", "the queue's node is down"),
    ("RESOURCE_LOCKED", "", "another connection uses the queue exclusively"),
    (
        "PRECONDITION_FAILED",
        " - delivery acknowledgement ",
        "a delivery was unsettled for too long (consumer_timeout)",
    ),
    ("PRECONDITION_FAILED", " - unknown delivery tag ", "unknown delivery tag"),
    ("PRECONDITION_FAILED", " - inequivalent arg ", "it exists with other arguments"),
    ("PRECONDITION_FAILED", " - message size ", "the message is larger than max_message_size"),
    (
        "PRECONDITION_FAILED",
        "queue limit in vhost",
        "the virtual host's limit on queues is reached (set_vhost_limits: max-queues)",
    ),
    (
        "PRECONDITION_FAILED",
        "queue limit in cluster",
        "the cluster's limit on queues is reached (cluster_queue_limit)",
    ),
    ("PRECONDITION_FAILED", "exchange limit", "the limit on exchanges is reached"),
    ("PRECONDITION_FAILED", "", "see RabbitMQ's log"),
    ("CONNECTION_FORCED", "'shutdown'", "RabbitMQ shuts down"),
    ("CONNECTION_FORCED", "", "an operator closed the connection"),
    ("RESOURCE_ERROR", "", "RabbitMQ is out of resources: see its log"),
    (
        "COMMAND_INVALID",
        "authentication mechanism",
        "the login mechanism is off; for client certificates, enable rabbitmq_auth_mechanism_ssl and add \
         EXTERNAL to auth_mechanisms",
    ),
    ("INTERNAL_ERROR", "", "RabbitMQ failed: see its log"),
    ("FRAME_ERROR", "", "a frame is invalid or too large"),
];

/// A part of each text about a limit on channels.
const CHANNEL_LIMIT: &str = "number of channels";

/// Whether RabbitMQ closed the connection because the user, the node or the connection has too many channels.
pub(super) fn is_channel_limit(error: &AMQPError) -> bool {
    error.get_message().as_str().contains(CHANNEL_LIMIT)
        && *error.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
}

/// RabbitMQ's code, and what it means where that is known. Quotes nothing of RabbitMQ's text.
pub(super) fn describe(error: &AMQPError) -> String {
    let code = match error.kind() {
        AMQPErrorKind::Soft(error) => soft_code(error),
        AMQPErrorKind::Hard(error) => hard_code(error),
    };
    describe_text(code, error.get_message().as_str())
}

fn describe_text(code: &str, text: &str) -> String {
    let fits = |row: &&(&str, &str, &str)| row.0 == code && text.contains(row.1);
    match CAUSES.iter().find(fits) {
        Some((_, _, cause)) => match limit(text) {
            Some(limit) => format!("{code}: {cause}; it is {limit}"),
            None => format!("{code}: {cause}"),
        },
        None => code.to_owned(),
    }
}

/// The number in "… limit of (15,000)", "… limit of 15000" (RabbitMQ 4.3) or "… limit (5000) is reached", which
/// ends the text.
fn limit(text: &str) -> Option<&str> {
    let text = text.strip_suffix(" is reached").unwrap_or(text);
    let (rest, number) = match text.strip_suffix(')') {
        Some(text) => text.rsplit_once('(')?,
        None => text.rsplit_once(' ').filter(|(rest, _)| rest.ends_with("limit of"))?,
    };
    let is_number = |c: char| c.is_ascii_digit() || c == ',';
    let is_limit = rest.contains("limit") && (1..=MAX_LIMIT_DIGITS).contains(&number.len());
    (is_limit && number.chars().all(is_number)).then_some(number)
}

/// RabbitMQ's `consumer_timeout`, if it closed the channel because a delivery was unsettled for longer.
pub(super) fn consumer_timeout(error: &AMQPError) -> Option<Duration> {
    parse_consumer_timeout(error.get_message().as_str())
}

fn parse_consumer_timeout(text: &str) -> Option<Duration> {
    // "delivery acknowledgement on channel 1 timed out. Timeout value used: 300000 ms. […]"
    let (_, timeout) = text.split_once("delivery acknowledgement")?;
    let (_, timeout) = timeout.split_once("Timeout value used: ")?;
    let digits = timeout.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().map(Duration::from_millis)
}

fn soft_code(error: &AMQPSoftError) -> &'static str {
    match error {
        AMQPSoftError::CONTENTTOOLARGE => "CONTENT_TOO_LARGE",
        AMQPSoftError::NOROUTE => "NO_ROUTE",
        AMQPSoftError::NOCONSUMERS => "NO_CONSUMERS",
        AMQPSoftError::ACCESSREFUSED => "ACCESS_REFUSED",
        AMQPSoftError::NOTFOUND => "NOT_FOUND",
        AMQPSoftError::RESOURCELOCKED => "RESOURCE_LOCKED",
        AMQPSoftError::PRECONDITIONFAILED => "PRECONDITION_FAILED",
    }
}

fn hard_code(error: &AMQPHardError) -> &'static str {
    match error {
        AMQPHardError::CONNECTIONFORCED => "CONNECTION_FORCED",
        AMQPHardError::INVALIDPATH => "INVALID_PATH",
        AMQPHardError::FRAMEERROR => "FRAME_ERROR",
        AMQPHardError::SYNTAXERROR => "SYNTAX_ERROR",
        AMQPHardError::COMMANDINVALID => "COMMAND_INVALID",
        AMQPHardError::CHANNELERROR => "CHANNEL_ERROR",
        AMQPHardError::UNEXPECTEDFRAME => "UNEXPECTED_FRAME",
        AMQPHardError::RESOURCEERROR => "RESOURCE_ERROR",
        AMQPHardError::NOTALLOWED => "NOT_ALLOWED",
        AMQPHardError::NOTIMPLEMENTED => "NOT_IMPLEMENTED",
        AMQPHardError::INTERNALERROR => "INTERNAL_ERROR",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_named_and_not_quoted() {
        for (code, text, cause) in [
            ("NOT_ALLOWED", "vhost b,amqp://u:s3cret@c not found", "does not exist"),
            ("NOT_ALLOWED", "access to vhost 's3cret' refused for user 's3cret'", "no permissions"),
            (
                "NOT_ALLOWED",
                "access to vhost 's3cret' refused for user 's3cret': connection limit (0) is reached",
                "virtual host's limit on connections is reached (set_vhost_limits: max-connections); it is 0",
            ),
            (
                "NOT_ALLOWED",
                "connection refused for user 's3cret': user connection limit (1) is reached",
                "user's limit on connections is reached (set_user_limits: max-connections); it is 1",
            ),
            (
                "NOT_ALLOWED",
                "number of channels opened for user 's3cret' has reached the maximum allowed user limit of (5)",
                "the user's limit on channels is reached (set_user_limits: max-channels); it is 5",
            ),
            (
                "NOT_ALLOWED",
                "number of channels opened for user 's3cret' has reached the maximum allowed user limit of 5",
                "the user's limit on channels is reached (set_user_limits: max-channels); it is 5",
            ),
            (
                "NOT_ALLOWED",
                "number of channels opened on node 's3cret' has reached the maximum allowed limit of (15,000)",
                "the node's limit on channels is reached (channel_max_per_node); it is 15,000",
            ),
            (
                "PRECONDITION_FAILED",
                "cannot declare queue 's3cret': queue limit in vhost 's3cret' (7) is reached",
                "the virtual host's limit on queues is reached (set_vhost_limits: max-queues); it is 7",
            ),
            (
                "ACCESS_REFUSED",
                "Login was refused using authentication mechanism PLAIN.",
                "password",
            ),
            (
                "ACCESS_REFUSED",
                "Login was refused using authentication mechanism EXTERNAL. For details see",
                "ssl_cert_login_from",
            ),
            ("COMMAND_INVALID", "unknown authentication mechanism 's3cret'", "rabbitmq_auth_mech"),
            ("ACCESS_REFUSED", "write access to exchange 's3cret' in vhost '/'", "`write`"),
            ("NOT_FOUND", "no exchange 'handoff' in vhost 's3cret'", "the exchange"),
            ("CONNECTION_FORCED", "s3cret", "operator"),
            ("PRECONDITION_FAILED", "inequivalent arg 's3cret' for queue", "other arguments"),
            ("SYNTAX_ERROR", "s3cret", ""),
        ] {
            let described = describe_text(code, &format!("{code} - {text}"));
            assert!(described.starts_with(code) && described.contains(cause), "{described}");
            assert!(!described.contains("s3cret"), "{described}");
        }
    }

    #[test]
    fn consumer_timeout_is_read_from_the_reply_of_rabbitmq() {
        let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value \
                    used: 300000 ms. This timeout value can be configured, see consumers doc guide to learn \
                    more";
        assert_eq!(parse_consumer_timeout(text), Some(Duration::from_secs(300)));
        assert_eq!(parse_consumer_timeout("PRECONDITION_FAILED - unknown delivery tag 99"), None);
    }
}
