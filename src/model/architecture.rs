//! The shape of a model: what Hugging Face's `config.json` says, for the families this program runs.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// Which Hugging Face family names and biases follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// q/k/v bias.
    Qwen2,
    /// No bias.
    Llama,
    /// No bias; RMSNorm on each head's query and key.
    Qwen3,
}

impl Family {
    pub fn parse(name: &str) -> Result<Family> {
        Ok(match name {
            "qwen2" => Family::Qwen2,
            "llama" => Family::Llama,
            "qwen3" => Family::Qwen3,
            other => bail!("`model_type` = {other:?} is not supported: use qwen2, llama or qwen3"),
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Family::Qwen2 => "qwen2",
            Family::Llama => "llama",
            Family::Qwen3 => "qwen3",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Llama => "LlamaForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// Sizes and switches of a model. Letters as used everywhere in the code: V, d, f, H, Hk, hd.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    pub family: Family,
    /// V
    pub vocab: usize,
    /// d
    pub hidden: usize,
    /// f
    pub intermediate: usize,
    pub layers: usize,
    /// H
    pub heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// hd
    pub head_dim: usize,
    pub rope_theta: f64,
    pub eps: f32,
    pub tied: bool,
    pub qkv_bias: bool,
    /// Positions the checkpoint was made for; kept when saving.
    pub max_positions: usize,
}

impl Architecture {
    /// Whether each head's query and key are normalised.
    pub fn qk_norm(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Width of the query part, H hd.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of a key/value row, 2 Hk hd.
    pub fn kv_width(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Width of the fused projection, (H + 2 Hk) hd.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + self.kv_width()
    }

    /// Reads `config.json`. Errors name the file and the key.
    pub fn load(path: &Path) -> Result<Architecture> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("{}: cannot read the model's configuration", path.display())
        })?;
        let value: Value = serde_json::from_str(&text)
            .with_context(|| format!("{}: not valid JSON", path.display()))?;
        Self::from_json(&value).with_context(|| path.display().to_string())
    }

    fn from_json(c: &Value) -> Result<Architecture> {
        let size = |key: &str| -> Result<usize> {
            let n = c[key]
                .as_u64()
                .with_context(|| format!("`{key}` is missing or not a whole number"))?;
            ensure!(n > 0 && n < 1 << 31, "`{key}` = {n} is out of range");
            Ok(n as usize)
        };
        let flag = |key: &str| c[key].as_bool().unwrap_or(false);
        let family = Family::parse(
            c["model_type"]
                .as_str()
                .context("`model_type` is missing")?,
        )?;
        if let Some(act) = c["hidden_act"].as_str() {
            ensure!(
                act == "silu",
                "`hidden_act` = {act:?}: only silu is supported"
            );
        }
        ensure!(!flag("mlp_bias"), "`mlp_bias` = true is not supported");
        ensure!(
            !flag("use_sliding_window"),
            "`use_sliding_window` = true is not supported"
        );
        let rope = if c["rope_parameters"].is_object() {
            &c["rope_parameters"]
        } else {
            &c["rope_scaling"]
        };
        let kind = rope["rope_type"].as_str().or(rope["type"].as_str());
        ensure!(
            kind.is_none_or(|k| k == "default"),
            "rope type {:?} is not supported: only default",
            kind.unwrap_or_default()
        );
        let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let head_dim = match c.get("head_dim") {
            Some(v) if !v.is_null() => size("head_dim")?,
            _ => hidden / heads,
        };
        // Qwen2 always has the bias; Llama and Qwen3 say so.
        let qkv_bias = match family {
            Family::Qwen2 => true,
            Family::Llama | Family::Qwen3 => flag("attention_bias"),
        };
        ensure!(
            !(qkv_bias && family != Family::Qwen2),
            "`attention_bias` = true is supported for qwen2 only (there without a bias on o_proj)"
        );
        let made = Architecture {
            family,
            vocab: size("vocab_size")?,
            hidden,
            intermediate: size("intermediate_size")?,
            layers: size("num_hidden_layers")?,
            heads,
            kv_heads: c
                .get("num_key_value_heads")
                .filter(|v| !v.is_null())
                .map_or(Ok(heads), |_| size("num_key_value_heads"))?,
            head_dim,
            rope_theta: rope["rope_theta"]
                .as_f64()
                .or(c["rope_theta"].as_f64())
                .unwrap_or(10_000.0),
            eps: c["rms_norm_eps"].as_f64().unwrap_or(1e-6) as f32,
            tied: flag("tie_word_embeddings"),
            qkv_bias,
            max_positions: c["max_position_embeddings"].as_u64().unwrap_or(2048) as usize,
        };
        made.validate()?;
        Ok(made)
    }

    /// Errors: sizes that do not fit together, constants that no number can be divided by or turned with.
    pub fn validate(&self) -> Result<()> {
        for (key, constant) in [
            ("rms_norm_eps", self.eps as f64),
            ("rope_theta", self.rope_theta),
        ] {
            ensure!(
                constant.is_finite() && constant > 0.0,
                "`{key}` = {constant} is out of range: it must be finite and above 0"
            );
        }
        ensure!(
            self.heads.is_multiple_of(self.kv_heads),
            "{} attention heads cannot share {} key/value heads",
            self.heads,
            self.kv_heads
        );
        ensure!(
            self.head_dim.is_multiple_of(2) && self.head_dim > 0,
            "head size {} must be even (rotary pairs)",
            self.head_dim
        );
        ensure!(
            self.head_dim <= 256,
            "head size {} is above 256",
            self.head_dim
        );
        Ok(())
    }

    /// The `config.json` Hugging Face's classes read.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": [self.family.class()],
            "model_type": self.family.name(),
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": format!("{:e}", self.eps).parse::<f64>().unwrap_or(1e-6),
            "rope_theta": self.rope_theta,
            "rope_parameters": { "rope_theta": self.rope_theta, "rope_type": "default" },
            "tie_word_embeddings": self.tied,
            "attention_bias": self.qkv_bias,
            "hidden_act": "silu",
            "bos_token_id": crate::catalog::BOS,
            "torch_dtype": "float32"
        })
    }

    /// Parameters of the backbone, without the value head; where a file asks for more than a usize counts, so many.
    pub fn parameters(&self) -> usize {
        // Every size is below 2^31 and the head's is at most 256.
        let row = (self.qkv_width() + self.q_width() + 3 * self.intermediate + 2) as u128;
        let tables = if self.tied { 1 } else { 2 };
        let rows = (tables * self.vocab + 1) as u128 + self.layers as u128 * row;
        usize::try_from(rows * self.hidden as u128).unwrap_or(usize::MAX)
    }
}
