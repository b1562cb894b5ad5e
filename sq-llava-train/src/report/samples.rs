//! What the model asked and answered on the way: lines of a log, small pictures beside it, and the
//! same for TensorBoard.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use image::RgbImage;
use image::imageops::{FilterType, resize};
use serde::{Deserialize, Serialize};
use sq_llava_data::atomic::write_atomic;

use crate::error::TrainError;
use crate::report::tensorboard::EventWriter;

/// Name of the log in a run directory.
pub(crate) const SAMPLES: &str = "samples.jsonl";
/// Name of the folder of its pictures.
pub(crate) const PICTURES: &str = "samples";
/// Longest side of a picture that is kept for reports, in pixels.
const LONGEST: u32 = 384;

/// What a model said about a picture after a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// 1 or 2.
    pub stage: u8,
    /// Optimizer steps taken.
    pub step: usize,
    /// The small picture in the folder [`PICTURES`].
    pub file: String,
    /// What the data call the picture.
    pub picture: String,
    /// The question that was given; empty where a template has none.
    pub question: String,
    /// The model's answer.
    pub answer: String,
    /// The answer of the data.
    pub reference: Option<String>,
    /// The question that the model asked; `None` where its template does not ask.
    pub asked: Option<String>,
    /// The model's answer to that.
    pub own_answer: Option<String>,
}

impl SampleLine {
    /// Question and answer in one line, then those of the model's own.
    pub fn lines(&self) -> Vec<String> {
        // A model that has learnt little says anything, and a terminal obeys control characters.
        let flat = |text: &str| {
            let words: Vec<&str> = text.split_whitespace().collect();
            words.join(" ").replace(char::is_control, "\u{fffd}")
        };
        let pair = |who: &str, question: &str, answer: &str| match question {
            "" => format!("{who}{}", flat(answer)),
            question => format!("{who}{} → {}", flat(question), flat(answer)),
        };
        let mut lines = vec![pair("", &self.question, &self.answer)];
        if let Some(asked) = &self.asked {
            let answer = self.own_answer.as_deref().unwrap_or_default();
            lines.push(pair("asked: ", asked, answer));
        }
        lines
    }

    /// The same as Markdown, with the answer of the data.
    fn markdown(&self) -> String {
        let quote = |text: &str| text.replace('\n', "\n> ");
        let mut text = String::new();
        if !self.question.is_empty() {
            text += &format!("**Question:** {}\n\n", self.question);
        }
        text += &format!("**Answer:**\n\n> {}\n\n", quote(&self.answer));
        if let Some(reference) = &self.reference {
            text += &format!("**In the data:**\n\n> {}\n\n", quote(reference));
        }
        if let Some(asked) = &self.asked {
            text += &format!("**Asked by the model:**\n\n> {}\n\n", quote(asked));
        }
        if let Some(answer) = &self.own_answer {
            text += &format!("**Its own answer:**\n\n> {}\n\n", quote(answer));
        }
        text
    }
}

/// A picture as reports show it.
#[derive(Debug, Clone)]
pub(crate) struct ShownPicture {
    /// What the data call it.
    pub name: String,
    /// Its name in the folder [`PICTURES`].
    pub file: String,
    size: (u32, u32),
    png: Vec<u8>,
}

impl ShownPicture {
    /// Makes a picture small. `number` is its place among those of a stage.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn new(
        stage: u8,
        number: usize,
        name: &str,
        picture: &RgbImage,
    ) -> Result<Self, TrainError> {
        let (width, height) = picture.dimensions();
        let longest = width.max(height).max(1);
        let side = |side: u32| {
            let side = u64::from(side) * u64::from(LONGEST) / u64::from(longest);
            u32::try_from(side).unwrap_or(LONGEST).max(1)
        };
        let small = match longest > LONGEST {
            true => resize(picture, side(width), side(height), FilterType::Triangle),
            false => picture.clone(),
        };
        let mut png = std::io::Cursor::new(Vec::new());
        let encoded = small.write_to(&mut png, image::ImageFormat::Png);
        encoded.map_err(|e| TrainError::Internal(format!("{name}: no PNG: {e}")))?;
        Ok(Self {
            name: name.to_owned(),
            file: format!("stage{stage}-{number}.png"),
            size: small.dimensions(),
            png: png.into_inner(),
        })
    }
}

