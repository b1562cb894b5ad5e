use base64::Engine;

use super::*;
use crate::question::Picture;
use crate::task::fixture::Fixture;

#[test]
fn letters_and_options_are_found_and_sentences_are_not() {
    let options: Vec<String> = ["a dog", "Apple", "3"].map(str::to_owned).to_vec();
    for (text, place) in [
        ("A", Some(0)),
        (" B. ", Some(1)),
        ("C. 3", Some(2)),
        ("(C)", Some(2)),
        ("A a dog", Some(0)),
        ("a dog", Some(0)),
        ("3", Some(2)),
        ("Apple", Some(1)),
        ("A cat is here", None),
        ("D", None),
        ("Both", None),
        ("", None),
    ] {
        assert_eq!(choice(text, &options), place, "{text}");
    }
}

/// Three pixels of a picture, as base64.
fn picture() -> String {
    let image = image::RgbImage::from_pixel(3, 1, image::Rgb([9, 8, 7]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

/// The cells of a workbook's only sheet, as text.
fn sheet(bytes: &[u8]) -> Vec<Vec<String>> {
    use std::io::Read;
    let mut archive = zip_2::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut read = |name: &str| {
        let mut text = String::new();
        let mut file = archive.by_name(name).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let strings = read("xl/sharedStrings.xml");
    let cells = read("xl/worksheets/sheet1.xml");
    let pattern = |text: &str| regex::Regex::new(text).unwrap();
    let strings: Vec<String> = pattern("<t[^>]*>(.*?)</t>")
        .captures_iter(&strings)
        .map(|found| found[1].replace("&quot;", "\""))
        .collect();
    let cell = pattern("<c r=\"([A-Z])[0-9]+\"([^>]*)><v>(.*?)</v>");
    pattern("<row .*?</row>")
        .find_iter(&cells)
        .map(|row| {
            let mut columns = vec![String::new(); 9];
            for found in cell.captures_iter(row.as_str()) {
                let shared = found[2].contains("t=\"s\"");
                let value = found[3].to_owned();
                columns[usize::from(found[1].as_bytes()[0] - b'A')] = match shared {
                    true => strings[value.parse::<usize>().unwrap()].clone(),
                    false => value,
                };
            }
            columns
        })
        .collect()
}

fn table_of(rows: &[&str]) -> Fixture {
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit";
    let picture = picture();
    let rows: Vec<String> = rows
        .iter()
        .map(|row| row.replace("IMAGE", &picture))
        .collect();
    Fixture::new(&MmBench::English, "mmbench_dev.tsv").file(
        "mmbench_dev.tsv",
        &format!("{header}\n{}\n", rows.join("\n")),
    )
}

#[test]
fn mmbench_asks_shows_and_uploads() {
    let fixture = table_of(&[
        "7\t\"Which \"\"one\"\"?\"\tA hint.\tx\ty\tz\t\tB\tcat\tIMAGE\tsrc\tl2\tno\tdev",
        "1000007\tWhich \"one\"?\tA hint.\ty\tz\tx\t\tA\tcat\t7\tsrc\tl2\tno\tdev",
        "9\tWhere?\t\tleft\tright\t\t\tA\tcat\tIMAGE\tsrc\tl2\tno\tdev",
        "bad\tWhere?\t\tleft\tright\t\t\tA\tcat\tIMAGE\tsrc\tl2\tno\tdev",
    ]);
    let questions = fixture.questions();
    assert_eq!(questions.list.len(), 3);
    assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
    let first = &questions.list[0];
    assert_eq!(first.prompt, "A hint.\nWhich \"one\"?\nA. x\nB. y\nC. z");
    assert_eq!(first.text, format!("{}\n{LETTER_ANSWER}", first.prompt));
    for question in &questions.list {
        let Some(Picture::Bytes(bytes, _)) = questions.picture(question).unwrap() else {
            panic!("no bytes");
        };
        assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 3);
    }
    let said = |q: &Question| Some(["B", "A", "right"][q.position].to_owned());
    let given = fixture.answers(&questions, said);
    let line = serde_json::to_string(&given.list[0]).unwrap();
    assert!(
        line.contains(r#""question_id":7,"round_id":0,"prompt":"#)
            && line.contains(r#""options":["x","y","z"],"option_char":["A","B","C"],"answer_id":"#),
        "{line}"
    );
    let report = fixture.score(&questions, &given);
    assert_eq!(report.metrics[0].name, "circular accuracy");
    assert_eq!(report.value("accuracy"), Some(50.0));
    assert_eq!(report.value("circular accuracy"), Some(50.0));
    let wrong_copy = fixture.answers(&questions, |q| Some(["B", "B", "A"][q.position].into()));
    let report = fixture.score(&questions, &wrong_copy);
    assert_eq!(report.value("accuracy"), Some(100.0));
    assert_eq!(report.value("circular accuracy"), Some(50.0));

    let files = fixture.submission(&questions, &given);
    let rows = sheet(&files[0].bytes);
    assert_eq!(
        rows,
        [
            [
                "index",
                "question",
                "A",
                "B",
                "C",
                "D",
                "prediction",
                "answer",
                "split"
            ],
            ["7", "Which \"one\"?", "x", "y", "z", "", "B", "B", "dev"],
            [
                "1000007",
                "Which \"one\"?",
                "y",
                "z",
                "x",
                "",
                "A",
                "A",
                "dev"
            ],
            ["9", "Where?", "left", "right", "", "", "right", "A", "dev"],
        ]
    );
}

#[test]
fn mmbench_rounds_move_the_options() {
    let fixture = table_of(&["7\tWhich?\t\tx\ty\tz\t\tB\tcat\tIMAGE\tsrc\tl2\tno\tdev"]);
    let options = QuestionOptions {
        all_rounds: true,
        ..QuestionOptions::default()
    };
    let questions = fixture.questions_with(&options);
    assert_eq!(questions.list.len(), 3);
    let second = &questions.list[1];
    assert_eq!(second.prompt, "Which?\nA. y\nB. z\nC. x");
    assert_eq!(second.round.as_ref().unwrap().option_char, ["B", "C", "A"]);
    // "y" is right: B, then A, then C.
    let right = |q: &Question| Some(["B", "A", "C"][q.round.as_ref()?.number as usize].to_owned());
    let report = fixture.score(&questions, &fixture.answers(&questions, right));
    assert_eq!(report.value("circular accuracy"), Some(100.0));
    let always = fixture.answers(&questions, |_| Some("B".into()));
    let report = fixture.score(&questions, &always);
    assert_eq!(report.value("accuracy"), Some(100.0));
    assert_eq!(report.value("circular accuracy"), Some(0.0));
}

#[test]
fn fault_20_mmbench_takes_letters_in_any_case() {
    let image = "x".repeat(80);
    let table = format!(
        "index\tquestion\tA\tB\tanswer\timage\n1\tWhich?\tred\tblue\tb\t{image}\n\
         2\tWhich?\tred\tblue\tA \t{image}\n"
    );
    let fixture = Fixture::new(&MmBench::English, "t.tsv").file("t.tsv", &table);
    let questions = fixture.questions();
    let given = fixture.answers(&questions, |q| Some(["B", "A"][q.position].into()));
    let report = fixture.score(&questions, &given);
    assert_eq!(report.value("accuracy"), Some(100.0));
}

fn one_row(row: &str) -> Fixture {
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage";
    Fixture::new(&MmBench::English, "t.tsv").file("t.tsv", &format!("{header}\n{row}\n"))
}

fn coded(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn fault_19_words_for_nothing_are_options() {
    let image = coded(&[7; 60]);
    let words = [
        "None", "N/A", "null", "nan", "NaN", "NULL", "n/a", "NA", "<NA>", "#N/A", "none", "-nan",
    ];
    for word in words {
        let fixture = one_row(&format!(
            "1\tWhich?\t{word}\tred\t{word}\tblue\t\tC\tcat\t{image}"
        ));
        let questions = fixture.questions();
        assert_eq!(
            questions.list[0].prompt,
            format!("{word}\nWhich?\nA. red\nB. {word}\nC. blue"),
            "{word}"
        );
        // And may be answered.
        let given = fixture.answers(&questions, |_| Some(word.into()));
        let report = fixture.score(&questions, &given);
        assert_eq!(
            report.problems.count(ProblemKind::UnclearAnswer),
            0,
            "{word}"
        );
    }
    let fixture = one_row(&format!("1\tWhich?\t\tred\tblue\t\t\tA\tcat\t{image}"));
    assert_eq!(
        fixture.questions().list[0].prompt,
        "Which?\nA. red\nB. blue"
    );
}

#[test]
fn fault_22_base64_may_have_line_breaks_a_prefix_or_no_padding() {
    let bytes: Vec<u8> = (0..=255).chain(0..40).collect();
    let plain = coded(&bytes);
    let folded = |width: usize, end: &str| {
        let lines = plain.as_bytes().chunks(width);
        let lines: Vec<&str> = lines
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        lines.join(end)
    };
    for field in [
        plain.clone(),
        format!("\"{}\n\"", folded(76, "\n")),
        format!("\"{}\"", folded(64, "\r\n")),
        folded(80, " "),
        format!("data:image/png;base64,{plain}"),
        format!("DATA:image/jpeg;base64,{}", folded(100, " ")),
        plain.trim_end_matches('=').to_owned(),
    ] {
        let fixture = one_row(&format!("1\tWhich?\t\tred\tblue\t\t\tA\tcat\t{field}"));
        let questions = fixture.questions();
        let picture = questions.picture(&questions.list[0]).unwrap();
        let Some(Picture::Bytes(found, _)) = picture else {
            panic!("no bytes: {field}");
        };
        assert_eq!(found, bytes, "{field}");
    }
    let fixture = one_row(&format!("1\tWhich?\t\tred\tblue\t\t\tA\tcat\t{plain}*"));
    let questions = fixture.questions();
    let error = questions.picture(&questions.list[0]).unwrap_err();
    assert!(error.to_string().contains("no base64"), "{error}");
}
