//! `sq-llava chat`.

use std::io::{BufRead, ErrorKind, IsTerminal, Read, StdinLock};
use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::backend::Backend;
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use sq_llava_data::image::{PreparedImage, is_picture};
use sq_llava_data::{Conversation, Ending};
use sq_llava_model::{AnswerOptions, Assistant, ModelError, Request};

use crate::command::ask::{PictureArguments, Printer, SamplingArguments};
use crate::device::Work;
use crate::model::ModelArguments;

const HELP: &str =
    "/image PATH adds a picture, /ask lets the model ask, /reset forgets, /quit ends";

/// A longer line is no line of a talk.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Talk, with pictures.
#[derive(Debug, Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    pictures: PictureArguments,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 1024)]
    max_new_tokens: usize,
    /// System message in place of the template's.
    #[arg(long)]
    system: Option<String>,
}

impl Chat {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.model.device.run(self)
    }
}

impl Work for Chat {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (mut assistant, _) = self.model.load::<B>(device)?;
        self.pictures.apply(&mut assistant);
        let mut talk = Talk {
            assistant: &assistant,
            system: self.system,
            options: AnswerOptions {
                max_new_tokens: self.max_new_tokens,
                sampling: self.sampling.sampling(),
                stop: vec![],
            },
            conversation: assistant.conversation(),
            paths: vec![],
            images: vec![],
        };
        talk.reset();
        let mut lines = Lines::new()?;
        println!("{HELP}");
        while let Some(line) = lines.next()? {
            // A mistake costs one line, not the conversation.
            match line.map(|line| talk.take(line.trim())) {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break,
                Ok(Err(error)) => println!("error: {error}"),
                Err(reason) => println!("error: {reason}"),
            }
        }
        Ok(())
    }
}

struct Talk<'a, B: Backend> {
    assistant: &'a Assistant<B>,
    system: Option<String>,
    options: AnswerOptions,
    conversation: Conversation,
    paths: Vec<PathBuf>,
    images: Vec<PreparedImage>,
}

impl<B: Backend> Talk<'_, B> {
    fn reset(&mut self) {
        self.conversation = self.assistant.conversation();
        if let Some(system) = &self.system {
            self.conversation = self.conversation.clone().with_system(system.clone());
        }
        self.paths.clear();
        self.images.clear();
    }

    /// Takes a line; false ends the talk.
    fn take(&mut self, line: &str) -> Result<bool, ModelError> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "" => {}
            "/quit" | "/exit" => return Ok(false),
            "/help" => println!("{HELP}"),
            "/reset" => self.reset(),
            "/image" => {
                let path = path_of(rest.trim());
                let shown = [&self.paths[..], std::slice::from_ref(&path)].concat();
                // How each is seen may depend on how many there are.
                self.images = self.assistant.open_images(&shown)?;
                self.paths = shown;
                self.conversation.push_images(1);
                println!("({} is shown with the next question)", path.display());
            }
            "/ask" => {
                let question = self.say(&self.conversation.clone(), Ending::Ask)?;
                let mut next = self.conversation.clone();
                next.push_asked(question.trim());
                let answer = self.say(&next, Ending::Answer)?;
                next.push_assistant(answer.trim());
                self.conversation = next;
            }
            _ if is_picture(&path_of(line)) => {
                println!("to show a picture: /image {line}");
            }
            _ if command.starts_with('/') => println!("unknown command {command}; {HELP}"),
            _ => {
                let mut next = self.conversation.clone();
                next.push_user(line);
                let answer = self.say(&next, Ending::Answer)?;
                next.push_assistant(answer.trim());
                self.conversation = next;
            }
        }
        Ok(true)
    }

    fn say(&self, conversation: &Conversation, ending: Ending) -> Result<String, ModelError> {
        let request = Request {
            conversation,
            ending,
            images: &self.images,
        };
        let mut printer = Printer::new(true);
        let answer = self
            .assistant
            .answer(&request, &self.options, &mut |text| printer.print(text))?;
        println!();
        Ok(answer.text)
    }
}

