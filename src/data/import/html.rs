//! What shops leave of web pages in titles and descriptions.

/// The text in a piece of a page: without its tags, its character references (`&amp;`) decoded once, a blank for what no
/// terminal should be sent. A text of a script says nothing: the dump of 2018 has that of an advertisement for the titles
/// of some items.
pub(super) fn text(page: &str) -> String {
    if page.contains("var aPageStart") {
        return String::new();
    }
    let text = without_tags(page);
    html_escape::decode_html_entities(&text).replace(char::is_control, " ")
}

/// A blank for each tag: `<`, perhaps `/`, a letter, up to the next `>`. Any other `<` is one.
fn without_tags(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let name = tag[1..].strip_prefix('/').unwrap_or(&tag[1..]);
        match tag.find('>') {
            Some(end) if name.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                text.push(' ');
                rest = &tag[end + 1..];
            }
            _ => {
                text.push('<');
                rest = &tag[1..];
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn references_are_decoded_once() {
        assert_eq!(
            text("Tom &amp; &quot;Jerry&#39;s&quot; &#x2764; &eacute;&mdash;&#27;[x\t"),
            "Tom & \"Jerry's\" ❤ é—&#27;[x "
        );
        assert_eq!(
            text("&amp;lt;b&amp;gt; AT&T; R&D & &; ü&"),
            "&lt;b&gt; AT&T; R&D & &; ü&"
        );
        assert_eq!(text("&lt;b&gt;"), "<b>", "no tag of the page");
    }

    #[test]
    fn tags_are_blanks() {
        assert_eq!(text("<p class='a'>x<br/>y</p>z"), " x y z");
        assert_eq!(text("</span></span>"), "  ");
        assert_eq!(
            text("1 < 2 > 0, <3, <- and a<b"),
            "1 < 2 > 0, <3, <- and a<b"
        );
        assert_eq!(text("<script>var aPageStart = 1"), "");
    }
}
