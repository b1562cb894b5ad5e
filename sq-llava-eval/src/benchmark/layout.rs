//! Where a benchmark's files lie under a folder, as LLaVA's evaluation has them.

use std::path::{Path, PathBuf};

use super::{Benchmark, nocaps};
use crate::EvalError;

/// The files of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Questions.
    pub questions: PathBuf,
    /// Folder of the pictures; `None` where the questions hold them.
    pub images: Option<PathBuf>,
    /// References: a file or a folder, by benchmark; `None` if there is none.
    pub annotations: Option<PathBuf>,
}

/// Names to look for, each with at most one `*`; the first that is there is taken.
struct Layout {
    folders: &'static [&'static str],
    questions: &'static [&'static str],
    images: &'static [&'static str],
    annotations: &'static [&'static str],
}

fn layout(benchmark: Benchmark) -> Option<Layout> {
    let layout = match benchmark {
        Benchmark::VqaV2 => Layout {
            folders: &["vqav2"],
            questions: &[
                "llava_vqav2_mscoco_test-dev2015.jsonl",
                "llava_vqav2*.jsonl",
                "v2_OpenEnded*questions.json",
            ],
            images: &["test2015", "val2014", "images"],
            annotations: &["v2_mscoco*annotations.json"],
        },
        Benchmark::Gqa => Layout {
            folders: &["gqa"],
            questions: &[
                "llava_gqa_testdev_balanced.jsonl",
                "llava_gqa*.jsonl",
                "data/testdev_balanced_questions.json",
                "testdev_balanced_questions.json",
            ],
            images: &["data/images", "images"],
            annotations: &[
                "data/testdev_balanced_questions.json",
                "testdev_balanced_questions.json",
            ],
        },
        Benchmark::VizWiz => Layout {
            folders: &["vizwiz"],
            questions: &["llava_test.jsonl", "llava_*.jsonl", "test.json", "val.json"],
            images: &["test", "val", "images"],
            annotations: &["val.json", "test.json"],
        },
        Benchmark::ScienceQa => Layout {
            folders: &["scienceqa"],
            questions: &["llava_test_CQM-A.json", "llava_test*.json"],
            images: &["images/test", "images"],
            annotations: &["problems.json"],
        },
        Benchmark::TextVqa => Layout {
            folders: &["textvqa"],
            questions: &[
                "llava_textvqa_val_v051_ocr.jsonl",
                "llava_textvqa*.jsonl",
                "TextVQA_0.5.1_val.json",
            ],
            images: &["train_images", "images"],
            annotations: &["TextVQA_0.5.1_val.json"],
        },
        Benchmark::Pope => Layout {
            folders: &["pope"],
            questions: &["llava_pope_test.jsonl", "llava_pope*.jsonl", "coco"],
            images: &["val2014", "images"],
            annotations: &["coco"],
        },
        Benchmark::MmVet => Layout {
            folders: &["mm-vet", "mmvet"],
            questions: &["llava-mm-vet.jsonl", "mm-vet.json"],
            images: &["images"],
            annotations: &["mm-vet.json"],
        },
        Benchmark::LlavaBench => Layout {
            folders: &["llava-bench-in-the-wild", "llava-bench"],
            questions: &["questions.jsonl"],
            images: &["images"],
            annotations: &["context.jsonl"],
        },
        Benchmark::MmBench => Layout {
            folders: &["mmbench"],
            questions: &[
                "mmbench_dev_20230712.tsv",
                "mmbench_dev_en*.tsv",
                "mmbench_test_en*.tsv",
            ],
            images: &[],
            annotations: &[],
        },
        Benchmark::MmBenchCn => Layout {
            folders: &["mmbench_cn", "mmbench-cn", "mmbench"],
            questions: &["mmbench_dev_cn*.tsv", "mmbench_test_cn*.tsv"],
            images: &[],
            annotations: &[],
        },
        Benchmark::Mme => Layout {
            folders: &["MME", "mme"],
            questions: &["llava_mme.jsonl", "MME_Benchmark_release_version"],
            images: &["MME_Benchmark_release_version"],
            annotations: &["MME_Benchmark_release_version"],
        },
        Benchmark::Seed => Layout {
            folders: &["seed_bench", "seed"],
            questions: &["llava-seed-bench.jsonl", "*seed-bench.jsonl"],
            images: &[""],
            annotations: &["SEED-Bench.json"],
        },
        Benchmark::CocoCaptions => captions(&["coco"]),
        Benchmark::Flickr30k => captions(&["flickr30k", "flickr"]),
        Benchmark::NoCaps => captions(&["nocaps"]),
        Benchmark::Conceptual => captions(&["conceptual"]),
        Benchmark::Generic => return None,
    };
    Some(layout)
}

fn captions(folders: &'static [&'static str]) -> Layout {
    Layout {
        folders,
        questions: &["question*.jsonl", "*question.jsonl", "*questions.jsonl"],
        images: &["images", "val2014", "flickr30k_images", ""],
        annotations: &[
            "annotations.json",
            "*karpathy*.json",
            "*test*.json",
            "*val*.json",
            "*.json",
        ],
    }
}

