//! Line charts in a grid, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;

// Pixels.
const WIDTH: u32 = 520;
const HEIGHT: u32 = 230;
const HEADING: u32 = 44;
const MARGIN: u32 = 18;
/// Height of a chart's first line: its title, and its lines' names.
const CAPTION: u32 = 26;
/// Width of a character over the size of the font, on average.
const CHARACTER: f64 = 0.56;

const FONT: &str = "system-ui, sans-serif";
const TEXT: RGBColor = RGBColor(51, 51, 51);
const NOTE: RGBColor = RGBColor(119, 119, 119);
const GRID: RGBColor = RGBColor(232, 232, 232);

/// Colours that are told apart in every kind of sight (Okabe & Ito 2008), yellow aside.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(80, 80, 80),
];

/// A curve.
#[derive(Clone, Debug)]
pub struct Line {
    /// Written beside the title in the line's colour; empty for none.
    pub name: String,
    /// [x, y], by rising x.
    pub points: Vec<[f64; 2]>,
    /// [lo, hi] around each point, drawn as an area; empty for none.
    pub band: Vec<[f64; 2]>,
}

/// A set of axes; its lines take the colours in their order.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x_label: String,
    pub lines: Vec<Line>,
}

impl Chart {
    /// The least and the largest y, bands included; none without a point.
    pub fn y_range(&self) -> Option<[f64; 2]> {
        let points = self.lines.iter().flat_map(|l| &l.points).map(|p| p[1]);
        let bands = self.lines.iter().flat_map(|l| l.band.iter().flatten());
        range(points.chain(bands.copied()))
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    values.fold(None, |range, v| {
        let [lo, hi] = range.unwrap_or([v, v]);
        Some([lo.min(v), hi.max(v)])
    })
}

/// Charts side by side; `None` leaves a place empty.
#[derive(Clone, Debug)]
pub struct Row {
    pub charts: Vec<Option<Chart>>,
    /// Whether they share the y axis.
    pub shared: bool,
}

/// Draws rows of charts under a title.
///
/// # Errors
/// A chart has no point or one that is not finite.
pub fn svg(title: &str, rows: &[Row]) -> Result<String> {
    let columns = rows.iter().map(|row| row.charts.len()).max().unwrap_or(0) as u32;
    let size = (
        columns * WIDTH + 2 * MARGIN,
        HEADING + rows.len() as u32 * HEIGHT + MARGIN,
    );
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        write(&root, title, (MARGIN + 6, 14), 20, TEXT)?;
        for (top, row) in (HEADING..).step_by(HEIGHT as usize).zip(rows) {
            let ranges = row.charts.iter().flatten().filter_map(Chart::y_range);
            let common = range(ranges.flatten()).filter(|_| row.shared);
            for (left, chart) in (MARGIN..).step_by(WIDTH as usize).zip(&row.charts) {
                let Some(chart) = chart else { continue };
                let area = root.clone().shrink((left, top), (WIDTH, HEIGHT));
                draw(&area, chart, common.or(chart.y_range()))?;
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn font(size: u32, colour: &RGBColor) -> TextStyle<'static> {
    let style = (FONT, size).into_font().color(colour);
    style.pos(Pos::new(HPos::Left, VPos::Top))
}

fn write(area: &Area, text: &str, (x, y): (u32, u32), size: u32, colour: RGBColor) -> Result<()> {
    area.draw_text(text, &font(size, &colour), (x as i32, y as i32))
        .map_err(failed)
}

fn width(text: &str, size: u32) -> u32 {
    (text.chars().count() as f64 * size as f64 * CHARACTER) as u32
}

fn draw(area: &Area, chart: &Chart, y: Option<[f64; 2]>) -> Result<()> {
    let [lo, hi] = y.ok_or_else(|| anyhow!("cannot draw {}: no points", chart.title))?;
    let x = range(chart.lines.iter().flat_map(|l| &l.points).map(|p| p[0]));
    let [begin, end] = x.ok_or_else(|| anyhow!("cannot draw {}: no points", chart.title))?;
    let finite = [lo, hi, begin, end].iter().all(|v| v.is_finite());
    anyhow::ensure!(finite, "cannot draw {}: a point is not finite", chart.title);
    let (lo, hi) = widened(lo, hi);
    let begin = begin.min(0.0);
    let end = if end > begin { end } else { begin + 1.0 };

    write(area, &chart.title, (52, 4), 14, TEXT)?;
    let mut at = 52 + width(&chart.title, 14) + 14;
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        write(area, &line.name, (at, 5), 12, *colour)?;
        at += width(&line.name, 12) + 12;
    }
    let mut axes = ChartBuilder::on(area)
        .margin_top(CAPTION)
        .margin_right(16)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(begin..end, lo..hi)
        .map_err(failed)?;
    let small = font(11, &NOTE);
    axes.configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .label_style(small.clone())
        .axis_desc_style(small)
        .x_desc(&chart.x_label)
        .draw()
        .map_err(failed)?;
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        if !line.band.is_empty() {
            let edge = |side: usize| {
                let pairs = line.points.iter().zip(&line.band);
                pairs.map(move |(point, band)| (point[0], band[side]))
            };
            let outline: Vec<_> = edge(0).chain(edge(1).rev()).collect();
            let area = Polygon::new(outline, colour.mix(0.15));
            axes.draw_series([area]).map_err(failed)?;
        }
    }
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.points.iter().map(|&[x, y]| (x, y));
        let style = colour.stroke_width(2);
        // A line of one point is not seen.
        let dots = if line.points.len() == 1 { 3 } else { 0 };
        let series = LineSeries::new(points, style).point_size(dots);
        axes.draw_series(series).map_err(failed)?;
    }
    Ok(())
}

