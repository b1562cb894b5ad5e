//! The `sq-llava` command.
//!
//! One line on standard error and a non-zero exit for everything that goes wrong.

mod allocator;
mod benchmarks;
mod command;
mod device;
mod draw;
mod histogram;
mod improve;
mod memory;
mod model;
mod names;
mod output;
mod prototypes;
mod quickstart;
mod results;
mod towers;
mod world;

use std::any::Any;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};
use sq_llava_train::Launcher;

/// SQ-LLaVA: train it, ask it about pictures, let it ask.
#[derive(Debug, Parser)]
#[command(name = "sq-llava", version, propagate_version = true)]
struct Arguments {
    /// Say more (repeat for debugging output).
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// The quick start if there is none.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model on pictures and conversations.
    Train(command::train::Train),
    /// Answer a question, about a picture or not.
    Ask(command::ask::Ask),
    /// Ask questions about a picture.
    Question(command::question::QuestionCommand),
    /// Talk, with pictures.
    Chat(command::chat::Chat),
    /// Look a data set over before training on it.
    Check(command::check::Check),
    /// Ask the questions of benchmarks and score the answers.
    Eval(command::eval::Eval),
    /// Score answer files, without a model.
    Score(command::score::Score),
    /// Show what a checkpoint or preset is made of.
    Inspect(command::inspect::Inspect),
    /// Merge adapters; convert layout and dtype; quantise.
    Export(command::export::Export),
    /// Make a small world, train on it, and show what was learnt (also without any argument).
    Quickstart(command::quickstart::Quickstart),
    /// Train with and without each of the method's parts, over several seeds.
    Ablate(command::ablate::Ablate),
    /// Train a run again with questions that it asks and answers itself, round by round.
    Improve(command::improve::Improve),
    /// Measure speed beside the machine's limits.
    Bench(command::bench::Bench),
    /// Print the logits of token ids, to compare with other implementations.
    Logits(command::logits::Logits),
    /// Mean CLIPScore of the questions and of the answers of an instruction data set.
    #[command(name = "clipscore")]
    ClipScore(command::clipscore::ClipScoreCommand),
    /// Measure how varied questions are.
    Diversity(command::diversity::DiversityCommand),
    /// Compare the prototypes of pictures with masks.
    Prototypes(command::prototypes::Prototypes),
    /// Let a language model judge answers (MM-Vet, LLaVA-Bench).
    Judge(command::judge::JudgeCommand),
}

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    let other_rank = matches!(arguments.command, Some(Command::Train(_)))
        && Launcher::from_env().is_some_and(|launcher| launcher.rank() > 0);
    start_logging(arguments.verbose, other_rank);
    let command = match arguments.command {
        Some(command) => command,
        None => Command::Quickstart(command::quickstart::Quickstart::plain()),
    };
    // A backend that panics (no memory on the device, a lost driver) still gets one line.
    let caught = std::panic::catch_unwind(|| {
        std::panic::set_hook(Box::new(|panic| {
            // A backend's own thread fails first; what the main thread then says tells little.
            let _ = FIRST_PANIC.set(said_by(panic.payload()));
        }));
        match command {
            Command::Train(command) => command.run(),
            Command::Ask(command) => command.run(),
            Command::Question(command) => command.run(),
            Command::Chat(command) => command.run(),
            Command::Check(command) => command.run(),
            Command::Eval(command) => command.run(),
            Command::Score(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Export(command) => command.run(),
            Command::Quickstart(command) => command.run(),
            Command::Ablate(command) => command.run(),
            Command::Improve(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Logits(command) => command.run(),
            Command::Prototypes(command) => command.run(),
            Command::ClipScore(command) => command.run(),
            Command::Diversity(command) => command.run(),
            Command::Judge(command) => command.run(),
        }
    });
    let message = match caught {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => {
            if let Some(stopped) = error.downcast_ref::<command::train::Stopped>() {
                say(&stopped.to_string());
                return ExitCode::from(command::train::STOPPED);
            }
            sentence(&error)
        }
        Err(panic) => {
            let mut text = said_by(&*panic);
            if let Some(first) = FIRST_PANIC.get().filter(|first| **first != text) {
                text = format!("{first}; then: {text}");
            }
            // `print!` panics when its reader has gone away, as under `head`: nothing is wrong.
            if text.contains("failed printing to stdout") && text.contains("os error 32") {
                return ExitCode::SUCCESS;
            }
            format!("the backend gave up: {text}")
        }
    };
    complain(&match command::train::rank() {
        Some(rank) => format!("rank {rank}: {message}"),
        None => message,
    });
    command::train::end_other_ranks();
    ExitCode::FAILURE
}

/// Log lines on standard error; what all ranks of a training would say the first one says.
fn start_logging(verbose: u8, other_rank: bool) {
    let level = match verbose {
        0 if other_rank => "warn,wgpu=error,cubecl=error",
        0 => {
            "sq_llava_train=info,sq_llava_model::generation::layout=info,warn,wgpu=error,cubecl=error"
        }
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::Lenient(std::io::stderr()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

/// What the first panic of any thread said.
static FIRST_PANIC: OnceLock<String> = OnceLock::new();

fn said_by(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("unknown failure").to_owned()
}

/// An error and its causes; many name their cause themselves already.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// One line, whatever the message holds.
fn complain(message: &str) {
    say(&format!("error: {message}"));
}

fn say(message: &str) {
    let words: Vec<&str> = message.split_whitespace().collect();
    output::complain(words.join(" "));
}
