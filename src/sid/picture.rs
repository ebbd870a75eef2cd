//! The tree of semantic IDs as an SVG picture: one band per level, one cell per prefix, as wide as it has items and
//! below the prefix it continues. Siblings stand in order of size.

use std::cmp::Reverse;
use std::fmt::Write;

use super::prefixes::{Centre, Prefix, centres, prefixes};
use super::report::{Report, joined};
use crate::catalog::{Catalog, Embeddings};

// Pixels.
const WIDTH: f64 = 1600.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const BAND: f64 = 130.0;
const BOTTOM: f64 = 56.0;
/// Space between two bands.
const GAP: f64 = 4.0;
/// Cells that are narrower are drawn together until they are as wide.
const NARROW: f64 = 1.0;
/// Cells at least so wide get an outline and say on hover what they are.
const OUTLINED: f64 = 4.0;
/// Width and height of a character of a label.
const CHARACTER: [f64; 2] = [7.5, 13.0];

/// Draws the tree. With embeddings a cell is the greyer, the less alike the items under it are.
pub fn svg(report: &Report, catalog: &Catalog, embeddings: Option<&Embeddings>) -> String {
    let levels = catalog.levels();
    let height = TOP + levels as f64 * BAND + BOTTOM;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" fill="#333">
<style>.cell{{stroke:#fff;stroke-width:.6;shape-rendering:geometricPrecision}} .code{{text-anchor:middle;font-size:12px;fill:#fff}} .note{{font-size:13px;fill:#777}}</style>
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="{LEFT}" y="38" font-size="22">{}: {} items on {} semantic IDs</text>
"##,
        escaped(&report.dataset),
        grouped(report.items),
        grouped(report.sids)
    );
    for (at, cells) in bands(catalog, embeddings).iter().enumerate() {
        let level = &report.levels[at];
        let top = TOP + at as f64 * BAND;
        let lines = [
            format!("code {}", level.level),
            format!("{} of {} used", level.used, level.codebook),
            format!("perplexity {:.1}", level.perplexity),
            format!("{} prefixes", grouped(level.prefixes)),
        ];
        for (line, text) in lines.iter().enumerate() {
            let style = [r#" font-size="16""#, r#" class="note""#][(line > 0) as usize];
            let y = top + 44.0 + 19.0 * line as f64;
            let _ = writeln!(svg, r#"<text x="16" y="{y}"{style}>{text}</text>"#);
        }
        let _ = writeln!(
            svg,
            r#"<g id="level{}" shape-rendering="crispEdges">"#,
            level.level
        );
        band(&mut svg, catalog, cells, top);
        svg.push_str("</g>\n");
    }
    let grey = if embeddings.is_some() {
        " Grey: the items under a prefix are unlike each other."
    } else {
        ""
    };
    let _ = writeln!(
        svg,
        r#"<text class="note" x="{LEFT}" y="{}">Width: number of items. Hue: first code.{grey} Dark in the last row: items that share their semantic ID.</text>
</svg>"#,
        height - 24.0
    );
    svg
}

/// A prefix where it is drawn.
struct Cell {
    prefix: Prefix,
    /// Items to the left of it.
    begin: usize,
    /// In degrees.
    hue: f64,
    /// Whether an even number of siblings stands before it.
    even: bool,
    /// 0 to 1: how alike the items under it are, 1 where that is not known.
    cohesion: f64,
    /// 0 to 1: share of its items on an SID that several share, in the last band.
    shared: f64,
}

/// The cells of each level, from left to right.
fn bands(catalog: &Catalog, embeddings: Option<&Embeddings>) -> Vec<Vec<Cell>> {
    let trie = catalog.trie();
    let levels = catalog.levels();
    // Node and begin of the parents, as drawn.
    let mut parents = vec![(0u32, 0usize)];
    let mut bands: Vec<Vec<Cell>> = Vec::new();
    for depth in 1..=levels {
        let first = trie.level(depth).start;
        let prefixes = prefixes(catalog, depth);
        let centres = embeddings.map(|embeddings| centres(catalog, &prefixes, embeddings));
        let mut cells = Vec::with_capacity(prefixes.len());
        let mut nodes = Vec::with_capacity(prefixes.len());
        for (parent, (node, mut begin)) in parents.into_iter().enumerate() {
            let mut children: Vec<u32> = trie.children(node).map(|(_, child)| child).collect();
            children.sort_by_key(|&child| Reverse(prefixes[(child - first) as usize].items));
            for (sibling, child) in children.into_iter().enumerate() {
                let at = (child - first) as usize;
                let prefix = prefixes[at].clone();
                let items = prefix.items;
                let middle = (begin as f64 + items as f64 / 2.0) / catalog.items() as f64;
                let last = depth == levels;
                cells.push(Cell {
                    hue: match bands.last() {
                        Some(above) => above[parent].hue,
                        None => 360.0 * middle,
                    },
                    even: sibling % 2 == 0,
                    cohesion: centres.as_ref().map_or(1.0, |all| cohesion(&all[at])),
                    shared: (last && items > 1) as u8 as f64,
                    begin,
                    prefix,
                });
                nodes.push((child, begin));
                begin += items;
            }
        }
        parents = nodes;
        bands.push(cells);
    }
    bands
}

/// The share of the vectors' mean square that their mean keeps: 1 where they are all the same, or one.
fn cohesion(centre: &Centre) -> f64 {
    let kept = centre.count as f64 * centre.mean.iter().map(|x| x * x).sum::<f64>();
    if kept + centre.spread > 0.0 {
        kept / (kept + centre.spread)
    } else {
        1.0
    }
}

/// Draws the cells of one level.
fn band(svg: &mut String, catalog: &Catalog, cells: &[Cell], top: f64) {
    let scale = (WIDTH - LEFT - RIGHT) / catalog.items() as f64;
    // To two decimals, so that what ends where another begins does so in the file.
    let x = |items: usize| ((LEFT + items as f64 * scale) * 100.0).round() / 100.0;
    let end = |cell: &Cell| cell.begin + cell.prefix.items;
    let mut at = 0;
    while at < cells.len() {
        let first = &cells[at];
        let left = x(first.begin);
        let mut run = 1;
        while x(end(&cells[at + run - 1])) - left < NARROW
            && cells
                .get(at + run)
                .is_some_and(|next| next.hue == first.hue)
        {
            run += 1;
        }
        let drawn = &cells[at..at + run];
        at += run;
        let width = x(end(&drawn[run - 1])) - left;
        let height = BAND - GAP;
        let fill = colour(drawn, width);
        let _ = write!(
            svg,
            r#"<rect x="{left:.2}" y="{top}" width="{width:.2}" height="{height}" fill="{fill}""#
        );
        if width < OUTLINED {
            svg.push_str("/>\n");
            continue;
        }
        let hover = escaped(&described(catalog, first));
        let _ = writeln!(svg, r#" class="cell"><title>{hover}</title></rect>"#);
        let code = first.prefix.codes[first.prefix.codes.len() - 1].to_string();
        let (x, y) = (left + width / 2.0, top + height / 2.0);
        let [across, along] = CHARACTER;
        let turned = if width > across * code.len() as f64 + 4.0 {
            String::new()
        } else if width > along {
            format!(r#" transform="rotate(-90 {x:.2} {y})""#)
        } else {
            continue;
        };
        let base = y + 0.3 * along;
        let _ = writeln!(
            svg,
            r#"<text class="code" x="{x:.2}" y="{base}"{turned}>{code}</text>"#
        );
    }
}

/// The colour of cells drawn as one: hue by the first code, greyer with less cohesion, darker where SIDs are shared.
/// Wide neighbours differ a little.
fn colour(cells: &[Cell], width: f64) -> String {
    let items: usize = cells.iter().map(|cell| cell.prefix.items).sum();
    let mean = |value: fn(&Cell) -> f64| {
        let weighted = cells
            .iter()
            .map(|cell| cell.prefix.items as f64 * value(cell));
        weighted.sum::<f64>() / items as f64
    };
    let own = match width >= OUTLINED {
        true if cells[0].even => -3.0,
        true => 3.0,
        false => 0.0,
    };
    let depth = cells[0].prefix.codes.len().min(4) as f64;
    format!(
        "hsl({:.0},{:.0}%,{:.0}%)",
        cells[0].hue,
        8.0 + 57.0 * mean(|cell| cell.cohesion),
        44.0 + 4.0 * depth + own - 26.0 * mean(|cell| cell.shared)
    )
}

/// What a cell is, for people who point at it.
fn described(catalog: &Catalog, cell: &Cell) -> String {
    let items = grouped(cell.prefix.items);
    let mut text = format!("{}: {items} items", joined(&cell.prefix.codes));
    for title in cell
        .prefix
        .items(catalog)
        .filter_map(|item| catalog.title(item))
        .take(3)
    {
        text += "\n";
        text.extend(title.chars().take(80));
    }
    text
}

/// A number with a comma before every three digits.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text inside an XML element; characters that XML does not allow become spaces.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\n' => escaped.push('\n'),
            '\u{fffe}' | '\u{ffff}' => escaped.push(' '),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Items;
    use crate::rng::{Rng, Stream};

    fn catalog(items: usize, codes: usize, levels: usize) -> Catalog {
        let mut rng = Rng::new(9, Stream::Test, items as u32, 0);
        let code = |_| rng.below(1 + rng.clone().below(codes)) as u32;
        let items = Items {
            names: (0..items).map(|item| item.to_string()).collect(),
            titles: vec!["<b> & \u{1}\u{ffff} \"quoted\"".into(); items],
            levels,
            codes: (0..items * levels).map(code).collect(),
            ..Items::default()
        };
        Catalog::new(items).unwrap()
    }

    #[test]
    fn is_well_formed_and_every_band_is_as_wide_as_the_items() {
        for (items, codes, levels) in [(1, 1, 1), (7, 3, 2), (3001, 40, 3), (900, 5, 5)] {
            let catalog = catalog(items, codes, levels);
            let report = Report::of("a <dataset>", &catalog, None, &[]);
            let svg = svg(&report, &catalog, None);
            let document = roxmltree::Document::parse(&svg).unwrap();
            let bands: Vec<_> = document
                .descendants()
                .filter(|node| node.has_tag_name("g"))
                .collect();
            assert_eq!(bands.len(), levels);
            for band in bands {
                let rects = band.children().filter(|node| node.has_tag_name("rect"));
                let mut right = LEFT;
                for rect in rects {
                    let number = |name| rect.attribute(name).unwrap().parse::<f64>().unwrap();
                    assert!((number("x") - right).abs() < 1e-6);
                    assert!(number("width") > 0.0);
                    right = number("x") + number("width");
                }
                assert!((right - (WIDTH - RIGHT)).abs() < 1e-6, "{right}");
            }
        }
    }

    #[test]
    fn children_stand_below_their_parents() {
        let catalog = catalog(500, 12, 3);
        let bands = bands(&catalog, None);
        for (above, below) in bands.iter().zip(&bands[1..]) {
            for cell in below {
                let parent = above
                    .iter()
                    .find(|parent| cell.prefix.codes.starts_with(&parent.prefix.codes))
                    .unwrap();
                assert!(parent.begin <= cell.begin && parent.hue == cell.hue);
                let end = cell.begin + cell.prefix.items;
                assert!(end <= parent.begin + parent.prefix.items);
            }
        }
    }

    #[test]
    fn what_is_unlike_is_greyer() {
        let catalog = Catalog::new(Items {
            names: ["a", "b", "c", "d"].map(String::from).into(),
            levels: 1,
            codes: vec![0, 0, 1, 1],
            ..Items::default()
        })
        .unwrap();
        let embeddings = Embeddings {
            dim: 2,
            data: vec![1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0],
        };
        let cells = &bands(&catalog, Some(&embeddings))[0];
        assert_eq!((cells[0].cohesion, cells[1].cohesion), (1.0, 0.5));
        assert_eq!(colour(&cells[..1], 9.0), "hsl(90,65%,19%)");
        assert_eq!(colour(&cells[1..], 9.0), "hsl(270,36%,25%)");
        assert_eq!(colour(&cells[1..], 2.0), "hsl(270,36%,22%)");
    }

    #[test]
    fn numbers_and_text_as_people_and_xml_want_them() {
        assert_eq!(
            [7, 123, 1234, 1234567].map(grouped),
            ["7", "123", "1,234", "1,234,567"]
        );
        assert_eq!(escaped("a<b & c\u{0}"), "a&lt;b &amp; c ");
    }
}
