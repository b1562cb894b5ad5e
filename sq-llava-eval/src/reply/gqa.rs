//! GQA: exact match.

/// What is compared: the text without full stops at its end, in lower case.
pub fn prediction(text: &str) -> String {
    text.trim_end_matches('.').to_lowercase()
}

/// Whether an answer is the reference.
pub fn is_right(text: &str, answer: &str) -> bool {
    prediction(text) == answer
}
