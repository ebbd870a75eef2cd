//! The model of spec 2 once more: plain f64 loops over one document, nothing shared with the program. A document is a list
//! of tokens with, for each, its position and the tokens it attends to.

use std::collections::BTreeMap;

/// Rows of numbers.
pub type Rows = Vec<Vec<f64>>;

/// Sizes of a model, by their letters in the program's documentation.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub theta: f64,
    pub eps: f64,
    pub tied: bool,
}

/// One token of a document.
#[derive(Clone)]
pub struct Token {
    pub id: usize,
    pub position: usize,
    /// Tokens it attends to, itself included.
    pub sees: Vec<usize>,
}

/// A model by its tensors; matrices are row-major [out, in].
#[derive(Clone)]
pub struct PlainModel {
    pub sizes: Sizes,
    pub tensors: BTreeMap<String, Vec<f64>>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut Rows, y: Rows) {
    for (x, y) in x.iter_mut().flatten().zip(y.into_iter().flatten()) {
        *x += y;
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

impl PlainModel {
    /// `x W^T`, plus the bias if there is one.
    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let weight = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias"));
        let one = |row: &Vec<f64>| {
            let products = weight.chunks_exact(row.len()).map(|w| dot(w, row));
            let biases = (0..).map(|i| bias.map_or(0.0, |b| b[i]));
            products.zip(biases).map(|(p, b)| p + b).collect()
        };
        x.iter().map(one).collect()
    }

    fn norm_row(&self, name: &str, row: &[f64]) -> Vec<f64> {
        let scale = (dot(row, row) / row.len() as f64 + self.sizes.eps).sqrt();
        let weight = &self.tensors[&format!("{name}.weight")];
        row.iter().zip(weight).map(|(x, w)| x / scale * w).collect()
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        x.iter().map(|row| self.norm_row(name, row)).collect()
    }

    /// Queries or keys by [token][head]: normed where the model has such a norm, then turned by their position.
    fn heads(&self, attention: &str, kind: &str, h: &Rows, document: &[Token]) -> Vec<Rows> {
        let n = self.sizes.head_dim;
        let projected = self.linear(&format!("{attention}.{kind}_proj"), h);
        let norm = format!("{attention}.{kind}_norm");
        let turn = |head: &[f64], position: usize| -> Vec<f64> {
            let normed = match self.tensors.contains_key(&format!("{norm}.weight")) {
                true => self.norm_row(&norm, head),
                false => head.to_vec(),
            };
            let half = n / 2;
            let angle =
                |i: usize| position as f64 * self.sizes.theta.powf(-2.0 * i as f64 / n as f64);
            let first =
                (0..half).map(|i| normed[i] * angle(i).cos() - normed[i + half] * angle(i).sin());
            let second =
                (0..half).map(|i| normed[i + half] * angle(i).cos() + normed[i] * angle(i).sin());
            first.chain(second).collect()
        };
        let tokens = projected.iter().zip(document);
        tokens
            .map(|(row, token)| {
                row.chunks_exact(n)
                    .map(|head| turn(head, token.position))
                    .collect()
            })
            .collect()
    }

    /// One decoder layer.
    fn layer(&self, prefix: &str, x: &mut Rows, document: &[Token]) {
        let attention = format!("{prefix}.self_attn");
        let h = self.norm(&format!("{prefix}.input_layernorm"), x);
        let q = self.heads(&attention, "q", &h, document);
        let k = self.heads(&attention, "k", &h, document);
        let v = self.linear(&format!("{attention}.v_proj"), &h);
        let n = self.sizes.head_dim;
        let mut mixed = Rows::new();
        for (t, token) in document.iter().enumerate() {
            let mut row = Vec::new();
            for (head, query) in q[t].iter().enumerate() {
                let shared = head * self.sizes.kv_heads / self.sizes.heads;
                let score = |&j: &usize| dot(query, &k[j][shared]) / (n as f64).sqrt();
                let weights: Vec<f64> = token.sees.iter().map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                row.extend((0..n).map(|i| {
                    let values = token.sees.iter().map(|&j| v[j][shared * n + i]);
                    values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / total
                }));
            }
            mixed.push(row);
        }
        add(x, self.linear(&format!("{attention}.o_proj"), &mixed));
        let h = self.norm(&format!("{prefix}.post_attention_layernorm"), x);
        let gate = self.linear(&format!("{prefix}.mlp.gate_proj"), &h);
        let mut act = self.linear(&format!("{prefix}.mlp.up_proj"), &h);
        for (a, g) in act.iter_mut().flatten().zip(gate.iter().flatten()) {
            *a *= silu(*g);
        }
        add(x, self.linear(&format!("{prefix}.mlp.down_proj"), &act));
    }

    /// Logits and value of every token of a document.
    pub fn run(&self, document: &[Token]) -> (Rows, Vec<f64>) {
        let table = &self.tensors["model.embed_tokens.weight"];
        let width = self.tensors["model.norm.weight"].len();
        let mut x: Rows = document
            .iter()
            .map(|t| table[t.id * width..][..width].to_vec())
            .collect();
        for l in 0..self.sizes.layers {
            self.layer(&format!("model.layers.{l}"), &mut x, document);
        }
        let mut hidden = self.norm("model.norm", &x);
        let head = if self.sizes.tied {
            "model.embed_tokens"
        } else {
            "lm_head"
        };
        let logits = self.linear(head, &hidden);
        self.layer("value_head.block", &mut hidden, document);
        let mut fc1 = self.linear("value_head.fc1", &self.norm("value_head.norm", &hidden));
        fc1.iter_mut().flatten().for_each(|x| *x = silu(*x));
        let values = self.linear("value_head.fc2", &fc1);
        (logits, values.into_iter().flatten().collect())
    }

    /// The gradient of `loss` with respect to every tensor, by central differences.
    pub fn gradient(&self, loss: impl Fn(&PlainModel) -> f64) -> BTreeMap<String, Vec<f64>> {
        const STEP: f64 = 1e-5;
        let mut moved = self.clone();
        let mut out = BTreeMap::new();
        for (name, values) in &self.tensors {
            let mut at = |i: usize, x: f64| {
                moved.tensors.get_mut(name).expect("the same tensors")[i] = x;
                loss(&moved)
            };
            let slope = |(i, &x): (usize, &f64)| {
                let slope = (at(i, x + STEP) - at(i, x - STEP)) / (2.0 * STEP);
                at(i, x);
                slope
            };
            out.insert(name.clone(), values.iter().enumerate().map(slope).collect());
        }
        out
    }
}

/// The log-prob of a token among logits.
pub fn log_prob(logits: &[f64], token: usize) -> f64 {
    logits[token] - logits.iter().map(|l| l.exp()).sum::<f64>().ln()
}
