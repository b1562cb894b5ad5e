//! Train both stages on pictures and conversations, then let the model ask.
//!
//! `cargo run --release -p sq-llava-examples --example train`
#![allow(clippy::print_stdout)] // An example shows its result.

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};
use sq_llava::train::{Ui, train};
use sq_llava::{Assistant, AssistantOptions, LoadOptions, Recipe, TrainPaths};

fn main() -> Result<(), sq_llava_examples::AnyError> {
    let recipe = Recipe::read("examples/configs/tiny.toml".as_ref(), &[])?;
    let paths = TrainPaths {
        llm: "examples/assets/tiny-llava".into(),
        data: Some("examples/assets/photos.json".into()),
        images: Some("golden/data/e_image".into()),
        out: "train-run".into(),
        ..TrainPaths::default()
    };
    let run = train::<Autodiff<Flex>>(&recipe, &paths, &FlexDevice, Ui::Lines)?.run;

    let load = LoadOptions {
        base: Some(paths.llm),
        ..LoadOptions::default()
    };
    let options = AssistantOptions {
        load,
        ..AssistantOptions::default()
    };
    let assistant = Assistant::<Flex>::load_on(run, &options, &FlexDevice)?;
    for question in assistant.questions("golden/data/e_image/china_rgb_640x427.png", 3)? {
        println!("{}", question.text);
    }
    Ok(())
}
