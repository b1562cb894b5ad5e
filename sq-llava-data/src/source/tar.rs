//! WebDataset's tar files: members that share a key are a sample, `000.json` or `000.txt` with
//! `000.jpg`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tar::{Archive, Entry};

use crate::DataError;
use crate::blob::Blob;
use crate::foreign::guarded;
use crate::image::ImageFormat;
use crate::manifest::{IMAGE_TOKEN, MAX_SAMPLE_BYTES};

/// Members begin at multiples of this.
const BLOCK: u64 = 512;

/// What a member is to its sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Text,
    Picture,
}

/// Where a member's content is.
#[derive(Debug, Clone, Copy)]
struct Member {
    offset: u64,
    bytes: u32,
    /// Its ending, among those of the shard.
    ending: u16,
    kind: Kind,
}

/// Where a sample begins among members and keys.
#[derive(Debug, Clone, Copy)]
struct Start {
    member: u32,
    key: u32,
}

/// An open file: where its members are, about 60 bytes a sample.
#[derive(Debug)]
pub(super) struct TarShard {
    blob: Blob,
    members: Vec<Member>,
    samples: Vec<Start>,
    keys: String,
    endings: Vec<String>,
    /// Of headers and texts.
    crc32: u32,
}

impl TarShard {
    /// Finds the members. The second part says what is wrong behind those that were found.
    ///
    /// # Errors
    /// If the file cannot be read, is no tar file, or a sample of it has no text.
    pub fn open(path: &Path) -> Result<(Self, Option<DataError>), DataError> {
        let blob = Blob::open(path)?;
        let mut index = Index::new(blob);
        let read = guarded(|| index.read()).and_then(|read| read);
        if let Some(wrong) = index.wrong.take() {
            return Err(wrong);
        }
        let damage = read.err().map(|reason| {
            let reason = format!("{reason}; if it was copied, copy it again");
            index.fault(reason, true)
        });
        if damage.is_none() {
            index.end_sample()?;
        }
        match (damage, index.shard.samples.is_empty()) {
            // Not one sample: most likely something else than a tar file.
            (Some(damage), true) => Err(damage),
            (damage, _) => Ok((index.finish(), damage)),
        }
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// What the members of a sample share.
    pub fn key(&self, row: usize) -> &str {
        let end = self.samples.get(row + 1);
        let end = end.map_or(self.keys.len(), |next| next.key as usize);
        &self.keys[self.samples[row].key as usize..end]
    }

    /// Where a sample begins, in bytes.
    pub fn offset(&self, row: usize) -> u64 {
        self.members(row).first().map_or(0, |member| member.offset)
    }

    fn members(&self, row: usize) -> &[Member] {
        let end = self.samples.get(row + 1);
        let end = end.map_or(self.members.len(), |next| next.member as usize);
        &self.members[self.samples[row].member as usize..end]
    }

    fn pictures(&self, row: usize) -> impl Iterator<Item = &Member> {
        let members = self.members(row).iter();
        members.filter(|member| member.kind == Kind::Picture)
    }

    fn read(&self, member: Member) -> Result<Bytes, String> {
        let read = self.blob.read_at(member.offset, member.bytes as usize);
        read.map_err(|e| e.to_string())
    }

    /// The sample's text as a JSON object: its `.json`; its `.txt` stands there as `txt`, and is what
    /// is answered where the object has no messages.
    pub fn object(&self, row: usize) -> Result<Bytes, String> {
        let find = |kind| self.members(row).iter().find(|member| member.kind == kind);
        let json = find(Kind::Json)
            .map(|member| self.read(*member))
            .transpose()?;
        let Some(text) = find(Kind::Text) else {
            // The index has no sample without one of them.
            return json.ok_or_else(|| "it has neither .json nor .txt".into());
        };
        let text = self.read(*text)?;
        let caption = std::str::from_utf8(&text)
            .map_err(|_| "its .txt is not UTF-8")?
            .trim();
        let mut object: Map<String, Value> = match &json {
            Some(json) => serde_json::from_slice(json).map_err(|e| e.to_string())?,
            None => Map::new(),
        };
        if !object.contains_key("conversations") && !object.contains_key("messages") {
            let turns = json!([
                {"from": "human", "value": IMAGE_TOKEN},
                {"from": "gpt", "value": caption},
            ]);
            object.insert("conversations".into(), turns);
        }
        object.insert("txt".into(), caption.into());
        let object = serde_json::to_vec(&object).map_err(|e| e.to_string())?;
        Ok(object.into())
    }

    /// The names of a sample's pictures. Where its text names as many, those are kept: they say the
    /// folder that `asking.sources` knows.
    pub fn name_pictures(&self, row: usize, named: &mut Vec<String>) -> Result<(), String> {
        let own = self.pictures(row).count();
        if own == named.len() {
            return Ok(());
        }
        if !named.is_empty() {
            return Err(format!(
                "its text names {} pictures, but it has {own}",
                named.len()
            ));
        }
        let key = self.key(row);
        let name = |member: &Member| format!("{key}.{}", self.endings[usize::from(member.ending)]);
        *named = self.pictures(row).map(name).collect();
        Ok(())
    }

    /// The bytes of a picture.
    pub fn picture(&self, row: usize, place: usize) -> Result<Bytes, String> {
        let member = self.pictures(row).nth(place);
        self.read(*member.ok_or("it has no such picture")?)
    }

    /// Size of the file, and the sum of all that is no picture.
    pub fn sum(&self) -> (u64, u32) {
        (self.blob.len(), self.crc32)
    }
}

/// A shard while its members are found.
struct Index {
    shard: TarShard,
    hasher: crc32fast::Hasher,
    /// The sample at hand, and what it has: `.json`, `.txt`.
    key: String,
    texts: usize,
    begun: usize,
    /// What is no damage, and yet no sample.
    wrong: Option<DataError>,
}

impl Index {
    fn new(blob: Blob) -> Self {
        Self {
            shard: TarShard {
                blob,
                members: Vec::new(),
                samples: Vec::new(),
                keys: String::new(),
                endings: Vec::new(),
                crc32: 0,
            },
            hasher: crc32fast::Hasher::new(),
            key: String::new(),
            texts: 0,
            begun: 0,
            wrong: None,
        }
    }

