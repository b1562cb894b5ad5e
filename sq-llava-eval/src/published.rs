//! Published numbers of 7B models: the SQ-LLaVA paper's main table (ECCV 2024), and the page of the
//! released checkpoint.

/// A model's published numbers, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PublishedRow {
    /// The model.
    pub model: &'static str,
    /// Where its numbers are from.
    pub source: &'static str,
    /// The checkpoints that it is a goal of: the released one or all others; `None` is of both.
    pub released: Option<bool>,
    /// Name of the benchmark and number.
    pub values: &'static [(&'static str, f64)],
}

impl PublishedRow {
    /// Its number on a benchmark (by its name on the command line).
    pub fn value(&self, benchmark: &str) -> Option<f64> {
        let found = self.values.iter().find(|(name, _)| *name == benchmark)?;
        Some(found.1)
    }
}

/// The rows that reports are compared with. ScienceQA is its questions with pictures.
pub(crate) const PUBLISHED: &[PublishedRow] = &[
    PublishedRow {
        model: "SQ-LLaVA-7B (published)",
        source: "main table of the SQ-LLaVA paper (arXiv 2403.11299), trained on LLaVA-1.5's 665k \
                 samples; TextVQA from its ablation table",
        released: Some(false),
        values: &[
            ("vqav2", 79.2),
            ("gqa", 62.8),
            ("vizwiz", 54.0),
            ("scienceqa", 68.9),
            ("textvqa", 58.6),
            ("pope", 87.7),
            ("mm-vet", 32.5),
            ("llava-bench", 66.3),
            ("mmbench", 66.2),
        ],
    },
    PublishedRow {
        model: "SQ-LLaVA-7B (released)",
        source: "page of the released checkpoint sqllava-lora-7b",
        released: Some(true),
        values: &[
            ("vqav2", 80.3),
            ("gqa", 63.7),
            ("vizwiz", 55.3),
            ("scienceqa", 70.5),
            ("textvqa", 60.5),
            ("pope", 87.2),
            ("mmbench", 66.6),
            ("mmbench-cn", 60.0),
            ("llava-bench", 74.3),
            ("mm-vet", 37.6),
        ],
    },
    PublishedRow {
        model: "LLaVA-1.5-7B (published)",
        source: "main table of the SQ-LLaVA paper",
        released: None,
        values: &[
            ("vqav2", 78.5),
            ("gqa", 62.0),
            ("vizwiz", 50.0),
            ("scienceqa", 66.8),
            ("pope", 85.9),
            ("mm-vet", 30.5),
            ("llava-bench", 63.4),
            ("mmbench", 64.3),
        ],
    },
    PublishedRow {
        model: "ShareGPT4V-7B (published)",
        source: "main table of the SQ-LLaVA paper",
        released: None,
        values: &[
            ("vqav2", 80.6),
            ("gqa", 63.3),
            ("vizwiz", 57.2),
            ("scienceqa", 68.4),
            ("pope", 86.8),
            ("mm-vet", 37.6),
            ("llava-bench", 72.6),
            ("mmbench", 68.8),
        ],
    },
];
