//! The id of a request.

/// The id of a request in its events, copies, spans and log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    pub(crate) fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 255 bytes, the limit of AMQP's short strings, cut between characters.
    pub(crate) fn short(&self) -> &str {
        &self.0[..self.0.floor_char_boundary(255)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_request_ids_are_cut_between_characters() {
        let id = RequestId::new("é".repeat(200));
        assert_eq!(id.short().len(), 254);
        assert_eq!(id.as_str().len(), 400);
    }
}
