//! METEOR and SPICE: programs in Java that the COCO toolkit runs from Python.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use super::Scored;
use crate::EvalError;

/// Bytes of a program's complaint that are kept.
const COMPLAINT: u64 = 4096;

/// Java and the jars that are there.
#[derive(Debug, Clone)]
pub struct Jars {
    /// The Java runtime; a name is looked for in PATH.
    pub java: PathBuf,
    /// meteor-1.5.jar.
    pub meteor: Option<PathBuf>,
    /// spice-1.0.jar, in the folder that holds its lib folder.
    pub spice: Option<PathBuf>,
}

/// What a program found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JarScore {
    /// Score of all captions together.
    pub(crate) score: f64,
    /// Score of each caption; `None` where the program gives no number.
    pub(crate) each: Vec<Option<f64>>,
}

impl Jars {
    /// METEOR 1.5 with its English settings (`-l en -norm`), by the protocol of its `-stdio` mode:
    /// a line `SCORE ||| references ||| hypothesis` for the statistics of a caption, then one
    /// `EVAL ||| statistics` for the scores of each and of all. `None` without its jar.
    ///
    /// # Errors
    /// If the program cannot be started or says something else.
    pub(crate) fn meteor(&self, scored: &[Scored]) -> Result<Option<JarScore>, EvalError> {
        let Some(jar) = &self.meteor else {
            return Ok(None);
        };
        let mut program = Program::start(&self.java, jar, &["-Xmx2G"], METEOR_MODE)?;
        let mut eval = String::from("EVAL");
        for one in scored {
            let statistics = program.ask(&score_line(one))?;
            eval.push_str(" ||| ");
            eval.push_str(&statistics);
        }
        program.say(&eval)?;
        let each = scored
            .iter()
            .map(|_| program.number().map(Some))
            .collect::<Result<_, _>>()?;
        let score = program.number()?;
        Ok(Some(JarScore { score, each }))
    }

    /// SPICE 1.0: F-scores over scene graphs. Its input, output and cache are in `folder`. `None`
    /// without its jar.
    ///
    /// # Errors
    /// If the program cannot be started, fails, or leaves no scores behind.
    pub(crate) fn spice(
        &self,
        scored: &[Scored],
        folder: &Path,
    ) -> Result<Option<JarScore>, EvalError> {
        let Some(jar) = &self.spice else {
            return Ok(None);
        };
        let cache = folder.join("spice_cache");
        fs::create_dir_all(&cache).map_err(|e| io(&cache, e))?;
        // The program runs in its jar's folder, so that it finds its libraries.
        let folder = folder.canonicalize().map_err(|e| io(folder, e))?;
        let (input, output, cache) = (
            folder.join("spice_input.json"),
            folder.join("spice_output.json"),
            folder.join("spice_cache"),
        );
        let captions: Vec<Value> = scored
            .iter()
            .enumerate()
            .map(|(id, one)| json!({"image_id": id, "test": one.candidate, "refs": one.references}))
            .collect();
        fs::write(&input, Value::from(captions).to_string()).map_err(|e| io(&input, e))?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (of, from, to) = (text(&input), text(&cache), text(&output));
        let arguments = [&of, "-cache", &from, "-out", &to, "-subset", "-silent"];
        Program::start(&self.java, jar, &["-Xmx8G"], &arguments)?.finish()?;
        let bytes = fs::read(&output).map_err(|e| io(&output, e))?;
        let each = spice_scores(&bytes, scored.len()).map_err(|reason| EvalError::Program {
            program: output,
            reason,
        })?;
        let numbers: Vec<f64> = each.iter().flatten().copied().collect();
        let score = numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
        Ok(Some(JarScore { score, each }))
    }
}

const METEOR_MODE: &[&str] = &["-", "-", "-stdio", "-l", "en", "-norm"];

/// The separator must be between texts only.
fn score_line(one: &Scored) -> String {
    let clean = |text: &str| text.replace("|||", "").replace(['\n', '\r'], " ");
    let mut line = String::from("SCORE");
    for text in one.references.iter().chain([&one.candidate]) {
        line.push_str(" ||| ");
        line.push_str(&clean(text).replace("  ", " "));
    }
    line
}