impl Files {
    /// Looks for a benchmark in `root` or its usual folder under it; `None` if its questions are
    /// not there.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    pub fn find(benchmark: Benchmark, root: &Path) -> Result<Option<Self>, EvalError> {
        let Some(layout) = layout(benchmark) else {
            return Ok(None);
        };
        let under = layout.folders.iter().map(|name| root.join(name));
        // The folder itself, but only if it carries the benchmark's name: many have question.jsonl.
        let named = root
            .file_name()
            .is_some_and(|name| layout.folders.iter().any(|folder| name == *folder));
        let itself = named.then(|| root.to_path_buf());
        for folder in itself.into_iter().chain(under) {
            let Some(questions) = first(&folder, layout.questions)? else {
                continue;
            };
            let mut found = Self {
                questions,
                images: first(&folder, layout.images)?,
                annotations: first(&folder, layout.annotations)?,
            };
            if benchmark == Benchmark::NoCaps {
                found.take_domains(&folder)?;
            }
            return Ok(Some(found));
        }
        Ok(None)
    }

    /// NoCaps in files for each domain: the folder stands for all of them.
    fn take_domains(&mut self, folder: &Path) -> Result<(), EvalError> {
        if !nocaps::question_files(folder)?.is_empty() {
            self.questions = folder.to_path_buf();
        }
        let whole = first(folder, &["annotations.json", "nocaps_val_4500*.json"])?;
        self.annotations = match whole {
            Some(whole) => Some(whole),
            None if !nocaps::caption_files(folder)?.is_empty() => Some(folder.to_path_buf()),
            None => self.annotations.take(),
        };
        Ok(())
    }

    /// Every benchmark found under a folder.
    ///
    /// # Errors
    /// If a folder cannot be listed, or there is no benchmark.
    pub fn find_all(root: &Path) -> Result<Vec<(Benchmark, Self)>, EvalError> {
        let mut found = Vec::new();
        for benchmark in Benchmark::ALL {
            if let Some(files) = Self::find(benchmark, root)? {
                found.push((benchmark, files));
            }
        }
        if found.is_empty() {
            return Err(EvalError::benchmark(
                root,
                "holds no benchmark in LLaVA's layout (pope/llava_pope_test.jsonl and so on); \
                 name one with its question file",
            ));
        }
        Ok(found)
    }
}

/// The first name that is in the folder.
fn first(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>, EvalError> {
    if !folder.is_dir() {
        return Ok(None);
    }
    for name in names {
        let found = match name.split_once('*') {
            None => Some(folder.join(name)).filter(|path| path.exists()),
            Some(_) => matching(folder, name)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The first file, by name, that a pattern with stars fits.
fn matching(folder: &Path, pattern: &str) -> Result<Option<PathBuf>, EvalError> {
    let io = |source| EvalError::Io {
        path: folder.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if let Some(name) = name.to_str()
            && fits(name, pattern)
        {
            found.push(folder.join(name));
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((prefix, rest)) => name.strip_prefix(prefix).is_some_and(|tail| {
            (0..=tail.len())
                .filter(|at| tail.is_char_boundary(*at))
                .any(|at| fits(&tail[at..], rest))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        assert!(fits("coco_karpathy_test.json", "*karpathy*.json"));
        assert!(fits("mmbench_dev_cn_20231003.tsv", "mmbench_dev_cn*.tsv"));
        assert!(!fits("mmbench_dev_en_20231003.tsv", "mmbench_dev_cn*.tsv"));
        assert!(!fits("a.json.bak", "*.json"));
    }

    #[test]
    fn benchmarks_are_found_by_their_names() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        for name in [
            "pope/llava_pope_test.jsonl",
            "pope/coco/coco_pope_random.json",
            "pope/val2014/a.jpg",
            "mmbench/mmbench_dev_20230712.tsv",
            "mmbench/mmbench_dev_cn_20231003.tsv",
            "coco/question3.jsonl",
            "coco/coco_karpathy_test.json",
        ] {
            write(name);
        }
        let found = Files::find_all(root.path()).unwrap();
        let names: Vec<&str> = found.iter().map(|(b, _)| b.name()).collect();
        assert_eq!(names, ["pope", "mmbench", "mmbench-cn", "coco"]);
        let pope = &found[0].1;
        assert_eq!(pope.images, Some(root.path().join("pope/val2014")));
        assert_eq!(pope.annotations, Some(root.path().join("pope/coco")));
        assert!(
            found[2]
                .1
                .questions
                .ends_with("mmbench_dev_cn_20231003.tsv")
        );
        assert_eq!(
            found[3].1.annotations,
            Some(root.path().join("coco/coco_karpathy_test.json"))
        );
        let itself = Files::find(Benchmark::Pope, &root.path().join("pope")).unwrap();
        assert_eq!(itself.as_ref(), Some(pope));
        let error = Files::find_all(&root.path().join("pope/coco")).unwrap_err();
        assert!(error.to_string().contains("holds no benchmark"), "{error}");
    }
}
