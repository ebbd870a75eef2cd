//! Character references that shops leave in titles and descriptions.

/// Replaces the common named references and all numeric ones by their characters, once; anything else stays.
pub(super) fn decode(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        decoded.push_str(&rest[..start]);
        rest = &rest[start..];
        // The longest reference, `&#x10FFFF;`, has ten bytes.
        let end = rest.bytes().take(10).position(|byte| byte == b';');
        match end.and_then(|end| Some((end, character(&rest[1..end])?))) {
            Some((end, character)) => {
                decoded.push(character);
                rest = &rest[end + 1..];
            }
            None => {
                decoded.push('&');
                rest = &rest[1..];
            }
        }
    }
    decoded + rest
}

fn character(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let hexadecimal = number.strip_prefix(['x', 'X']);
        let code = match hexadecimal {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        return char::from_u32(code.ok()?).filter(|character| !character.is_control());
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        "reg" => '®',
        "trade" => '™',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn references_become_characters_once() {
        assert_eq!(
            decode("Tom &amp; &quot;Jerry&#39;s&quot; &#x2764; &nbsp;x"),
            "Tom & \"Jerry's\" ❤  x"
        );
        assert_eq!(
            decode("&amp;lt; AT&T; R&D & &; &#0; &#xD800; ü&"),
            "&lt; AT&T; R&D & &; &#0; &#xD800; ü&"
        );
        assert_eq!(decode("&ü;&äöüäöü;"), "&ü;&äöüäöü;");
    }
}
