#![cfg_attr(fuzzing, no_main)]

sq_llava_fuzz::target!(sq_llava_fuzz::eval::ANSWERS);