    fn fault(&self, reason: String, damaged: bool) -> DataError {
        let place = match self.key.is_empty() {
            true => "its beginning".to_owned(),
            false => format!("sample {:?}", self.key),
        };
        DataError::Shard {
            path: self.shard.blob.path().to_path_buf(),
            place,
            reason,
            damaged,
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let blob = self.shard.blob.clone();
        let len = blob.len();
        let reader = blob.reader(0).map_err(|e| e.to_string())?;
        let mut archive = Archive::new(reader);
        let entries = archive.entries_with_seek().map_err(|e| e.to_string())?;
        let mut end = 0;
        for entry in entries {
            let mut entry = entry.map_err(|e| e.to_string())?;
            end = entry.raw_file_position().saturating_add(entry.size());
            if end > len {
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                return Err(format!("it is cut short: {name} would end at byte {end}"));
            }
            if entry.header().entry_type().is_file() {
                self.member(&mut entry)?;
            }
            if self.wrong.is_some() {
                return Ok(());
            }
        }
        // Whole files end with blocks of nothing.
        match end.next_multiple_of(BLOCK) < len {
            true => Ok(()),
            false => Err("it is cut short: the mark of its end is missing".into()),
        }
    }

    /// Takes in a member, if it is part of a sample.
    fn member(&mut self, entry: &mut Entry<'_, BufReader<File>>) -> Result<(), String> {
        let name = entry.path_bytes().into_owned();
        let name = String::from_utf8(name).map_err(|_| "a member's name is not UTF-8")?;
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        self.hasher.update(entry.header().as_bytes());
        let Some((key, ending)) = split(&name) else {
            return Ok(());
        };
        let Some(kind) = kind_of(ending) else {
            return Ok(());
        };
        if key != self.key {
            self.wrong = self.end_sample().err();
            key.clone_into(&mut self.key);
        }
        let most = match kind {
            Kind::Picture => u64::from(u32::MAX),
            Kind::Json | Kind::Text => MAX_SAMPLE_BYTES,
        };
        if bytes > most {
            return Err(format!("{name} has {bytes} bytes, too many"));
        }
        if kind != Kind::Picture {
            self.texts += 1;
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(|e| e.to_string())?;
            self.hasher.update(&text);
        }
        let ending = self.ending(ending)?;
        self.shard.members.push(Member {
            offset,
            bytes: bytes as u32,
            ending,
            kind,
        });
        Ok(())
    }

    fn ending(&mut self, ending: &str) -> Result<u16, String> {
        let known = &mut self.shard.endings;
        let at = known
            .iter()
            .position(|other| other == ending)
            .unwrap_or_else(|| {
                known.push(ending.to_owned());
                known.len() - 1
            });
        // Endings are searched one by one: there are a few.
        match at < 1000 {
            true => Ok(at as u16),
            false => Err("its members have more than 1000 endings".into()),
        }
    }

    /// Ends the sample at hand.
    fn end_sample(&mut self) -> Result<(), DataError> {
        let members = self.shard.members.len();
        if members > self.begun {
            if self.texts == 0 {
                return Err(self.fault(
                    "it has neither .json nor .txt beside its picture".into(),
                    false,
                ));
            }
            let too_many = |_| self.fault("the file has too many members".into(), false);
            let start = Start {
                member: u32::try_from(self.begun).map_err(too_many)?,
                key: u32::try_from(self.shard.keys.len()).map_err(too_many)?,
            };
            self.shard.samples.push(start);
            self.shard.keys.push_str(&self.key);
        }
        (self.texts, self.begun) = (0, members);
        Ok(())
    }

    fn finish(self) -> TarShard {
        let mut shard = self.shard;
        // Those of a sample that was cut.
        shard.members.truncate(self.begun);
        shard.crc32 = self.hasher.finalize();
        shard
    }
}

/// Key and ending: WebDataset parts a name at the first dot behind its folders.
fn split(name: &str) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.')?;
    // A name that begins with a dot is no sample's.
    (dot > file).then(|| (&name[..dot], &name[dot + 1..]))
}

fn kind_of(ending: &str) -> Option<Kind> {
    let ending = ending.to_ascii_lowercase();
    let last = ending.rsplit('.').next()?;
    match ending.as_str() {
        "json" => Some(Kind::Json),
        "txt" => Some(Kind::Text),
        _ => ImageFormat::from_extension(last).map(|_| Kind::Picture),
    }
}
