//! A page about a run, in its directory: where it stands, its curves, and what the model asked and
//! answered, newest first. One file that needs nothing else, and loads itself again while the run
//! goes on.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sq_llava_data::atomic::write_atomic;

use crate::error::TrainError;
use crate::report::curves::panels;
use crate::report::samples::{self, PICTURES, SampleLine};

/// Name of the page in a run directory.
pub(crate) const PAGE: &str = "report.html";
/// Seconds after which the page loads itself again.
const REFRESH: u32 = 15;
/// Times at which samples were taken that the page shows; the log has all.
const SHOWN: usize = 20;
/// The page is written at most every so often.
const LEAST: Duration = Duration::from_secs(5);
/// Writing it takes at most one part in so many of the time.
const SHARE: u32 = 50;

const STYLE: &str = include_str!("page.css");

/// Where a run stands, as the page tells it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// `stage 2 of 2`, `finished` …
    pub state: String,
    /// Whether there is more to come: the page then loads itself again.
    pub goes_on: bool,
    /// Part of the stage's steps that are taken, from 0 to 1.
    pub done: f64,
    /// Numbers with their names.
    pub facts: Vec<(&'static str, String)>,
}

/// When the page was written, and how long that took.
#[derive(Debug, Default)]
pub(crate) struct Page {
    last: Option<(Instant, Duration)>,
}

impl Page {
    /// Writes the page, if it is `wanted` or long enough ago.
    ///
    /// # Errors
    /// If a log cannot be read or the page not written.
    pub fn update(&mut self, run: &Path, status: &Status, wanted: bool) -> Result<(), TrainError> {
        let due = self
            .last
            .is_none_or(|(when, took)| when.elapsed() >= LEAST.max(took.saturating_mul(SHARE)));
        if !due && !wanted {
            return Ok(());
        }
        let start = Instant::now();
        write_page(run, status)?;
        self.last = Some((Instant::now(), start.elapsed()));
        Ok(())
    }
}

/// Writes the page of a run from its logs.
///
/// # Errors
/// If a log cannot be read or the page not written.
pub(crate) fn write_page(run: &Path, status: &Status) -> Result<(), TrainError> {
    let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy();
    let text = html(
        &name,
        status,
        &panels(run)?,
        &samples::read(run)?,
        &|file| std::fs::read(run.join(PICTURES).join(file)).ok(),
    );
    let path = run.join(PAGE);
    write_atomic(&path, text).map_err(|e| TrainError::io(path, e))
}

/// `picture` gives the PNG of a file.
fn html(
    run: &str,
    status: &Status,
    panels: &[(u64, String)],
    samples: &[SampleLine],
    picture: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> String {
    let run = escaped(run);
    let refresh = match status.goes_on {
        true => format!("<meta http-equiv=\"refresh\" content=\"{REFRESH}\">\n"),
        false => String::new(),
    };
    let newest = newest(samples);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{refresh}\
         <title>{run} – {}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n",
        escaped(&status.state),
        pictures(&newest, picture),
    );
    header(&mut out, &run, status);
    out += "<main>\n";
    if panels.is_empty() {
        out += "<p class=\"none\">No step is taken yet.</p>\n";
    } else {
        out += "<section class=\"curves\">\n";
        for (_, svg) in panels {
            let _ = writeln!(out, "<figure>{svg}</figure>");
        }
        out += "</section>\n";
    }
    for ((stage, step), lines) in newest.iter().rev() {
        let _ = writeln!(
            out,
            "<section class=\"samples\">\n<h2>Stage {stage}, step {step}</h2>\n<div class=\"cards\">"
        );
        lines.iter().for_each(|line| card(&mut out, line));
        out += "</div>\n</section>\n";
    }
    out += "</main>\n</body>\n</html>\n";
    out
}

fn header(out: &mut String, run: &str, status: &Status) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |time| time.as_secs());
    let clock = format!(
        "{:02}:{:02}:{:02} UTC",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    let _ = writeln!(
        out,
        "<header>\n<h1>{run}</h1>\n<p class=\"state\">{} <span>as of {clock}</span></p>\n\
         <div class=\"bar\"><div style=\"width:{:.1}%\"></div></div>\n<dl>",
        escaped(&status.state),
        100.0 * status.done.clamp(0.0, 1.0),
    );
    for (name, value) in &status.facts {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(value));
    }
    *out += "</dl>\n</header>\n";
}

