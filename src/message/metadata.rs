//! The `metadata` of a request.

use serde::Serialize;
use serde_json::value::RawValue;

use super::decode;

/// A JSON object, passed to the platform byte for byte, so that no number loses a digit.
#[derive(Clone, Default)]
pub struct Metadata {
    /// `key:value,` for each entry but `externalUserId`.
    entries: String,
}

impl Metadata {
    /// The key that names the user to the platform.
    const USER: &'static str = "externalUserId";

    /// Parses a JSON object, or returns `None` if it is not one.
    pub(super) fn parse(json: &str) -> Option<Self> {
        let mut entries = String::with_capacity(json.len());
        for (key, value) in decode::entries(json)? {
            if !decode::is_key(key, Self::USER) {
                entries.extend([key.get(), ":", value.get(), ","]);
            }
        }
        Some(Self { entries })
    }

    /// Returns the object with `externalUserId` set to the user, whatever the producer set it to.
    pub(crate) fn for_user(&self, user_id: &str) -> impl Serialize + 'static {
        let entries = &self.entries;
        let key = Self::USER;
        let user_id = serde_json::Value::from(user_id);
        // Cannot fail: every part is valid JSON.
        RawValue::from_string(format!("{{{entries}\"{key}\":{user_id}}}")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_user_id_of_the_producer_is_dropped() {
        let json = r#"{"externalUserId":1,"x":2,"\u0065xternalUserId":3}"#;
        let metadata = Metadata::parse(json).unwrap().for_user("u");
        let sent = serde_json::to_string(&metadata).unwrap();
        assert_eq!(sent, r#"{"x":2,"externalUserId":"u"}"#);
    }
}
