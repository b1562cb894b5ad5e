//! The report: one HTML file with everything inside.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::looks::Looks;
use super::{Asked, Results, Score, Scores, is_right};
use crate::world::{About, HeldOut};

/// Pictures on the page, and of these at its top.
const SHOWN: usize = 48;
const FIRST: usize = 8;

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
    /// Where prototypes look.
    pub looks: &'a [Looks],
}

const STYLE: &str = include_str!("report.css");

/// The page.
///
/// # Errors
/// If a picture or the loss curves cannot be read.
pub fn html(results: &Results, sheet: &Sheet<'_>) -> Result<String> {
    let all = results.both.all;
    let seconds: f64 = results.seconds.iter().map(|(_, seconds)| seconds).sum();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>SQ-LLaVA quick start</title><style>{STYLE}</style></head><body>\
         <h1>SQ-LLaVA quick start</h1><p class=\"lead\">{:.1} % of {} questions about {} pictures \
         that it had never seen answered right, {seconds:.0} seconds after nothing was there.</p>",
        100.0 * all.part(),
        all.all,
        results.asked.scenes,
    );
    let mut cards = cards(sheet)?.into_iter();
    page.push_str(
        "<div class=\"top\"><main><h2>Asked and answered</h2><p>Green \
         answers are right. A question that it asks is green where what it names is there, red \
         where it is not.</p><div class=\"sheet\">",
    );
    page.extend(cards.by_ref().take(FIRST));
    page.push_str("</div></main><aside><h2>Right answers</h2>");
    page.push_str(&scores(results));
    page.push_str("<h2>Questions that it asked</h2>");
    page.push_str(&asked(results));
    page.push_str("<h2>Time</h2><table><tr><th>part</th><th>seconds</th></tr>");
    for (part, seconds) in &results.seconds {
        // Writing to a string cannot fail.
        let _ = write!(page, "<tr><td>{part}</td><td>{seconds:.1}</td></tr>");
    }
    page.push_str("</table></aside></div>");
    if !sheet.looks.is_empty() {
        page.push_str(
            "<h2>Where each prototype looks</h2><p>A prototype gathers what some patches have in \
             common; the brighter a patch, the more of it the prototype has.</p>",
        );
    }
    for (number, looks) in sheet.looks.iter().enumerate() {
        page.push_str(&looks.html(number, &embedded(&sheet.images.join(&looks.image))?));
    }
    page.push_str(
        "<h2>Loss per token</h2>\
         <p>Stage 1: captions; projector and prototypes learn.<br>\
         Stage 2: asking and answering; adapters learn as well.</p><div class=\"curves\">",
    );
    let curves = sheet.run.join("loss.svg");
    page.push_str(&sq_llava_data::files::read_to_string(&curves)?);
    page.push_str("</div><details><summary>More pictures</summary><div class=\"sheet\">");
    page.extend(cards);
    page.push_str("</div></details></body></html>\n");
    Ok(page)
}

fn scores(results: &Results) -> String {
    let percent = |score: Option<&Score>| match score {
        Some(score) => format!("{:.1} %", 100.0 * score.part()),
        None => "-".into(),
    };
    let all = [&results.chance, &results.stage1, &results.both];
    let mut table = String::from(
        "<table><tr><th>accuracy</th><th>questions</th><th title=\"the most frequent answer\">chance</th>\
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

/// A picture inside the page.
fn embedded(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
}

/// A picture each, with what was asked and answered.
fn cards(sheet: &Sheet<'_>) -> Result<Vec<String>> {
    let (mut cards, mut start) = (Vec::new(), 0);
    for asked in sheet.asked.iter().take(SHOWN) {
        let Some(first) = sheet.questions.get(start) else {
            break;
        };
        let same = sheet.questions[start..].iter();
        let count = same.take_while(|one| one.image == first.image).count();
        let mut card = format!(
            "<div class=\"card\"><img alt=\"{}\" src=\"{}\">",
            escape(&first.image),
            embedded(&sheet.images.join(&first.image))?
        );
        for index in start..start + count {
            let (question, answer) = (&sheet.questions[index], &sheet.answers[index]);
            let right = is_right(question, answer);
            let class = if right { "right" } else { "wrong" };
            let _ = write!(
                card,
                "<p>{} <b class=\"{class}\">{}</b>",
                escape(&question.question),
                escape(answer)
            );
            if !right {
                let _ = write!(card, " (it is {})", escape(&question.answer));
            }
            card.push_str("</p>");
        }
        let _ = write!(
            card,
            "<h3>It says</h3><p>{}</p><h3>It asks</h3>",
            escape(&asked.description)
        );
        for (question, subject) in &asked.questions {
            let class = match subject {
                About::Things { there: true } => "right",
                About::Whole => "whole",
                About::Things { there: false } | About::Unclear => "wrong",
            };
            let _ = write!(card, "<p class=\"{class}\">{}</p>", escape(question));
        }
        card.push_str("</div>");
        cards.push(card);
        start += count;
    }
    Ok(cards)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
