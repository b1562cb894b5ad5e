//! The report: one HTML file with everything inside.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Asked, Results, Score, Scores, is_right};
use crate::world::{About, HeldOut};

/// Pictures on the sheet.
const SHOWN: usize = 48;

/// What the sheet shows beside the numbers.
pub struct Sheet<'a> {
    /// Questions about held-out scenes, those of one scene together.
    pub questions: &'a [HeldOut],
    /// Their answers.
    pub answers: &'a [String],
    /// What was asked about each scene.
    pub asked: &'a [Asked],
    /// Folder of the pictures.
    pub images: &'a Path,
    /// The run directory, for its loss curves.
    pub run: &'a Path,
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}\
table{border-collapse:collapse}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}\
svg{max-width:100%;height:auto}\
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:1em}\
.card{border:1px solid #ddd;border-radius:6px;padding:.8em;font-size:13px}\
.card img{width:144px;height:144px;float:left;margin:0 .8em .4em 0;border-radius:4px}\
.card p{margin:.1em 0;white-space:pre-line}.card h3{clear:both;font-size:13px;margin:.5em 0 0}\
.right{color:#0a7a2f}.wrong{color:#b3261e}.whole{color:#666}";

/// The page.
///
/// # Errors
/// If a picture or the loss curves cannot be read.
pub fn html(results: &Results, sheet: &Sheet<'_>) -> Result<String> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>SQ-LLaVA quick start</title><style>{STYLE}</style></head><body>\
         <h1>SQ-LLaVA quick start</h1>"
    );
    page.push_str("<h2>Answers about held-out scenes</h2>");
    page.push_str(&scores(results));
    page.push_str("<h2>Questions that it asked</h2>");
    page.push_str(&asked(results));
    page.push_str(
        "<h2>Loss per token</h2>\
         <p>Stage 1: captions; projector and prototypes learn.<br>\
         Stage 2: asking and answering; adapters learn as well.</p>",
    );
    let curves = sheet.run.join("loss.svg");
    page.push_str(&sq_llava_data::files::read_to_string(&curves)?);
    page.push_str("<h2>Time</h2><table><tr><th>part</th><th>seconds</th></tr>");
    for (part, seconds) in &results.seconds {
        // Writing to a string cannot fail.
        let _ = write!(page, "<tr><td>{part}</td><td>{seconds:.1}</td></tr>");
    }
    page.push_str("</table><h2>Scenes</h2><div class=\"sheet\">");
    cards(sheet, &mut page)?;
    page.push_str("</div></body></html>\n");
    Ok(page)
}

fn scores(results: &Results) -> String {
    let percent = |score: Option<&Score>| match score {
        Some(score) => format!("{:.1} %", 100.0 * score.part()),
        None => "-".into(),
    };
    let all = [&results.chance, &results.stage1, &results.both];
    let mut table = String::from(
        "<table><tr><th>accuracy</th><th>questions</th><th>most frequent answer</th>\
         <th>stage 1 only</th><th>both stages</th></tr>",
    );
    let mut row = |name: &str, count: usize, cells: [String; 3]| {
        let cells = cells.map(|cell| format!("<td>{cell}</td>")).concat();
        let _ = write!(table, "<tr><td>{name}</td><td>{count}</td>{cells}</tr>");
    };
    for (kind, score) in &results.both.kinds {
        row(kind, score.all, all.map(|s| percent(s.kinds.get(kind))));
    }
    row(
        "all",
        results.both.all.all,
        all.map(|s| percent(Some(&s.all))),
    );
    let f1 = |scores: &Scores| scores.yes_f1.map_or("-".into(), |f1| format!("{f1:.3}"));
    let count = results
        .both
        .kinds
        .get("yes/no")
        .map_or(0, |score| score.all);
    row("yes/no F1", count, all.map(f1));
    table.push_str("</table>");
    table
}

fn asked(results: &Results) -> String {
    let asked = &results.asked;
    let mut table = String::from("<table><tr><th></th><th>questions</th></tr>");
    for (name, count) in [
        ("asked", asked.all),
        ("well formed", asked.clear),
        ("about a thing or a place", asked.things),
        ("… that is there", asked.there),
        (
            "… that would be there in the next picture",
            asked.there_elsewhere,
        ),
    ] {
        let _ = write!(table, "<tr><td>{name}</td><td>{count}</td></tr>");
    }
    let _ = write!(
        table,
        "</table><p>Before asking it describes the picture: {} of {} descriptions are right in every word.</p>",
        asked.described, asked.scenes
    );
    table
}

fn cards(sheet: &Sheet<'_>, page: &mut String) -> Result<()> {
    let mut start = 0;
    for asked in sheet.asked.iter().take(SHOWN) {
        let Some(first) = sheet.questions.get(start) else {
            break;
        };
        let same = sheet.questions[start..].iter();
        let count = same.take_while(|one| one.image == first.image).count();
        let path = sheet.images.join(&first.image);
        let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let _ = write!(
            page,
            "<div class=\"card\"><img alt=\"{}\" src=\"data:image/png;base64,{}\">",
            escape(&first.image),
            STANDARD.encode(bytes)
        );
        for index in start..start + count {
            let (question, answer) = (&sheet.questions[index], &sheet.answers[index]);
            let right = is_right(question, answer);
            let class = if right { "right" } else { "wrong" };
            let _ = write!(
                page,
                "<p>{} <b class=\"{class}\">{}</b>",
                escape(&question.question),
                escape(answer)
            );
            if !right {
                let _ = write!(page, " (it is {})", escape(&question.answer));
            }
            page.push_str("</p>");
        }
        let _ = write!(
            page,
            "<h3>It says</h3><p>{}</p><h3>It asks</h3>",
            escape(&asked.description)
        );
        for (question, subject) in &asked.questions {
            let class = match subject {
                About::Things { there: true } => "right",
                About::Whole => "whole",
                About::Things { there: false } | About::Unclear => "wrong",
            };
            let _ = write!(page, "<p class=\"{class}\">{}</p>", escape(question));
        }
        page.push_str("</div>");
        start += count;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