/// Keeps the samples of a stage.
#[derive(Debug)]
pub(crate) struct SampleLog {
    path: PathBuf,
    file: File,
    events: Option<EventWriter>,
}

impl SampleLog {
    /// Opens the log of a run, behind what it holds, and puts the pictures beside it.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn open<'a>(
        run: &Path,
        pictures: impl Iterator<Item = &'a ShownPicture>,
        events: Option<EventWriter>,
    ) -> Result<Self, TrainError> {
        let folder = run.join(PICTURES);
        std::fs::create_dir_all(&folder).map_err(|e| TrainError::io(&folder, e))?;
        for picture in pictures {
            let path = folder.join(&picture.file);
            write_atomic(&path, &picture.png).map_err(|e| TrainError::io(path, e))?;
        }
        let path = run.join(SAMPLES);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self {
            file: file.map_err(|e| TrainError::io(&path, e))?,
            path,
            events,
        })
    }

    /// Adds what was said about the pictures at one step.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&mut self, said: &[(SampleLine, &ShownPicture)]) -> Result<(), TrainError> {
        let mut text = String::new();
        for (line, _) in said {
            let line = serde_json::to_string(line)
                .map_err(|e| TrainError::Internal(format!("a sample is not JSON: {e}")))?;
            text += &(line + "\n");
        }
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|e| TrainError::io(&self.path, e))?;
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        for (line, picture) in said {
            let tag = picture.file.trim_end_matches(".png");
            events.text(line.step, tag, &line.markdown())?;
            events.picture(line.step, tag, picture.size, &picture.png)?;
        }
        Ok(())
    }
}

/// The samples of a run, the oldest first; nothing where it has none.
///
/// # Errors
/// If the log cannot be read.
pub(crate) fn read(run: &Path) -> Result<Vec<SampleLine>, TrainError> {
    let path = run.join(SAMPLES);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let io = |e| TrainError::io(&path, e);
    let mut lines = Vec::new();
    for line in BufReader::new(File::open(&path).map_err(io)?).lines() {
        // A kill cuts the last one short.
        lines.extend(serde_json::from_str(&line.map_err(io)?).ok());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize) -> SampleLine {
        SampleLine {
            stage: 2,
            step,
            file: "stage2-0.png".into(),
            picture: "cat.jpg".into(),
            question: "What\nis it?".into(),
            answer: "A cat.".into(),
            reference: Some("A tabby.".into()),
            asked: Some("Where is it?".into()),
            own_answer: Some("On a mat.".into()),
        }
    }

    #[test]
    fn lines_are_kept_and_pictures_made_small() {
        let dir = tempfile::tempdir().unwrap();
        let large = RgbImage::from_pixel(1000, 20, image::Rgb([1, 2, 3]));
        let picture = ShownPicture::new(2, 0, "cat.jpg", &large).unwrap();
        assert_eq!(picture.size, (LONGEST, 7));
        for step in [3, 6] {
            let mut log = SampleLog::open(dir.path(), [&picture].into_iter(), None).unwrap();
            log.write(&[(line(step), &picture)]).unwrap();
        }
        assert_eq!(read(dir.path()).unwrap(), [line(3), line(6)]);
        let kept = image::open(dir.path().join(PICTURES).join("stage2-0.png")).unwrap();
        assert_eq!(kept.to_rgb8().get_pixel(5, 5).0, [1, 2, 3]);
        assert_eq!(
            line(1).lines(),
            ["What is it? → A cat.", "asked: Where is it? → On a mat."]
        );
        let red = SampleLine {
            answer: "\u{1b}[31mred".into(),
            ..line(1)
        };
        assert_eq!(red.lines()[0], "What is it? → \u{fffd}[31mred");
    }
}
