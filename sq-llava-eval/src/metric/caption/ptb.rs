//! Tokens of captions as the COCO toolkit makes them: Stanford's PTBTokenizer (3.4.1, one caption
//! a line, lower case), of whose tokens the toolkit drops punctuation. Brackets become `-lrb-` and
//! `-rrb-` and stay, because the toolkit looks for them in capitals.
//!
//! The rules were found by giving captions to the original and are tested against its output;
//! as there, the rule with the longest match wins.

use std::sync::LazyLock;

use regex::Regex;

/// Tokens that are dropped.
const DROPPED: [&str; 13] = [
    "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";",
];

/// Abbreviations that keep their full stop, in lower case or with a capital.
const ABBREVIATIONS: &str = "adj|adm|adv|al|ala|alex|apr|ariz|assn|asst|attys|aug|ave|bhd|bldg|\
    blvd|brig|bros|calif|capt|cf|cie|cmdr|co|col|colo|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|\
    drs|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|intl|invt|jan|jos|jr|jul|jun|\
    kan|kans|ky|lieut|lt|ltd|maj|mar|md|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|mt|\
    mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pres|prof|pte|pty|pvt|rd|rep|reps|rev|rt|sen|\
    sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|tel|tenn|thu|thurs|tue|tues|univ|va|vs|\
    vt|wed|wis|wisc|wm|wyo";

/// Those that are words in lower case.
const CAPITAL_ABBREVIATIONS: &str = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash";

/// Those that are abbreviations before a number only.
const BEFORE_NUMBER: &str = "art|ca|fig|no|nos|op|pp|prop";

/// Two words written as one.
const JOINED: [(&str, usize); 6] = [
    ("cannot", 3),
    ("gonna", 3),
    ("wanna", 3),
    ("gotta", 3),
    ("gimme", 3),
    ("lemme", 3),
];

/// Signs that are written otherwise.
const WRITTEN: [(char, &str); 15] = [
    ('(', "-lrb-"),
    (')', "-rrb-"),
    ('[', "-lsb-"),
    (']', "-rsb-"),
    ('{', "-lcb-"),
    ('}', "-rcb-"),
    ('¢', "cents"),
    ('£', "#"),
    ('€', "$"),
    ('½', "1/2"),
    ('¼', "1/4"),
    ('¾', "3/4"),
    ('⅓', "1/3"),
    ('⅔', "2/3"),
    ('…', "..."),
];

/// Rules whose longest match is a token.
static TOKENS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    // Letters and digits, with the articles of `o'clock` and `d'angelo`.
    let part = r"(?:[dDoOlL]['’])?[\p{L}\p{M}\d]+";
    let joined = format!("{part}(?:[-_]{part})*");
    let abbreviations = format!("(?:(?i:{ABBREVIATIONS})|{CAPITAL_ABBREVIATIONS})\\.");
    let rules = [
        r"</?[A-Za-z!?][^<>\s]*>".to_owned(),
        r#"https?://[^\s"<>()]*[^\s"<>().,;:!?']"#.to_owned(),
        r"[A-Za-z0-9][\w.+-]*@(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+".to_owned(),
        r"[#@][\p{L}_]\w*".to_owned(),
        r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)".to_owned(),
        r"(?:\d{1,4}[- ])?\d{1,4}/\d{1,4}".to_owned(),
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}".to_owned(),
        r"\(\d{3}\) ?\d{3}-\d{4}".to_owned(),
        format!(r"{joined}(?:\\?/{joined})*"),
        // A sentence that begins without a space.
        r"\p{L}[\p{L}\p{M}\d]*(?:[.!?]\p{L}[\p{L}\p{M}\d]*)*".to_owned(),
        r"[A-Za-z](?:\.[A-Za-z])*\.".to_owned(),
        r"[Pp]h\.[Dd]\.".to_owned(),
        abbreviations,
        r"[A-Z]+(?:[+&][A-Z]+)+".to_owned(),
        r"[cC](?:\+\+|#)".to_owned(),
        r"(?:US|HK|NZ|NT|[ACMRS])\$".to_owned(),
        r"['’](?i:n['’]?|em|til|till|cause)".to_owned(),
        r"(?i:ma['’]am|s['’]mores|ne['’]er|y['’])".to_owned(),
        // Brackets that were escaped before.
        r"-[LR][RSC]B-|\\[*/]".to_owned(),
        r"[?!]+".to_owned(),
        r"\*+".to_owned(),
        r"_+".to_owned(),
    ];
    rules.iter().map(|rule| anchored(rule)).collect()
});

