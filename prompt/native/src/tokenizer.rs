//! The two tokenizer engines behind one face.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::guard::Failure;

#[derive(Clone, Copy)]
pub enum Engine {
    Fastokens,
    Tokenizers,
}

pub enum Tokenizer {
    Fastokens(Box<fastokens::Tokenizer>),
    Tokenizers(Box<tokenizers::Tokenizer>),
}

/// The one part of tokenizer_config.json that changes token ids: transformers
/// adds these tokens to those of tokenizer.json, and their flags win.
#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl Config {
    /// The tokens by ascending id, the order in which transformers adds them.
    fn added_tokens(self) -> Result<Vec<AddedToken>, Failure> {
        let mut by_id = BTreeMap::new();
        for (id, token) in self.added_tokens_decoder {
            let id: u32 = id.parse().map_err(|_| {
                Failure::Error(format!(
                    "tokenizer_config.json: added_tokens_decoder: {id:?} is not a token id"
                ))
            })?;
            by_id.insert(id, token);
        }
        Ok(by_id.into_values().collect())
    }
}

impl Tokenizer {
    /// `cache_bytes` bounds fastokens' segment cache, 0 leaves it off. The cache cuts
    /// a text where the engine itself does before it normalises, at the added tokens,
    /// and compares whole segments, so the ids are those of a text encoded afresh.
    pub fn load(json: &[u8], config: &[u8], engine: Engine, cache_bytes: usize) -> Result<Self, Failure> {
        let config: Config = if config.is_empty() {
            Config::default()
        } else {
            serde_json::from_slice(config)
                .map_err(|e| Failure::Error(format!("tokenizer_config.json: {e}")))?
        };
        let added = config.added_tokens()?;
        // transformers switches off what tokenizer.json says of truncation and
        // padding for a call that asks for neither, and so do both engines here.
        Ok(match engine {
            Engine::Fastokens => {
                let mut t = fastokens::Tokenizer::from_json(serde_json::from_slice(json)?)?;
                t.set_truncation(None);
                t.set_padding(None);
                t.add_tokens(&added.into_iter().map(Into::into).collect::<Vec<_>>())?;
                // Always said, so that no environment variable of fastokens decides.
                t.enable_segment_cache(cache_bytes);
                Tokenizer::Fastokens(Box::new(t))
            }
            Engine::Tokenizers => {
                let mut t = tokenizers::Tokenizer::from_bytes(json).map_err(boxed)?;
                t.with_truncation(None).map_err(boxed)?;
                t.with_padding(None);
                t.add_tokens(added.into_iter().map(Into::into)).map_err(boxed)?;
                Tokenizer::Tokenizers(Box::new(t))
            }
        })
    }

    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Failure> {
        match self {
            Tokenizer::Fastokens(t) => Ok(t.encode_with_special_tokens(text, add_special)?),
            Tokenizer::Tokenizers(t) => {
                Ok(t.encode_fast(text, add_special).map_err(boxed)?.get_ids().to_vec())
            }
        }
    }

    pub fn decode(&self, ids: &[u32]) -> Result<String, Failure> {
        match self {
            Tokenizer::Fastokens(t) => Ok(t.decode(ids, false)?),
            Tokenizer::Tokenizers(t) => t.decode(ids, false).map_err(boxed),
        }
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        match self {
            Tokenizer::Fastokens(t) => t.token_to_id(token),
            Tokenizer::Tokenizers(t) => t.token_to_id(token),
        }
    }

    /// None where there is no segment cache.
    pub fn cache_stats(&self) -> Option<fastokens::SegmentCacheStats> {
        match self {
            Tokenizer::Fastokens(t) => t.segment_cache_stats(),
            Tokenizer::Tokenizers(_) => None,
        }
    }

    pub fn vocab_size(&self) -> usize {
        match self {
            Tokenizer::Fastokens(t) => t.vocab_size(),
            Tokenizer::Tokenizers(t) => t.get_vocab_size(true),
        }
    }
}

impl From<AddedToken> for fastokens::NewToken {
    fn from(t: AddedToken) -> Self {
        fastokens::NewToken {
            content: t.content,
            single_word: t.single_word,
            lstrip: t.lstrip,
            rstrip: t.rstrip,
            normalized: t.normalized,
            special: t.special,
        }
    }
}

impl From<AddedToken> for tokenizers::AddedToken {
    fn from(t: AddedToken) -> Self {
        tokenizers::AddedToken {
            content: t.content,
            single_word: t.single_word,
            lstrip: t.lstrip,
            rstrip: t.rstrip,
            normalized: t.normalized,
            special: t.special,
        }
    }
}

fn boxed(error: tokenizers::Error) -> Failure {
    Failure::Error(error.to_string())
}
