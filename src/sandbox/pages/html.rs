//! Fills HTML templates.

/// Replaces the placeholders of a template.
///
/// `{{name}}` becomes the escaped value, and `{{{name}}}` the value as it is, which must not
/// contain input. Placeholders in values are not replaced. A placeholder without a value becomes
/// empty.
pub(super) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let value = |name| {
        let value = values.iter().find(|(known, _)| *known == name);
        debug_assert!(value.is_some(), "no value for {name}");
        value.map(|(_, value)| *value).unwrap_or_default()
    };
    let mut page = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{")
        && let Some((name, after)) = after.split_once("}}")
    {
        page.push_str(before);
        rest = after;
        match name.strip_prefix('{') {
            None => escape(value(name), &mut page),
            Some(name) => {
                page.push_str(value(name));
                rest = after.strip_prefix('}').unwrap_or(after);
            }
        }
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
        let value = "<script>alert('&\"')</script>";
        assert_eq!(
            fill("<p title=\"{{a}}\">", &[("a", value)]),
            "<p title=\"&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;\">"
        );
    }

    #[test]
    fn values_are_not_templates() {
        let values = [("a", "{{b}}"), ("b", "<b>{{a}}</b>")];
        assert_eq!(fill("{{a}} {{{b}}} {{", &values), "{{b}} <b>{{a}}</b> {{");
    }
}
