use std::collections::HashSet;
use std::path::PathBuf;

use super::*;
use crate::answer::{AnswerFile, Answers};
use crate::protocol::Protocol;
use crate::question::QuestionOptions;
use sq_llava_data::{Layout, Template};

#[test]
fn names_are_told_apart_and_found() {
    let names: HashSet<&str> = TASKS.iter().map(|task| task.name()).collect();
    assert_eq!(names.len(), TASKS.len());
    for known in TASKS {
        assert_eq!(named(known.name()).unwrap().title(), known.title());
    }
    let error = named("vqa").unwrap_err();
    assert!(
        error.starts_with("no benchmark \"vqa\"; known are vqav2, gqa, "),
        "{error}"
    );
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
    let found = find_all(root.path()).unwrap();
    let names: Vec<&str> = found.iter().map(|(task, _)| task.name()).collect();
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
    let itself = named("pope")
        .unwrap()
        .find(&root.path().join("pope"))
        .unwrap();
    assert_eq!(itself.as_ref(), Some(pope));
    let error = find_all(&root.path().join("pope/coco")).unwrap_err();
    assert!(error.to_string().contains("holds no benchmark"), "{error}");
}

/// What the released scripts say: `--conv-mode vicuna_v1` (or its other name `v1`) everywhere;
/// `model_vqa.py` and `model_cap.py` give pictures to the processor as they are,
/// `model_vqa_loader.py` and `model_vqa_mmbench.py` pad.
#[test]
fn fault_18_the_released_scripts_crop_on_seven_benchmarks() {
    let cropped = |protocol: Protocol| -> Vec<&str> {
        let all = TASKS.iter();
        all.filter(|task| task.crops(protocol))
            .map(|task| task.name())
            .collect()
    };
    assert_eq!(cropped(Protocol::Llava), ["scienceqa"]);
    assert_eq!(
        cropped(Protocol::Released),
        [
            "scienceqa",
            "mm-vet",
            "llava-bench",
            "coco",
            "flickr30k",
            "nocaps",
            "conceptual"
        ]
    );
    let own = Layout::from(Template::V1Sq);
    assert_eq!(Protocol::Released.template(&own), Template::V1.into());
    assert_eq!(Protocol::Llava.template(&own), own);
}

#[cfg(target_os = "linux")]
#[test]
fn fault_29_a_pipe_in_place_of_a_file_never_waits() {
    use std::os::fd::AsRawFd;
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    for task in TASKS {
        let files = Files {
            questions: pipe.clone(),
            images: None,
            annotations: None,
        };
        let read = task.questions(&files, &QuestionOptions::default());
        let error = read.unwrap_err().to_string();
        assert!(error.contains("a pipe"), "{task}: {error}");
    }
    for error in [
        Answers::read(&pipe).unwrap_err(),
        AnswerFile::open(&pipe).unwrap_err(),
        crate::judge::requests::read_requests(&pipe).unwrap_err(),
        crate::question_list::QuestionFile::open(&pipe).unwrap_err(),
    ] {
        assert!(error.to_string().contains("a pipe"), "{error}");
    }
}
