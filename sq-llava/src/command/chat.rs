//! `sq-llava chat`.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use anyhow::Result;
use burn::tensor::backend::Backend;
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use sq_llava_data::image::PixelValues;
use sq_llava_data::{Conversation, Ending};
use sq_llava_model::{AnswerOptions, Assistant, ModelError, Request};

use crate::command::ask::{Printer, SamplingArguments};
use crate::device::Work;
use crate::model::ModelArguments;

const HELP: &str =
    "/image PATH adds a picture, /ask lets the model ask, /reset forgets, /quit ends";

/// Talk, with pictures.
#[derive(Debug, Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
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
        let (assistant, _) = self.model.load::<B>(device)?;
        let mut talk = Talk {
            assistant: &assistant,
            system: self.system,
            options: AnswerOptions {
                max_new_tokens: self.max_new_tokens,
                sampling: self.sampling.sampling(),
                stop: vec![],
            },
            conversation: assistant.conversation(),
            images: vec![],
        };
        talk.reset();
        let mut lines = Lines::new()?;
        println!("{HELP}");
        while let Some(line) = lines.next()? {
            // A mistake costs one line, not the conversation.
            match talk.take(line.trim()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => println!("error: {error}"),
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
    images: Vec<PixelValues>,
}

impl<B: Backend> Talk<'_, B> {
    fn reset(&mut self) {
        self.conversation = self.assistant.conversation();
        if let Some(system) = &self.system {
            self.conversation = self.conversation.clone().with_system(system.clone());
        }
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
                let path = rest.trim().trim_matches('"');
                self.images
                    .push(self.assistant.open_image(Path::new(path))?);
                self.conversation.push_images(1);
                println!("({path} is shown with the next question)");
            }
            "/ask" => {
                let question = self.say(&self.conversation.clone(), Ending::Ask)?;
                let mut next = self.conversation.clone();
                next.push_asked(question.trim());
                let answer = self.say(&next, Ending::Answer)?;
                next.push_assistant(answer.trim());
                self.conversation = next;
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

/// Lines with editing and history on a terminal, plain ones otherwise.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn new() -> Result<Self> {
        Ok(if std::io::stdin().is_terminal() {
            Self::Terminal(Box::new(DefaultEditor::new()?))
        } else {
            Self::Pipe(std::io::stdin().lock().lines())
        })
    }

    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Pipe(lines) => Ok(lines.next().transpose()?),
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // History is a convenience.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }
}
