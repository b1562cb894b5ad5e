use std::ops::ControlFlow;

use burn_flex::Flex;

use super::generate::{FinishReason, GenerateConfig};
use super::prefix::CACHE_BYTES;
use super::sampling::Sampling;
use crate::config::SqLlavaConfig;
use crate::error::ModelError;
use crate::sq_llava::{Sample, SqLlava};

fn model() -> SqLlava<Flex> {
    SqLlavaConfig::preset("tiny")
        .unwrap()
        .init(&Default::default())
        .unwrap()
}

fn sample(ids: &[i64]) -> Sample<'_, Flex> {
    Sample {
        ids,
        images: vec![],
    }
}

fn go_on(_: usize, _: i64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_batch_of_unequal_prompts_answers_as_each_alone() {
    let model = model();
    let prompts: [&[i64]; 3] = [&[1, 5, 9, 40, 7, 8], &[1, 77], &[1, 3, 200, 12]];
    let config = GenerateConfig::greedy(12);
    let samples: Vec<_> = prompts.iter().map(|ids| sample(ids)).collect();
    let batch = model.generate(&samples, &config, &mut go_on).unwrap();
    for (sample, batched) in samples.iter().zip(&batch) {
        let alone = model
            .generate(std::slice::from_ref(sample), &config, &mut go_on)
            .unwrap();
        assert_eq!(&alone[0], batched);
        assert_eq!(batched.ids.len(), 12);
    }
}

#[test]
fn samples_that_end_early_leave_the_others_unchanged() {
    let model = model();
    let config = GenerateConfig {
        sampling: Sampling::asking(3),
        ..GenerateConfig::greedy(20)
    };
    let samples = [sample(&[1, 5, 9]), sample(&[1, 6, 9])];
    let full = model.generate(&samples, &config, &mut go_on).unwrap();
    let mut count = 0;
    let cut = model
        .generate(&samples, &config, &mut |row, _| {
            count += usize::from(row == 0);
            if row == 0 && count == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!(cut[0].finish, FinishReason::Callback);
    assert_eq!(cut[0].ids, full[0].ids[..4]);
    assert_eq!(cut[1], full[1]);
}

#[test]
fn a_shared_prefix_gives_what_the_whole_prompt_gives() {
    let model = model();
    let ids = [1, 5, 9, 40, 7, 8, 100, 33];
    let config = GenerateConfig::greedy(10);
    let whole = model
        .generate(&[sample(&ids)], &config, &mut go_on)
        .unwrap();
    let mut prefix = model.prefix(&sample(&ids[..5])).unwrap();
    model.extend(&mut prefix, &ids[5..]).unwrap();
    let continued = model
        .continue_prefix(&prefix, 2, &config, &mut go_on)
        .unwrap();
    assert_eq!(continued[0], whole[0]);
    assert_eq!(continued[1], whole[0]);
}

#[test]
fn fault_26_continuations_within_little_memory_are_the_same() {
    let model = model();
    let prefix = model.prefix(&sample(&[1, 5, 9, 40, 7])).unwrap();
    let config = GenerateConfig {
        sampling: Sampling::asking(3),
        ..GenerateConfig::greedy(6)
    };
    let run = |bytes| {
        let mut tokens = vec![vec![]; 7];
        let mut most = 0;
        let all = model.continue_prefix_within(bytes, &prefix, 7, &config, &mut |row, id| {
            tokens[row].push(id);
            // Rows that are under way: one that has begun and is not full.
            let running = tokens.iter().filter(|t| (1..6).contains(&t.len()));
            most = most.max(running.count());
            ControlFlow::Continue(())
        });
        (all.unwrap(), tokens, most)
    };
    // 3 layers, 2 heads of 16, 256 tokens, f32, keys and values.
    let each = 3 * 2 * 16 * 256 * 4 * 2;
    assert_eq!(prefix.cache.sample_bytes(11), each);
    // The context's 512 tokens at most.
    assert_eq!(model.most_at_once(usize::MAX), CACHE_BYTES / (2 * each));
    let whole = run(usize::MAX);
    assert!(whole.0.iter().any(|one| *one != whole.0[0]), "they differ");
    for (bytes, at_once) in [(0, 1), (each, 1), (3 * each + 1, 3)] {
        let (generations, tokens, most) = run(bytes);
        assert_eq!((&generations, &tokens), (&whole.0, &whole.1), "{bytes}");
        assert!(most <= at_once, "{most} at once in {bytes} bytes");
    }
}

#[test]
fn suppressed_tokens_never_come_and_stop_tokens_end() {
    let model = model();
    let free = GenerateConfig::greedy(8);
    let samples = [sample(&[1, 5, 9])];
    let first = model.generate(&samples, &free, &mut go_on).unwrap()[0]
        .ids
        .clone();
    let suppressed = GenerateConfig {
        suppressed: vec![first[0]],
        ..free.clone()
    };
    let other = model.generate(&samples, &suppressed, &mut go_on).unwrap();
    assert!(!other[0].ids.contains(&first[0]));
    let stopping = GenerateConfig {
        stop_ids: vec![first[0]],
        ..free
    };
    let none = model.generate(&samples, &stopping, &mut go_on).unwrap();
    assert_eq!(none[0].finish, FinishReason::Stop);
    assert!(none[0].ids.is_empty());
}

#[test]
fn a_full_context_is_an_error_and_a_filling_one_ends() {
    let model = model();
    let long = vec![5; 512];
    let error = model
        .generate(&[sample(&long)], &GenerateConfig::greedy(1), &mut go_on)
        .unwrap_err();
    assert!(matches!(
        error,
        ModelError::ContextOverflow {
            tokens: 512,
            limit: 512
        }
    ));
    let nearly = vec![5; 508];
    let cut = model
        .generate(&[sample(&nearly)], &GenerateConfig::greedy(50), &mut go_on)
        .unwrap();
    assert_eq!(cut[0].finish, FinishReason::Context);
    assert_eq!(cut[0].ids.len(), 4);
}