/// A path as terminals write it when a file is dropped on them or completed: in quotes, or with a
/// backslash before signs that a shell would take. A file of exactly that name goes before.
fn path_of(text: &str) -> PathBuf {
    let exact = PathBuf::from(text);
    match exact.exists() {
        true => exact,
        false => PathBuf::from(unquoted(text, !cfg!(windows))),
    }
}

/// Text without its quotes; `escapes` tells whether a backslash takes the next sign as it is.
/// Within single quotes nothing is special, within double quotes the backslash is so before `"`,
/// `\`, `$` and `` ` `` only, as in a POSIX shell.
fn unquoted(text: &str, escapes: bool) -> String {
    let mut found = String::with_capacity(text.len());
    let mut quote = None;
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        match (quote, sign) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(sign),
            (None, '\\') if escapes => found.extend(signs.next()),
            (Some('"'), '\\') if escapes => {
                let special = signs.next_if(|next| matches!(next, '"' | '\\' | '$' | '`'));
                found.push(special.unwrap_or('\\'));
            }
            _ => found.push(sign),
        }
    }
    match quote {
        // A quote that does not end is a sign of the name, such as an apostrophe.
        Some(_) => text.to_owned(),
        None => found,
    }
}

/// Lines with editing and history on a terminal, plain ones otherwise.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Pipe(StdinLock<'static>),
}

impl Lines {
    fn new() -> Result<Self> {
        Ok(if std::io::stdin().is_terminal() {
            Self::Terminal(Box::new(DefaultEditor::new()?))
        } else {
            Self::Pipe(std::io::stdin().lock())
        })
    }

    /// The next line, or why it is none; `None` at the end.
    fn next(&mut self) -> Result<Option<Result<String, String>>> {
        match self {
            Self::Pipe(input) => piped(input),
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // History is a convenience.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(Ok(line)))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                    Ok(Some(Err(format!("this line is not UTF-8: {error}"))))
                }
                Err(error) => Err(error.into()),
            },
        }
    }
}

fn piped(input: &mut impl BufRead) -> Result<Option<Result<String, String>>> {
    let mut line = Vec::new();
    input
        .by_ref()
        .take(MAX_LINE_BYTES)
        .read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
        return Ok(Some(Err("this line has 1 MiB or more".into())));
    }
    let line = String::from_utf8(line);
    Ok(Some(line.map_err(|error| {
        format!("this line is not UTF-8: {}", error.utf8_error())
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_30_paths_are_taken_as_terminals_write_them() {
        for (text, path) in [
            ("/a/my dir/p x.png", "/a/my dir/p x.png"),
            ("\"/a/my dir/p x.png\"", "/a/my dir/p x.png"),
            ("'/a/my dir/p x.png'", "/a/my dir/p x.png"),
            ("/a/my\\ dir/p\\ x.png", "/a/my dir/p x.png"),
            ("/a/'my dir'/p\\ x.png", "/a/my dir/p x.png"),
            ("'/a/it'\\''s.png'", "/a/it's.png"),
            ("/a/it's.png", "/a/it's.png"),
            ("\"/a/\\\"b\\\" \\n.png\"", "/a/\"b\" \\n.png"),
            ("'/a/b\\c.png'", "/a/b\\c.png"),
            ("", ""),
            ("\\", ""),
        ] {
            assert_eq!(unquoted(text, true), path, "{text}");
        }
        assert_eq!(unquoted("\"C:\\a b\\c.png\"", false), "C:\\a b\\c.png");
    }

    #[test]
    fn fault_30_a_line_that_is_no_text_costs_that_line() {
        let long = "x".repeat(MAX_LINE_BYTES as usize + 5);
        let mut input = vec![];
        for line in [&b"one"[..], b"bad \xff", long.as_bytes(), b"last"] {
            input.extend(line);
            input.push(b'\n');
        }
        input.pop();
        let mut reader = input.as_slice();
        let mut next = || piped(&mut reader).unwrap();
        assert_eq!(next(), Some(Ok("one\n".into())));
        assert!(next().unwrap().unwrap_err().contains("UTF-8"));
        assert!(next().unwrap().unwrap_err().contains("1 MiB"));
        assert_eq!(next(), Some(Ok("last".into())));
        assert_eq!(next(), None);
    }
}
