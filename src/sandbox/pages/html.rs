//! Fills HTML templates. Values are escaped unless they are marked as markup.

use std::borrow::Cow;

/// A value to insert into a template.
pub(super) enum Value<'a> {
    /// Escaped.
    Text(Cow<'a, str>),
    /// Inserted verbatim. Must not contain input.
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

/// Replaces the placeholders of a template, written `{{name}}`.
///
/// Placeholders in values are not replaced. A placeholder without a value becomes empty.
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

/// Escapes text for element content and quoted attribute values.
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
    fn values_are_not_templates() {
        let values = [("a", Value::text("{{b}}")), ("b", Value::markup("<b>{{a}}</b>"))];
        assert_eq!(fill("{{a}} {{b}} {{", &values), "{{b}} <b>{{a}}</b> {{");
    }
}