/// The samples of the last steps at which some were taken, the oldest first.
fn newest(samples: &[SampleLine]) -> BTreeMap<(u8, usize), Vec<&SampleLine>> {
    let mut found: BTreeMap<(u8, usize), Vec<&SampleLine>> = BTreeMap::new();
    for line in samples {
        found.entry((line.stage, line.step)).or_default().push(line);
    }
    while found.len() > SHOWN {
        found.pop_first();
    }
    found
}

/// A rule for each picture: one that is shown many times is in the page once.
fn pictures(
    shown: &BTreeMap<(u8, usize), Vec<&SampleLine>>,
    picture: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> String {
    let lines = shown.values().flatten();
    let files: std::collections::BTreeSet<&str> = lines.map(|line| &*line.file).collect();
    let mut rules = String::new();
    for file in files {
        if let Some(png) = picture(file) {
            let data = STANDARD.encode(png);
            let _ = writeln!(
                rules,
                ".{}{{background-image:url(data:image/png;base64,{data})}}",
                class(file)
            );
        }
    }
    rules
}

/// The name of a picture's rule: `stage1-0.png` is `stage1-0`.
fn class(file: &str) -> String {
    let name = file.trim_end_matches(".png");
    let known = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.chars().map(known).collect()
}

fn card(out: &mut String, line: &SampleLine) {
    let name = escaped(&line.picture);
    let _ = writeln!(
        out,
        "<article>\n<div class=\"picture {}\" role=\"img\" aria-label=\"{name}\" title=\"{name}\"></div>\n<div class=\"said\">",
        class(&line.file)
    );
    pair(out, "given", &line.question, &line.answer);
    if let Some(reference) = &line.reference {
        let reference = escaped(reference);
        let _ = writeln!(out, "<p class=\"reference\">in the data: {reference}</p>");
    }
    if let Some(asked) = &line.asked {
        let answer = line.own_answer.as_deref().unwrap_or_default();
        pair(out, "own", asked, answer);
    }
    *out += "</div>\n</article>\n";
}

fn pair(out: &mut String, who: &str, question: &str, answer: &str) {
    let _ = writeln!(out, "<div class=\"turn {who}\">");
    if !question.is_empty() {
        let _ = writeln!(out, "<p class=\"question\">{}</p>", escaped(question));
    }
    let answer = match answer.is_empty() {
        true => "<i>nothing</i>".to_owned(),
        false => escaped(answer),
    };
    let _ = writeln!(out, "<p class=\"answer\">{answer}</p>\n</div>");
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // HTML has no control characters.
            c if c.is_control() && c != '\n' => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, answer: &str) -> SampleLine {
        SampleLine {
            stage: 2,
            step,
            file: "stage2-0.png".into(),
            picture: "a \"b\".jpg".into(),
            question: "<b>What?</b>".into(),
            answer: answer.into(),
            reference: None,
            asked: Some("Why?".into()),
            own_answer: None,
        }
    }

    #[test]
    fn the_newest_come_first_and_text_is_no_markup() {
        let samples: Vec<SampleLine> = (1..=30)
            .map(|step| line(step, &format!("answer {step}.")))
            .collect();
        let status = Status {
            state: "stage 2 of 2".into(),
            goes_on: true,
            done: 0.5,
            facts: vec![("loss", "1.5".into())],
        };
        let panels = [(2, "<svg></svg>".to_owned())];
        let page =
            |status: &Status| html("r<n", status, &panels, &samples, &|_| Some(vec![1, 2, 3]));
        let text = page(&status);
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
        assert!(at("answer 30.") < at("answer 29.") && at("answer 12.") < at("answer 11."));
        assert!(!text.contains("answer 10."));
        assert!(text.contains("&lt;b&gt;What?&lt;/b&gt;") && !text.contains("<b>What"));
        assert!(text.contains("r&lt;n") && text.contains("a &quot;b&quot;.jpg"));
        // A picture that is shown twenty times is in the page once.
        assert_eq!(text.matches("base64,AQID").count(), 1);
        assert!(text.contains("http-equiv=\"refresh\"") && text.contains("width:50.0%"));
        let over = Status {
            goes_on: false,
            ..status
        };
        assert!(!page(&over).contains("refresh"));
    }
}
