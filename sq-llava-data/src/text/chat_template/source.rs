//! The parts of a Jinja source.

use std::sync::LazyLock;

use regex::Regex;

/// Comments, raw text, expressions, statements; what is between them is text.
static PARTS: LazyLock<Regex> = LazyLock::new(|| {
    let parts = r#"(?sx)
        (?<comment> \{\# .*? \#\} )
        | \{%[-+]?\s*raw\s*[-+]?%\} (?<raw> .*?) \{%[-+]?\s*endraw\s*[-+]?%\}
        | (?<code> (?: \{\{ | \{% ) (?: '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | [^'"] )*? (?: \}\} | %\} ) )"#;
    Regex::new(parts).expect("a valid pattern")
});

static STRINGS: LazyLock<Regex> = LazyLock::new(|| {
    let strings = r#"(?s)'((?:\\.|[^'\\])*)'|"((?:\\.|[^"\\])*)""#;
    Regex::new(strings).expect("a valid pattern")
});

/// A part of a source.
pub(super) enum Part<'a> {
    /// Written as it stands.
    Text(&'a str),
    /// `{{ … }}` or `{% … %}`.
    Code(&'a str),
    /// Comments, and raw text with its tags.
    Other {
        /// The part.
        source: &'a str,
        /// What of it is written.
        raw: &'a str,
    },
}

/// A source in parts, which together are the source.
pub(super) fn parts(source: &str) -> Vec<Part<'_>> {
    let mut found = Vec::new();
    let mut done = 0;
    for part in PARTS.captures_iter(source) {
        let whole = part.get_match();
        found.push(Part::Text(&source[done..whole.start()]));
        found.push(match part.name("code") {
            Some(code) => Part::Code(code.as_str()),
            None => Part::Other {
                source: whole.as_str(),
                raw: part.name("raw").map_or("", |raw| raw.as_str()),
            },
        });
        done = whole.end();
    }
    found.push(Part::Text(&source[done..]));
    found
}

/// All texts and string constants of a source, with a zero byte between them.
pub(super) fn literals(source: &str) -> String {
    let mut found: Vec<String> = Vec::new();
    for part in parts(source) {
        match part {
            Part::Text(text) | Part::Other { raw: text, .. } => found.push(text.to_owned()),
            Part::Code(code) => found.extend(STRINGS.captures_iter(code).map(|string| {
                let inner = string.get(1).or(string.get(2));
                unescaped(inner.map_or("", |inner| inner.as_str()))
            })),
        }
    }
    found.join("\0")
}

/// A string constant without its backslashes.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match (c, chars.clone().next()) {
            ('\\', Some(next)) => {
                chars.next();
                match next {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other => other,
                }
            }
            _ => c,
        });
    }
    out
}
