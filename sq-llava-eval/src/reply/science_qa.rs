//! ScienceQA: the choice in an answer.

/// Letters that an answer may name.
pub const LETTERS: [char; 5] = ['A', 'B', 'C', 'D', 'E'];

/// Index of the choice that an answer names: it is exactly a letter, begins with a letter and
/// `. `, or says `The answer is X` and one more character exactly once. `None` for anything else,
/// and for a letter beyond the choices.
pub fn choice(text: &str, choices: usize) -> Option<usize> {
    let letter = letter(text)?;
    let index = LETTERS.iter().position(|known| *known == letter)?;
    Some(index).filter(|index| *index < choices)
}

fn letter(text: &str) -> Option<char> {
    let mut letters = text.chars();
    let first = letters.next()?;
    let rest = letters.as_str();
    if LETTERS.contains(&first) && (rest.is_empty() || rest.starts_with(". ")) {
        return Some(first);
    }
    let mut said = text
        .match_indices("The answer is ")
        .filter_map(|(at, said)| {
            let mut after = text[at + said.len()..].chars();
            let letter = after.next().filter(char::is_ascii_uppercase)?;
            after.next().filter(|next| *next != '\n')?;
            Some(letter)
        });
    let letter = said.next()?;
    match said.next() {
        None => Some(letter),
        Some(_) => None,
    }
}

/// Whether a choice is the right one.
pub fn is_right(choice: Option<usize>, answer: usize) -> bool {
    choice == Some(answer)
}