#[derive(Deserialize)]
struct SpiceEntry {
    image_id: usize,
    scores: Value,
}

/// `scores.All.f` of each caption, in the order of the input.
fn spice_scores(bytes: &[u8], count: usize) -> Result<Vec<Option<f64>>, String> {
    let entries: Vec<SpiceEntry> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let mut each = vec![None; count];
    let mut seen = vec![false; count];
    for entry in entries {
        let id = entry.image_id;
        if id >= count || std::mem::replace(&mut seen[id], true) {
            return Err(format!("a score of caption {id}, which was not asked for"));
        }
        each[id] = entry.scores.pointer("/All/f").and_then(Value::as_f64);
    }
    match seen.iter().position(|seen| !seen) {
        Some(id) => Err(format!("no score of caption {id}")),
        None => Ok(each),
    }
}

fn io(path: &Path, source: std::io::Error) -> EvalError {
    EvalError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// A running program that is ended when it is dropped.
struct Program {
    jar: PathBuf,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    complaint: Option<std::thread::JoinHandle<String>>,
}

impl Program {
    fn start(
        java: &Path,
        jar: &Path,
        options: &[&str],
        arguments: &[&str],
    ) -> Result<Self, EvalError> {
        let jar = jar.canonicalize().map_err(|e| io(jar, e))?;
        let folder = jar.parent().unwrap_or(Path::new("."));
        let mut child = Command::new(java)
            .args(options)
            .arg("-jar")
            .arg(&jar)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| EvalError::Program {
                program: java.to_path_buf(),
                reason: format!("cannot be started ({e}); install Java or name it with --java"),
            })?;
        let (input, output, errors) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let lost = || EvalError::Program {
            program: jar.clone(),
            reason: "has no pipes".into(),
        };
        let (output, mut errors) = (output.ok_or_else(lost)?, errors.ok_or_else(lost)?);
        // Read on a thread, or the program stops when the pipe is full.
        let complaint = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What cannot be read is not shown; the program's end is noticed elsewhere.
            let _ = errors.by_ref().take(COMPLAINT).read_to_end(&mut text);
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
            String::from_utf8_lossy(&text).trim().to_string()
        });
        Ok(Self {
            jar,
            child,
            input,
            output: BufReader::new(output),
            complaint: Some(complaint),
        })
    }

    /// Ends the program and makes an error of what it complained about.
    fn failed(&mut self, reason: &str) -> EvalError {
        self.input = None;
        // It may have ended already.
        let _ = self.child.kill();
        let said = self.complaint.take().and_then(|thread| thread.join().ok());
        let said = said.filter(|text| !text.is_empty());
        EvalError::Program {
            program: self.jar.clone(),
            reason: match said {
                Some(said) => format!("{reason}: {said}"),
                None => reason.to_string(),
            },
        }
    }

    fn say(&mut self, line: &str) -> Result<(), EvalError> {
        let sent = self.input.as_mut().map(|input| {
            input.write_all(line.as_bytes())?;
            input.write_all(b"\n")?;
            input.flush()
        });
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failed("ended early")),
        }
    }

    fn hear(&mut self) -> Result<String, EvalError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line.trim().to_string()),
            _ => Err(self.failed("ended early")),
        }
    }

    fn ask(&mut self, line: &str) -> Result<String, EvalError> {
        self.say(line)?;
        self.hear()
    }

    fn number(&mut self) -> Result<f64, EvalError> {
        let line = self.hear()?;
        line.parse()
            .map_err(|_| self.failed(&format!("says {line:?} in place of a number")))
    }

    /// Waits for the end.
    fn finish(mut self) -> Result<(), EvalError> {
        self.input = None;
        let drained = std::io::copy(&mut self.output, &mut std::io::sink());
        match (drained, self.child.wait()) {
            (Ok(_), Ok(status)) if status.success() => Ok(()),
            (_, Ok(status)) => Err(self.failed(&format!("failed ({status})"))),
            (_, Err(error)) => Err(self.failed(&error.to_string())),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.input = None;
        // It may have ended already; then there is nothing to end or to wait for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Something in Java's place that runs a shell script, and a jar.
    fn java(script: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (java, jar) = (dir.path().join("java"), dir.path().join("x.jar"));
        fs::write(&java, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&java, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&jar, "").unwrap();
        (dir, java, jar)
    }

    fn scored() -> Vec<Scored> {
        vec![
            Scored {
                candidate: "a cat ||| sits".into(),
                references: vec!["a cat".into(), "the cat sits".into()],
            },
            Scored {
                candidate: "a dog".into(),
                references: vec!["dogs".into()],
            },
        ]
    }

    /// Answers SCORE with a running number and EVAL with what it was given.
    const PROTOCOL: &str = r#"
[ "$*" = "-Xmx2G -jar $(pwd)/x.jar - - -stdio -l en -norm" ] || { echo "arguments: $*" >&2; exit 3; }
n=0
while IFS= read -r line; do
  echo "$line" >> heard
  case "$line" in
    SCORE*) n=$((n + 1)); echo "$n.5 7.0" ;;
    "EVAL ||| 1.5 7.0 ||| 2.5 7.0") echo 0.25; echo 0.5; echo 0.375 ;;
    *) echo "what?" ;;
  esac
