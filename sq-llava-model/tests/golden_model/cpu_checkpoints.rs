//! Parts a and a2 on the CPU: whole checkpoints in every layout.

use burn_flex::Flex;
use sq_llava_model::processor::{KernelPath, VARIABLE};

use crate::checkpoints as parity;

fn device() -> burn_flex::FlexDevice {
    Default::default()
}

#[test]
fn golden_a_hidden_states() {
    let compared = parity::part_a()
        .iter()
        .filter(|checkpoint| parity::hidden_states::<Flex>(checkpoint, &device()))
        .count();
    assert!(compared > 0, "no reference has hidden states");
}

#[test]
fn golden_a_image_tokens() {
    for checkpoint in parity::part_a() {
        parity::image_tokens::<Flex>(&checkpoint, &device());
    }
}

#[test]
fn golden_a_logits() {
    for checkpoint in parity::part_a() {
        parity::logits::<Flex>(&checkpoint, "input_ids_orig", &device());
    }
}

#[test]
fn golden_a_logits_of_expanded_ids() {
    let mut compared = 0;
    for checkpoint in parity::part_a() {
        // Only a llava-hf configuration names the token that stands once per feature.
        let config = golden::json(&checkpoint.dir.join("config.json"));
        if config.get("image_token_index").is_some() {
            parity::logits::<Flex>(&checkpoint, "input_ids_hf", &device());
            compared += 1;
        }
    }
    let folders = golden::folders("a_");
    let expected = folders.iter().filter(|f| f.join("hf").is_dir()).count();
    assert_eq!(compared, expected);
}

#[test]
fn golden_a_bf16_logits() {
    parity::bf16_logits::<Flex>(parity::BF16, &device());
}

/// All of these on every path of kernels that the machine has.
#[test]
fn every_path_of_kernels() {
    for path in KernelPath::ALL {
        if path.is_available() {
            golden::again(VARIABLE, path.name(), "golden_a");
        } else {
            eprintln!("this machine does not run {path}: it is not tested");
        }
    }
}

#[test]
fn golden_a_greedy() {
    for checkpoint in parity::part_a() {
        parity::greedy::<Flex>(&checkpoint, &device());
    }
}

#[test]
fn golden_a_text_logits() {
    let compared = parity::part_a()
        .iter()
        .filter(|checkpoint| parity::text_logits::<Flex>(checkpoint, &device()))
        .count();
    assert!(compared > 0, "no reference has text logits");
}

#[test]
fn golden_a2_image_tokens() {
    for checkpoint in parity::part_a2() {
        parity::image_tokens::<Flex>(&checkpoint, &device());
    }
}

#[test]
fn golden_a2_logits() {
    for checkpoint in parity::part_a2() {
        parity::logits::<Flex>(&checkpoint, "input_ids_orig", &device());
    }
}

#[test]
fn golden_a2_greedy() {
    for checkpoint in parity::part_a2() {
        parity::greedy::<Flex>(&checkpoint, &device());
    }
}
