//! Templates and escaping. What is inserted is escaped unless it says that it is markup.

use std::borrow::Cow;

/// Something to insert into a template.
pub(super) enum Value<'a> {
    /// Text: shown as it is, whatever it holds.
    Text(Cow<'a, str>),
    /// Markup made here.
    Markup(Cow<'a, str>),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn markup(markup: impl Into<Cow<'a, str>>) -> Self {
        Self::Markup(markup.into())
    }
}

/// Fills the places of a template, written `{{name}}`. What is inserted is not looked through
/// again. A place without a value stays empty.
pub(super) fn fill(template: &str, values: &[(&str, Value<'_>)]) -> String {
    let mut page = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{")
        && let Some((name, after)) = after.split_once("}}")
    {
        page.push_str(before);
        match values.iter().find(|(known, _)| *known == name).map(|(_, value)| value) {
            Some(Value::Text(text)) => escape(text, &mut page),
            Some(Value::Markup(markup)) => page.push_str(markup),
            None => debug_assert!(false, "no value for {name}"),
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

/// Escapes text for element content and for attribute values in quotes.
fn escape(text: &str, page: &mut String) {
    for c in text.chars() {
        match c {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            c => page.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let value = Value::text("<script>alert('&\"')</script>");
        assert_eq!(
            fill("<p title=\"{{a}}\">", &[("a", value)]),
            "<p title=\"&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;\">"
        );
    }

    #[test]
    fn what_is_inserted_is_not_a_template() {
        let values = [("a", Value::text("{{b}}")), ("b", Value::markup("<b>{{a}}</b>"))];
        assert_eq!(fill("{{a}} {{b}} {{", &values), "{{b}} <b>{{a}}</b> {{");
    }
}