/// A little room above and below, and some where all is equal.
fn widened(lo: f64, hi: f64) -> (f64, f64) {
    let room = match hi - lo {
        0.0 => 0.05 * lo.abs().max(1e-3),
        span => 0.05 * span,
    };
    (lo - room, hi + room)
}

/// At most four digits: `0.0125`, `2.5M`, `1200`, `3e-5`.
fn number(x: f64) -> String {
    let (scaled, unit) = match x.abs() {
        1e9.. => (x / 1e9, "G"),
        1e6.. => (x / 1e6, "M"),
        1e4.. => (x / 1e3, "k"),
        _ => (x, ""),
    };
    // What is far below any figure is a zero that was not summed to one.
    if (1e-12..1e-3).contains(&x.abs()) {
        let text = format!("{x:.2e}");
        let (digits, exponent) = text.split_once('e').expect("written with an exponent");
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        return format!("{digits}e{exponent}");
    }
    let text = format!("{scaled:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".into(),
        text => format!("{text}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[[f64; 2]], band: &[[f64; 2]]) -> Line {
        Line {
            name: name.into(),
            points: points.to_vec(),
            band: band.to_vec(),
        }
    }

    fn chart(lines: Vec<Line>) -> Chart {
        Chart {
            title: "a < b & c".into(),
            x_label: "steps".into(),
            lines,
        }
    }

    fn row(charts: Vec<Option<Chart>>) -> Row {
        Row {
            charts,
            shared: true,
        }
    }

    /// Strokes of the lines, by colour, of a drawn document.
    fn strokes(svg: &str) -> Vec<usize> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let drawn = |colour: &RGBColor| {
            let RGBColor(r, g, b) = colour;
            let colour = format!("#{r:02X}{g:02X}{b:02X}");
            let nodes = document.descendants();
            nodes
                .filter(|n| n.has_tag_name("polyline") && n.attribute("stroke") == Some(&colour))
                .count()
        };
        COLOURS.iter().map(drawn).collect()
    }

    #[test]
    fn every_line_is_drawn_in_its_colour_and_named() {
        let two = || {
            chart(vec![
                line(
                    "first <1>",
                    &[[0.0, 1.0], [5.0, 3.0]],
                    &[[0.5, 1.5], [2.0, 4.0]],
                ),
                line("second", &[[0.0, 2.0], [2.0, 0.0], [5.0, 1.0]], &[]),
            ])
        };
        let one = chart(vec![line("", &[[0.0, 7.0], [1.0, 7.0]], &[])]);
        let drawn = svg(
            "title",
            &[row(vec![Some(two()), None]), row(vec![Some(one)])],
        )
        .unwrap();
        assert_eq!(strokes(&drawn), [2, 1, 0, 0, 0, 0, 0]);
        for name in ["first &lt;1&gt;", "second", "a &lt; b &amp; c", "title"] {
            assert!(drawn.contains(name), "{name}: {drawn}");
        }
        let less = svg("title", &[row(vec![Some(two())])]).unwrap();
        assert_eq!(strokes(&less), [1, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error() {
        assert!(svg("title", &[row(vec![Some(chart(Vec::new()))])]).is_err());
        let endless = line("", &[[0.0, 1.0], [1.0, f64::INFINITY]], &[]);
        assert!(svg("title", &[row(vec![Some(chart(vec![endless]))])]).is_err());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, -1e-17, 0.0125, 1200.0, 25_000.0, 2.5e6, -3e9].map(number),
            ["0", "0", "0.0125", "1200", "25k", "2.5M", "-3G"]
        );
        assert_eq!(
            [1e-3, 3e-5, -0.000_125, 1e-11].map(number),
            ["0.001", "3e-5", "-1.25e-4", "1e-11"]
        );
    }
}