done"#;

    #[test]
    fn meteor_is_spoken_to_by_its_protocol() {
        let (dir, java, jar) = java(PROTOCOL);
        let jars = Jars {
            java,
            meteor: Some(jar),
            spice: None,
        };
        let found = jars.meteor(&scored()).unwrap().unwrap();
        assert_eq!(found.score, 0.375);
        assert_eq!(found.each, [Some(0.25), Some(0.5)]);
        let heard = fs::read_to_string(dir.path().join("heard")).unwrap();
        let first = heard.lines().next().unwrap();
        assert_eq!(first, "SCORE ||| a cat ||| the cat sits ||| a cat sits");
        assert_eq!(jars.spice(&scored(), dir.path()).unwrap(), None);
    }

    #[test]
    fn spice_reads_and_writes_files() {
        let script = r#"
[ "$1 $2 $5 $7 $9" = "-Xmx8G -jar -cache -out -subset" ] || exit 5
grep -q '"test":"a dog"' "$4" || exit 4
echo '[{"image_id": 1, "scores": {"All": {"f": 0.5}}},
       {"image_id": 0, "scores": {"All": {"f": 0.25}}}]' > "$8""#;
        let (dir, java, jar) = java(script);
        let jars = Jars {
            java,
            meteor: None,
            spice: Some(jar),
        };
        let found = jars.spice(&scored(), dir.path()).unwrap().unwrap();
        assert_eq!(found.each, [Some(0.25), Some(0.5)]);
        assert!((found.score - 0.375).abs() < 1e-12);
        assert_eq!(jars.meteor(&scored()).unwrap(), None);
    }

    #[test]
    fn failures_carry_what_the_program_said() {
        let (_dir, java, jar) = java("echo 'no memory' >&2; exit 1");
        let mut jars = Jars {
            java,
            meteor: Some(jar.clone()),
            spice: Some(jar.clone()),
        };
        let error = jars.meteor(&scored()).unwrap_err().to_string();
        assert!(
            error.contains("x.jar") && error.contains("no memory"),
            "{error}"
        );
        let folder = jar.parent().unwrap();
        let error = jars.spice(&scored(), folder).unwrap_err().to_string();
        assert!(error.contains("no memory"), "{error}");
        jars.java = "no-such-java".into();
        let error = jars.meteor(&scored()).unwrap_err().to_string();
        assert!(
            error.contains("no-such-java") && error.contains("--java"),
            "{error}"
        );
        jars.meteor = Some("lost.jar".into());
        assert!(
            jars.meteor(&scored())
                .unwrap_err()
                .to_string()
                .contains("lost.jar")
        );
        assert!(spice_scores(b"[]", 1).unwrap_err().contains("caption 0"));
    }
}
