//! A writer of GGUF files of LLaMA's architecture, for tests that need one of their own size.
#![allow(dead_code)] // each test binary uses its part

use sq_llava_model::config::LlamaConfig;

/// Bytes of a file whose matrices are Q8_0 blocks of scale 1/64 and whose norms are ones.
pub fn q8_0_file(llama: &LlamaConfig) -> Vec<u8> {
    let mut pairs: Vec<u8> = Vec::new();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    text(&mut pairs, "general.architecture");
    pairs.extend(8u32.to_le_bytes());
    text(&mut pairs, "llama");
    let numbers = [
        ("context_length", llama.max_position_embeddings),
        ("embedding_length", llama.hidden_size),
        ("block_count", llama.num_hidden_layers),
        ("feed_forward_length", llama.intermediate_size),
        ("attention.head_count", llama.num_attention_heads),
        ("attention.head_count_kv", llama.num_key_value_heads),
    ];
    for (key, number) in numbers {
        text(&mut pairs, &format!("llama.{key}"));
        pairs.extend(4u32.to_le_bytes());
        pairs.extend((number as u32).to_le_bytes());
    }
    let (hidden, inter) = (llama.hidden_size, llama.intermediate_size);
    let kv = llama.num_key_value_heads * llama.head_dim();
    let mut tensors = vec![
        (
            "token_embd.weight".to_string(),
            vec![llama.vocab_size, hidden],
        ),
        ("output.weight".to_string(), vec![llama.vocab_size, hidden]),
        ("output_norm.weight".to_string(), vec![hidden]),
    ];
    for layer in 0..llama.num_hidden_layers {
        for (name, shape) in [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, hidden]),
            ("attn_k", vec![kv, hidden]),
            ("attn_v", vec![kv, hidden]),
            ("attn_output", vec![hidden, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![inter, hidden]),
            ("ffn_up", vec![inter, hidden]),
            ("ffn_down", vec![hidden, inter]),
        ] {
            tensors.push((format!("blk.{layer}.{name}.weight"), shape));
        }
    }
    let (mut list, mut data): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    for (name, shape) in &tensors {
        text(&mut list, name);
        list.extend((shape.len() as u32).to_le_bytes());
        for side in shape.iter().rev() {
            list.extend((*side as u64).to_le_bytes());
        }
        let elements: usize = shape.iter().product();
        let kind: u32 = if shape.len() == 1 { 0 } else { 8 };
        list.extend(kind.to_le_bytes());
        list.extend((data.len() as u64).to_le_bytes());
        if kind == 0 {
            data.extend(std::iter::repeat_n(1f32.to_le_bytes(), elements).flatten());
        } else {
            for block in 0..elements / 32 {
                data.extend(0x2400u16.to_le_bytes()); // 1/64
                data.extend((0..32).map(|i| (block * 7 + i * 3) as u8 & 31));
            }
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((numbers.len() as u64 + 1).to_le_bytes());
    out.extend(pairs);
    out.extend(list);
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}
