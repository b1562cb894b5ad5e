//! Lets libFuzzer damage what this reader reads; see the crate `sq_llava_fuzz`.

#![cfg_attr(fuzzing, no_main)]

sq_llava_fuzz::target!(sq_llava_fuzz::data::LABEL_MAP);
