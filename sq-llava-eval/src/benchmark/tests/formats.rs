//! Files as people have them: words that look like missing values, pictures as base64 in its
//! several forms, NoCaps in a file for each domain, pipes.

use base64::Engine;

use super::*;

fn mmbench(row: &str) -> Fixture {
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage";
    Fixture::new(Benchmark::MmBench, "t.tsv").file("t.tsv", &format!("{header}\n{row}\n"))
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn fault_19_words_for_nothing_are_options() {
    let image = base64(&[7; 60]);
    let words = [
        "None", "N/A", "null", "nan", "NaN", "NULL", "n/a", "NA", "<NA>", "#N/A", "none", "-nan",
    ];
    for word in words {
        let fixture = mmbench(&format!(
            "1\tWhich?\t{word}\tred\t{word}\tblue\t\tC\tcat\t{image}"
        ));
        let questions = fixture.questions();
        assert_eq!(
            questions.list[0].prompt,
            format!("{word}\nWhich?\nA. red\nB. {word}\nC. blue"),
            "{word}"
        );
        // And may be answered.
        let given = answers(&questions, |_| Some(word.into()));
        let report = fixture.score(&questions, &given);
        assert_eq!(
            report.problems.count(ProblemKind::UnclearAnswer),
            0,
            "{word}"
        );
    }
    let fixture = mmbench(&format!("1\tWhich?\t\tred\tblue\t\t\tA\tcat\t{image}"));
    assert_eq!(
        fixture.questions().list[0].prompt,
        "Which?\nA. red\nB. blue"
    );
}

#[test]
fn fault_22_base64_may_have_line_breaks_a_prefix_or_no_padding() {
    let bytes: Vec<u8> = (0..=255).chain(0..40).collect();
    let plain = base64(&bytes);
    let folded = |width: usize, end: &str| {
        let lines = plain.as_bytes().chunks(width);
        let lines: Vec<&str> = lines
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        lines.join(end)
    };
    for coded in [
        plain.clone(),
        format!("\"{}\n\"", folded(76, "\n")),
        format!("\"{}\"", folded(64, "\r\n")),
        folded(80, " "),
        format!("data:image/png;base64,{plain}"),
        format!("DATA:image/jpeg;base64,{}", folded(100, " ")),
        plain.trim_end_matches('=').to_owned(),
    ] {
        let fixture = mmbench(&format!("1\tWhich?\t\tred\tblue\t\t\tA\tcat\t{coded}"));
        let questions = fixture.questions();
        let picture = questions.picture(&questions.list[0]).unwrap();
        let Some(Picture::Bytes(found, _)) = picture else {
            panic!("no bytes: {coded}");
        };
        assert_eq!(found, bytes, "{coded}");
    }
    let fixture = mmbench(&format!("1\tWhich?\t\tred\tblue\t\t\tA\tcat\t{plain}*"));
    let questions = fixture.questions();
    let error = questions.picture(&questions.list[0]).unwrap_err();
    assert!(error.to_string().contains("no base64"), "{error}");
}

/// NoCaps as the released SQ-LLaVA has it; `captions` tells where its captions are.
fn nocaps(captions: impl Fn(Fixture) -> Fixture) -> (Fixture, Files) {
    let mut fixture = Fixture::new(Benchmark::NoCaps, "nocaps");
    for (domain, first) in [("near-domain", "n"), ("out-domain", "o")] {
        let lines = [0, 1].map(|id| {
            json!({"question_id": id, "image": format!("{first}{id}.jpg"), "text": "Describe."})
        });
        fixture = fixture.lines(&format!("nocaps/{domain}_question.jsonl"), &lines);
        for id in [0, 1] {
            fixture = fixture.file(&format!("nocaps/images/{domain}/{first}{id}.jpg"), "x");
        }
    }
    let fixture = captions(fixture);
    let files = Files::find(Benchmark::NoCaps, fixture.folder.path()).unwrap();
    (fixture, files.unwrap())
}

fn check_nocaps(files: &Files) {
    let mut questions =
        Questions::read(Benchmark::NoCaps, files, &QuestionOptions::default()).unwrap();
    questions.drop_without_image();
    let ids: Vec<String> = questions.list.iter().map(|q| q.id.to_string()).collect();
    assert_eq!(
        ids,
        [
            "near-domain/0",
            "near-domain/1",
            "out-domain/0",
            "out-domain/1"
        ]
    );
    let said = |q: &Question| match q.id.to_string().as_str() {
        "near-domain/0" => "A red dog runs.",
        "near-domain/1" => "A blue bird sits.",
        "out-domain/0" => "A wombat eats.",
        _ => "An armadillo sleeps.",
    };
    let given = answers(&questions, |q| Some(said(q).into()));
    let report = score(&questions, &given, files.annotations.as_deref()).unwrap();
    assert_eq!(report.problems.total(), 0, "{:?}", report.problems.lines());
    for (name, count) in [
        ("ROUGE-L", 4),
        ("near-domain ROUGE-L", 2),
        ("out-domain ROUGE-L", 2),
    ] {
        let metric = report.metrics.iter().find(|m| m.name == name).unwrap();
        assert_eq!(metric.count, count, "{name}");
        assert!(
            (metric.value - 100.0).abs() < 1e-9,
            "{name}: {}",
            metric.value
        );
    }
}

#[test]
fn fault_22_nocaps_takes_the_files_of_all_domains() {
    let near = json!([{"image": "n0.jpg", "caption": ["A red dog runs."]},
        {"image": "n1.jpg", "caption": ["A blue bird sits."]}]);
    let out = json!([{"caption": ["A wombat eats."]}, {"caption": ["An armadillo sleeps."]}]);
    let (fixture, files) = nocaps(|fixture| {
        fixture
            .json("nocaps/nocaps_val_near_domain.json", &near)
            .json("nocaps/nocaps_val_out_domain.json", &out)
    });
    assert_eq!(files.questions, fixture.path("nocaps"));
    check_nocaps(&files);
    // The whole of the validation set in one file.
    let picture =
        |id: u32, name: &str, domain: &str| json!({"id": id, "file_name": name, "domain": domain});
    let whole = json!({
        "images": [picture(0, "n0.jpg", "near-domain"), picture(1, "o0.jpg", "out-domain"),
            picture(2, "n1.jpg", "near-domain"), picture(3, "o1.jpg", "out-domain")],
        "annotations": [{"image_id": 0, "caption": "A red dog runs."},
            {"image_id": 1, "caption": "A wombat eats."},
            {"image_id": 2, "caption": "A blue bird sits."},
            {"image_id": 3, "caption": "An armadillo sleeps."}]});
    let (fixture, files) =
        nocaps(|fixture| fixture.json("nocaps/nocaps_val_4500_captions.json", &whole));
    assert_eq!(
        files.annotations,
        Some(fixture.path("nocaps/nocaps_val_4500_captions.json"))
    );
    check_nocaps(&files);
}

#[test]
fn fault_22_two_files_of_a_domain_are_an_error() {
    let fixture = Fixture::new(Benchmark::NoCaps, "nocaps")
        .file("nocaps/near-domain_question.jsonl", "")
        .file("nocaps/question_near_domain.jsonl", "");
    let error = Files::find(Benchmark::NoCaps, fixture.folder.path()).unwrap_err();
    assert!(
        error.to_string().contains("both of the near-domain"),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn fault_29_a_pipe_in_place_of_a_file_never_waits() {
    use std::os::fd::AsRawFd;
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    for benchmark in Benchmark::ALL {
        let files = Files {
            questions: pipe.clone(),
            images: None,
            annotations: None,
        };
        let read = Questions::read(benchmark, &files, &QuestionOptions::default());
        let error = read.unwrap_err().to_string();
        assert!(error.contains("a pipe"), "{benchmark}: {error}");
    }
    for error in [
        Answers::read(&pipe).unwrap_err(),
        AnswerFile::open(&pipe).unwrap_err(),
        crate::judge::requests::read_requests(&pipe).unwrap_err(),
        crate::questions::QuestionFile::open(&pipe).unwrap_err(),
    ] {
        assert!(error.to_string().contains("a pipe"), "{error}");
    }
}
