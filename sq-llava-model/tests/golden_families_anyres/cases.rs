//! Models that lay pictures over tiles, with their prompts and pictures.

use std::path::{Path, PathBuf};

use burn_flex::Flex;
use golden::{Tensors, Value, families, json};
use sq_llava_data::image::{ImageProcessor, PreparedImage};
use sq_llava_model::config::{Family, VisionFamily};
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_model::{IMAGE_TOKEN_INDEX, ModelError, SqLlava};

/// A case and its reference.
pub struct Case {
    pub dir: PathBuf,
    pub json: Value,
    pub tensors: Tensors,
}

/// A model with the processor of its pictures.
pub struct Seeing {
    /// Case and layout.
    pub name: String,
    pub model: SqLlava<Flex>,
    pub processor: ImageProcessor,
}

/// A prompt of a case.
pub struct Prompt<'a> {
    pub name: &'a str,
    pub case: &'a Case,
    pub json: &'a Value,
}

impl Case {
    pub fn prompts(&self) -> Vec<Prompt<'_>> {
        let prompts = self.json["prompts"].as_array().expect("prompts").iter();
        prompts
            .map(|json| Prompt {
                name: json["name"].as_str().expect("a name"),
                case: self,
                json,
            })
            .collect()
    }

    pub fn options(&self) -> LoadOptions {
        let tower = self.dir.join("vision_tower");
        LoadOptions {
            vision: tower.is_dir().then_some(tower),
            ..LoadOptions::default()
        }
    }

    pub fn load(&self, dir: &Path) -> Result<Seeing, ModelError> {
        // A tower beside belongs to the original layout.
        let options = match dir.join("preprocessor_config.json").is_file()
            || dir.join("processor_config.json").is_file()
        {
            true => LoadOptions::default(),
            false => self.options(),
        };
        let loaded = load_model::<Flex>(dir, &options, &Default::default())?;
        let name = format!("{} {}", self.dir.display(), golden::file_name(dir));
        assert!(loaded.report.is_clean(), "{name}: {}", loaded.report);
        let folder = loaded.files.preprocessor.expect("a processor");
        let processor = loaded.model.config.image_processor(&folder)?;
        Ok(Seeing {
            name,
            model: loaded.model,
            processor: ImageProcessor::new(processor)?,
        })
    }

    /// The model in every layout that is there.
    pub fn layouts(&self) -> Vec<Seeing> {
        let layouts = ["model", "hub", "v4_52", "orig"];
        let found = layouts.into_iter().map(|name| self.dir.join(name));
        found
            .filter(|dir| dir.is_dir())
            .map(|dir| {
                self.load(&dir)
                    .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            })
            .collect()
    }

    pub fn model(&self) -> Seeing {
        self.load(&self.dir.join("model")).expect("a model")
    }
}

/// Whole models that take pictures of any shape. One whose tower is not built must be refused.
pub fn cases() -> Vec<Case> {
    let mut found = Vec::new();
    for dir in golden::entries(&families()) {
        let outputs = dir.join("outputs.json");
        if !outputs.is_file() {
            continue;
        }
        let json = json(&outputs);
        let tiles = ["llava_next", "llava_onevision"].map(Value::from);
        if json["kind"] != "vlm" || !tiles.contains(&json["family"]) {
            continue;
        }
        let text = |key: &str| json[key].as_str().expect("a name").to_owned();
        let case = Case {
            tensors: Tensors::read(&dir.join("outputs.safetensors")),
            json: json.clone(),
            dir,
        };
        if VisionFamily::of(&text("vision")).is_some() && Family::of(&text("text")).is_some() {
            found.push(case);
            continue;
        }
        eprintln!("{}: not built", case.dir.display());
        let refused = case.load(&case.dir.join("model")).err().expect("refused");
        let refused = refused.to_string();
        let named = refused.contains(&text("vision")) || refused.contains(&text("text"));
        assert!(named, "{refused}");
    }
    assert!(!found.is_empty(), "no model that lays pictures over tiles");
    found
}

impl Prompt<'_> {
    pub fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    pub fn ids(&self) -> Vec<i64> {
        self.case.tensors.i64(&self.key("input_ids"))
    }

    /// The ids with one mark for each picture: stored, or made by leaving out all but one of the
    /// placeholders of each.
    pub fn compact(&self) -> Vec<i64> {
        let stored = self.key("input_ids_orig");
        if self.case.tensors.contains(&stored) {
            return self.case.tensors.i64(&stored);
        }
        let placeholder = self.case.json["image_token_id"].as_i64().expect("an id");
        let counts = self.json["image_tokens"].as_array();
        let counts = counts.map_or(vec![], |counts| {
            counts
                .iter()
                .map(|n| n.as_u64().expect("a count"))
                .collect()
        });
        let mut left = counts.into_iter();
        let (mut compact, mut skip) = (Vec::new(), 0);
        for id in self.ids() {
            match (id == placeholder, skip) {
                (false, _) => compact.push(id),
                (true, 0) => {
                    compact.push(IMAGE_TOKEN_INDEX);
                    skip = left.next().expect("a count") - 1;
                }
                (true, _) => skip -= 1,
            }
        }
        compact
    }

    pub fn greedy(&self) -> Vec<i64> {
        let ids = self.json["greedy"]["ids_without_stopping"].as_array();
        let ids = ids.expect("ids").iter();
        ids.map(|id| id.as_i64().expect("an id")).collect()
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let names = self.json["images"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let names = names.iter().map(|name| name.as_str().expect("a path"));
        names.map(|name| families().join(name)).collect()
    }

    /// Its pictures from their files.
    pub fn opened(&self, processor: &ImageProcessor) -> Vec<PreparedImage> {
        let files = self.files();
        let open = |path: &PathBuf| {
            let image = processor.open(path).expect("a picture");
            processor.prepare(&image, files.len())
        };
        files.iter().map(open).collect()
    }

    /// Its pictures with transformers' pixels. A batch is filled up with tiles of zeros.
    pub fn stored(&self, processor: &ImageProcessor) -> Vec<PreparedImage> {
        let mut pictures = self.opened(processor);
        if pictures.is_empty() {
            return pictures;
        }
        let pixels = self.case.tensors.f32(&self.key("pixel_values"));
        let each = pixels.len() / pictures.len();
        for (picture, pixels) in pictures.iter_mut().zip(pixels.chunks_exact(each)) {
            let size = picture.data.len();
            picture.data.copy_from_slice(&pixels[..size]);
        }
        pictures
    }
}
