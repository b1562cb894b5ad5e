//! A sample of a manifest as a conversation: who speaks and where its images stand.

use crate::manifest::{Author, LlavaSample, Message};
use crate::text::conversation::{Conversation, IMAGE_TOKEN, Speaker};
use crate::{DataError, Layout};

/// The messages from the human's first on: LLaVA leaves out a first one that is not by the human.
pub(crate) fn spoken(sample: &LlavaSample) -> &[Message] {
    match sample.conversations.split_first() {
        Some((first, rest)) if first.from == Author::Gpt => rest,
        _ => &sample.conversations,
    }
}

/// What Python takes for a space: the four ASCII separators too.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `<image>` marks of a message.
pub(crate) fn marks(message: &Message) -> usize {
    message.value.matches(IMAGE_TOKEN).count()
}

/// How many images are shown before each of the messages.
///
/// One image is shown first, wherever its mark stands. Several are shown at the messages by the
/// human that have their marks: as many as marks, or one at each where that fits; all of them first
/// where there is no mark.
fn places(images: usize, messages: &[Message]) -> Result<Vec<usize>, String> {
    let count = |message: &Message| match message.from {
        Author::Gpt => 0,
        Author::Human | Author::Vuser => marks(message),
    };
    let found: Vec<usize> = messages.iter().map(count).collect();
    let total: usize = found.iter().sum();
    let marked = found.iter().filter(|&&count| count > 0).count();
    if images <= 1 || total == 0 {
        let mut first = vec![0; messages.len()];
        first[0] = images;
        return Ok(first);
    }
    if total == images {
        return Ok(found);
    }
    if marked == images {
        return Ok(found.into_iter().map(|count| count.min(1)).collect());
    }
    Err(format!("{total} `{IMAGE_TOKEN}` marks for {images} images"))
}

/// A sample as a conversation. Images stand before the text of their turn, each with a line break;
/// a message with marks loses them and is stripped (LLaVA's `preprocess_multimodal`). The only
/// image of a sample is shown in the first turn, wherever its mark is; several are shown in the
/// turns that have their marks, or in the first if there is no mark. In a sample without images
/// `<image>` is plain text.
///
/// `asked` says for each human turn whether the model asks it; missing ones are not.
///
/// # Errors
/// If the marks do not fit the number of images, or there is no message by a human.
pub fn conversation_of(
    sample: &LlavaSample,
    template: impl Into<Layout>,
    system: Option<&str>,
    asked: &[bool],
) -> Result<Conversation, DataError> {
    let wrong = |reason: String| DataError::Conversation {
        sample: Some(sample.id.clone()),
        reason,
    };
    let messages = spoken(sample);
    if messages.is_empty() {
        return Err(wrong("no message by a human".into()));
    }
    let images = sample.images.len();
    let places = places(images, messages).map_err(wrong)?;
    let mut conversation = Conversation::new(template);
    conversation.system = system.or(sample.system.as_deref()).map(str::to_owned);
    let mut human = 0;
    for (message, shown) in messages.iter().zip(places) {
        let text = match images > 0 && marks(message) > 0 {
            true => strip(&message.value.replace(IMAGE_TOKEN, "")).to_owned(),
            false => message.value.clone(),
        };
        let speaker = match message.from {
            Author::Gpt => Speaker::Assistant,
            Author::Vuser => Speaker::Asked,
            Author::Human if asked.get(human).copied().unwrap_or(false) => Speaker::Asked,
            Author::Human => Speaker::User,
        };
        match speaker {
            Speaker::Assistant => conversation.push_assistant(text),
            Speaker::User => conversation.push_images(shown).push_user(text),
            Speaker::Asked => conversation.push_images(shown).push_asked(text),
        };
        human += usize::from(speaker != Speaker::Assistant);
    }
    Ok(conversation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Template;

    fn shown(images: usize, turns: &[&str]) -> Result<Vec<(usize, String)>, DataError> {
        let message = |(i, text): (usize, &&str)| Message {
            from: if i % 2 == 0 {
                Author::Human
            } else {
                Author::Gpt
            },
            value: (*text).into(),
        };
        let sample = LlavaSample {
            id: "s".into(),
            images: vec!["x.png".into(); images],
            system: None,
            conversations: turns.iter().enumerate().map(message).collect(),
        };
        let conversation = conversation_of(&sample, Template::V1, None, &[])?;
        let turns = conversation.turns.into_iter();
        Ok(turns.map(|turn| (turn.images, turn.text)).collect())
    }

    fn counts(images: usize, turns: &[&str]) -> Vec<usize> {
        let shown = shown(images, turns).unwrap();
        shown.into_iter().map(|(images, _)| images).collect()
    }

    #[test]
    fn one_image_comes_first_wherever_its_mark_is() {
        for turns in [
            ["<image>\na", "b", "c", "d"],
            ["a\n<image> ", "b", "c", "d"],
            ["a", "b", "c <image>", "d"],
            ["a", "b", "<image>\nc", "d"],
            ["a", "b <image>", "c", "d"],
            ["<image>a<image>", "b", "<image>c", "<image>d"],
            ["a", "b", "c", "d"],
        ] {
            let expected = [(1, "a"), (0, "b"), (0, "c"), (0, "d")];
            let found = shown(1, &turns).unwrap();
            let found: Vec<_> = found.iter().map(|(n, text)| (*n, text.as_str())).collect();
            assert_eq!(found, expected, "{turns:?}");
        }
    }

    #[test]
    fn several_images_stand_where_their_marks_do() {
        assert_eq!(counts(2, &["<image><image> a", "b"]), [2, 0]);
        assert_eq!(
            counts(2, &["<image> a", "b", "c <image>", "d"]),
            [1, 0, 1, 0]
        );
        // Two marks in one message, but as many such messages as images.
        assert_eq!(
            counts(2, &["<image> a <image>", "b", "c <image>", "d"]),
            [1, 0, 1, 0]
        );
        assert_eq!(counts(2, &["a", "b", "c", "d"]), [2, 0, 0, 0]);
        let error = shown(3, &["<image>", "b"]).unwrap_err().to_string();
        assert!(
            error.contains("sample s") && error.contains("1 `<image>` marks for 3 images"),
            "{error}"
        );
    }

    #[test]
    fn without_an_image_the_mark_is_text() {
        assert_eq!(
            shown(0, &["<image> a", "b"]).unwrap()[0],
            (0, "<image> a".into())
        );
    }
}