static NUMBERED: LazyLock<Regex> =
    LazyLock::new(|| anchored(&format!(r"((?i:{BEFORE_NUMBER})\.)\s*\d")));
static YEAR: LazyLock<Regex> = LazyLock::new(|| anchored(r"(['’]\d\ds?)(?:\s|$)"));
static SUFFIX: LazyLock<Regex> =
    LazyLock::new(|| anchored(r"(['’](?i:s|m|d|ll|re|ve))(?:[^\p{L}\d]|$)"));
static NOT: LazyLock<Regex> = LazyLock::new(|| anchored(r"(['’`][tT])(?:[^\p{L}\d]|$)"));
static TIS: LazyLock<Regex> = LazyLock::new(|| anchored(r"(['’][tT])(?i:is|was)(?:[^\p{L}\d]|$)"));
static SMILEY: LazyLock<Regex> =
    LazyLock::new(|| anchored(r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^\p{L}\d]|$)"));

fn anchored(rule: &str) -> Regex {
    // The rules are constants, and the tests below compile every one.
    Regex::new(&format!("^(?:{rule})")).expect("a valid rule")
}

/// Tokens of a caption, apart by single spaces.
pub fn tokenize(caption: &str) -> String {
    let mut tokens = Vec::new();
    let mut rest = caption;
    while let Some(letter) = rest.chars().next() {
        if letter.is_whitespace() {
            rest = &rest[letter.len_utf8()..];
            continue;
        }
        let length = longest(rest).unwrap_or(letter.len_utf8());
        let (token, after) = rest.split_at(length);
        rest = after;
        if let Some(negation) = NOT.captures(after).and_then(|found| found.get(1))
            && let Some(stem) = token.strip_suffix(['n', 'N'])
            && stem
                .chars()
                .all(|letter| letter.is_alphanumeric() || letter == '-')
        {
            push(&mut tokens, stem);
            push(&mut tokens, &format!("n{}", negation.as_str()));
            rest = &after[negation.end()..];
        } else if let Some((_, at)) = joined(token) {
            push(&mut tokens, &token[..at]);
            push(&mut tokens, &token[at..]);
        } else {
            push(&mut tokens, token);
        }
    }
    tokens.join(" ")
}

/// Length of the longest token at the beginning of a text.
fn longest(text: &str) -> Option<usize> {
    let with_context = [&NUMBERED, &YEAR, &SUFFIX, &TIS, &SMILEY]
        .into_iter()
        .filter_map(|rule| Some(rule.captures(text)?.get(1)?.end()));
    let alone = TOKENS
        .iter()
        .filter_map(|rule| Some(rule.find(text)?.end()));
    with_context.chain(alone).max()
}

fn joined(token: &str) -> Option<(&'static str, usize)> {
    JOINED
        .into_iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(token))
}

fn push(tokens: &mut Vec<String>, token: &str) {
    let mut text = String::new();
    for letter in token.to_lowercase().chars() {
        match WRITTEN.iter().find(|(sign, _)| *sign == letter) {
            Some((_, written)) => text.push_str(written),
            None => match letter {
                '’' | '‘' => text.push('\''),
                '“' | '”' | '"' => text.push_str("''"),
                '–' | '—' => text.push_str("--"),
                letter => text.push(letter),
            },
        }
    }
    if !text.is_empty() && !DROPPED.contains(&text.as_str()) {
        tokens.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines `caption ⇥ tokens` that the original made.
    const CASES: &str = include_str!("ptb_cases.tsv");

    #[test]
    fn tokens_are_those_of_the_original() {
        let mut wrong = Vec::new();
        for line in CASES.lines().filter(|line| !line.starts_with('#')) {
            let (caption, tokens) = line.split_once('\t').expect("a tab");
            let found = tokenize(caption);
            if found != tokens {
                wrong.push(format!("{caption}\n  ours:  {found}\n  theirs: {tokens}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
