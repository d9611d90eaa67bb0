//! One line chart as inline SVG: named lines on two axes, labelled where they end, readable in light and dark.
//!
//! PURE. Colours are classes (`c0` to `c5`, `mark`) whose values the page's style gives. It draws no bars, and at
//! most as many lines as can be told apart.

use std::fmt::Write as _;

use crate::options_map;

/// The drawing's own units; it is scaled to the width that there is.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 44.0;
/// Room for labels at the lines' ends, per character and at least.
const CHARACTER: f64 = 7.4;
const RIGHT_MIN: f64 = 40.0;
/// From one label to the next below it.
const LABEL_STEP: f64 = 16.0;
/// Colours of lines that are no marks; more lines begin again.
pub const COLOURS: usize = 6;
/// The points of a line get dots when they are further apart than this.
const DOT_DISTANCE: f64 = 18.0;

options_map! {
    /// An item of `series`: one line.
    pub struct Series {
        /// What stands at its end. The same name has the same colour in all figures of a page.
        pub name: String,
        /// Pairs `[x, y]` with rising x; a y of `()` is a gap.
        pub points: Vec<(f64, Option<f64>)>,
        /// Drawn dashed and grey: something to measure by.
        #[serde(default)]
        pub mark: bool,
    }
}

options_map! {
    /// An item of `spans`: a part of the x axis that is shaded.
    pub struct Shade {
        pub from: f64,
        pub to: f64,
        /// What stands in it.
        pub label: String,
    }
}

options_map! {
    /// An item of `figures`: a line chart.
    pub struct Figure {
        pub title: String,
        /// What x is, with its unit.
        pub x: String,
        /// What y is, with its unit.
        pub y: String,
        /// Whether y has a logarithmic axis (default: false).
        #[serde(default)]
        pub log: bool,
        /// The largest y shown; lines that rise above it leave the figure (default: all is shown).
        #[serde(default)]
        pub y_max: Option<f64>,
        pub series: Vec<Series>,
        /// Parts of the x axis that are shaded, maps of `from`, `to` and `label`.
        #[serde(default)]
        pub spans: Vec<Shade>,
    }
}

/// From values to places on one axis.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let (low, high) = (scaled(self.low), scaled(self.high));
        self.from + (scaled(value) - low) / (high - low) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log { log_ticks(self.low, self.high) } else { ticks(self.low, self.high) }
    }
}

/// A line's label and where its line ends.
struct Label<'a> {
    text: &'a str,
    class: String,
    x: f64,
    y: f64,
}

/// The chart. `class_of` gives the class of a line by its name.
#[must_use]
pub fn svg(figure: &Figure, class_of: impl Fn(&Series) -> String) -> String {
    let longest = figure.series.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let right = WIDTH - (14.0 + CHARACTER * longest as f64).max(RIGHT_MIN);
    let (x, y) = axes(figure, right);
    let mut text = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(&format!("{}: {} against {}", figure.title, figure.y, figure.x))
    );
    let _ = writeln!(text, "<text class=\"title\" x=\"0\" y=\"15\">{}</text>", escaped(&figure.title));
    let _ = writeln!(text, "<text class=\"axis\" x=\"0\" y=\"34\">{}</text>", escaped(&figure.y));
    shades(&mut text, &figure.spans, &x);
    grid(&mut text, figure, &x, &y, right);
    let (mut ends, mut leaving) = (Vec::new(), Vec::new());
    for line in &figure.series {
        let class = class_of(line);
        if let Some(label) = draw(&mut text, line, &class, &x, &y) {
            if label.y < TOP { leaving.push(label) } else { ends.push(label) }
        }
    }
    labels_at_ends(&mut text, ends, right);
    labels_at_top(&mut text, leaving, right);
    text.push_str("</svg>\n");
    text
}

fn axes(figure: &Figure, right: f64) -> (Axis, Axis) {
    let points = || figure.series.iter().flat_map(|line| &line.points);
    let known = || points().filter_map(|&(_, y)| y).filter(|y| y.is_finite() && (*y > 0.0 || !figure.log));
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (x_low, x_high) = widened(ends(&mut points().map(|&(x, _)| x)));
    let (low, mut high) = ends(&mut known());
    high = high.min(figure.y_max.unwrap_or(f64::INFINITY));
    let (low, high) = widened((if figure.log { low } else { low.min(0.0) }, high));
    // Without any value the axis is there all the same, and zero has no logarithm.
    let (low, high) = if figure.log && low <= 0.0 { (1.0, 10.0) } else { (low, high) };
    let (low, high) = if figure.log { (low / 1.15, high * 1.05) } else { (low, high + 0.02 * (high - low)) };
    let bottom = HEIGHT - BOTTOM;
    (
        Axis { low: x_low, high: x_high, log: false, from: LEFT, to: right },
        Axis { low, high, log: figure.log, from: bottom, to: TOP },
    )
}

/// Ends that differ, whatever is given.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    match (low.is_finite() && high.is_finite(), high > low) {
        (false, _) => (0.0, 1.0),
        (true, false) => (low, low + low.abs().max(1.0)),
        (true, true) => (low, high),
    }
}

fn shades(text: &mut String, spans: &[Shade], x: &Axis) {
    for span in spans {
        let (from, to) = (x.place(span.from.max(x.low)), x.place(span.to.min(x.high)));
        let _ = writeln!(
            text,
            "<rect class=\"shade\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>\
             <text class=\"note\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            (to - from).max(0.0),
            HEIGHT - BOTTOM - TOP,
            from,
            TOP - 7.0,
            escaped(&span.label)
        );
    }
}

fn grid(text: &mut String, figure: &Figure, x: &Axis, y: &Axis, right: f64) {
    let bottom = HEIGHT - BOTTOM;
    for tick in y.ticks() {
        let at = y.place(tick);
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick y\" x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            shown(tick)
        );
    }
    let _ = writeln!(
        text,
        "<line class=\"base\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{bottom}\" y2=\"{bottom}\"/>"
    );
    for tick in x.ticks() {
        let _ = writeln!(
            text,
            "<text class=\"tick x\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x.place(tick),
            bottom + 17.0,
            shown(tick)
        );
    }
    let _ = writeln!(
        text,
        "<text class=\"axis end\" x=\"{right:.1}\" y=\"{:.1}\">{}</text>",
        HEIGHT - 6.0,
        escaped(&figure.x)
    );
}

/// Draws a line up to where it leaves the figure, and says where its label belongs; above [`TOP`] when it left.
fn draw<'a>(text: &mut String, line: &'a Series, class: &str, x: &Axis, y: &Axis) -> Option<Label<'a>> {
    let mut path = String::new();
    let (mut last, mut left_at) = (None::<(f64, f64)>, None);
    let mut dots = String::new();
    let mut before_gap = true;
    let has_dots = DOT_DISTANCE * line.points.len() as f64 <= x.to - x.from;
    for &(value, height) in &line.points {
        let Some(height) = height.filter(|height| height.is_finite()) else {
            before_gap = true;
            continue;
        };
        let at = (x.place(value), y.place(height));
        let command = if before_gap { 'M' } else { 'L' };
        if at.1 < TOP {
            let edge = last.filter(|_| !before_gap).map(|from| crossing(from, at));
            if let Some(edge) = edge.filter(|_| last.is_some_and(|last| last.1 >= TOP)) {
                let _ = write!(path, "L{:.1} {TOP}", edge);
                left_at = Some(edge);
            }
        } else {
            if let Some(from) = last.filter(|from| from.1 < TOP && !before_gap) {
                let _ = write!(path, "M{:.1} {TOP}L{:.1} {:.1}", crossing(at, from), at.0, at.1);
            } else {
                let _ = write!(path, "{command}{:.1} {:.1}", at.0, at.1);
            }
            if has_dots {
                let title = escaped(&format!("{}: {} at {}", line.name, shown(height), shown(value)));
                let _ = write!(
                    dots,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{title}</title></circle>",
                    at.0, at.1
                );
            }
        }
        (last, before_gap) = (Some(at), false);
    }
    let _ = writeln!(text, "<g class=\"line {class}\"><path d=\"{path}\"/>{dots}</g>");
    let last = last?;
    let end = if last.1 < TOP { (left_at.unwrap_or(last.0), TOP - 1.0) } else { last };
    Some(Label { text: &line.name, class: class.to_owned(), x: end.0, y: end.1 })
}

/// Where a line from a point inside to one above crosses the top.
fn crossing(inside: (f64, f64), above: (f64, f64)) -> f64 {
    let share = (inside.1 - TOP) / (inside.1 - above.1);
    inside.0 + (above.0 - inside.0) * share
}

/// Labels right of the figure, each at the height of its line's end or as near as others allow.
fn labels_at_ends(text: &mut String, mut labels: Vec<Label<'_>>, right: f64) {
    labels.sort_by(|one, other| one.y.total_cmp(&other.y));
    let wanted: Vec<f64> = labels.iter().map(|label| label.y).collect();
    for (label, y) in labels.iter().zip(spread(&wanted, LABEL_STEP, HEIGHT - BOTTOM + 6.0)) {
        if (y - label.y).abs() > LABEL_STEP / 2.0 || right - label.x > 2.0 {
            let _ = writeln!(
                text,
                "<line class=\"leader\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
                label.x + 3.0,
                label.y,
                right + 8.0
            );
        }
        let _ = writeln!(
            text,
            "<text class=\"label {}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            label.class,
            right + 10.0,
            y + 4.0,
            escaped(label.text)
        );
    }
}

/// Labels above the figure, where lines leave it.
fn labels_at_top(text: &mut String, mut labels: Vec<Label<'_>>, right: f64) {
    labels.sort_by(|one, other| other.x.total_cmp(&one.x));
    let mut free = right + 60.0;
    for label in labels {
        let width = CHARACTER * (label.text.chars().count() as f64 + 2.0);
        let end = (label.x + 8.0).min(free);
        free = end - width - 4.0;
        let _ = writeln!(
            text,
            "<text class=\"label end {}\" x=\"{end:.1}\" y=\"{:.1}\">{} ↑</text>",
            label.class,
            TOP - 7.0,
            escaped(label.text)
        );
    }
}

/// Moves sorted places apart so that neighbours have `step` between them and the last is not below `bottom`.
fn spread(wanted: &[f64], step: f64, bottom: f64) -> Vec<f64> {
    let mut places = wanted.to_vec();
    // A few rounds of pushing both neighbours apart keep each near its own place.
    for _ in 0..50 {
        for at in 1..places.len() {
            let missing = step - (places[at] - places[at - 1]);
            if missing > 0.0 {
                places[at - 1] -= missing / 2.0;
                places[at] += missing / 2.0;
            }
        }
        if let Some(last) = places.last_mut() {
            *last = last.min(bottom);
        }
    }
    places
}

/// About five round numbers from `low` to `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.9);
    let step = step.unwrap_or(power * 10.0);
    let first = (low / step - 1e-9).ceil() as i64;
    (first..).map(|number| number as f64 * step).take_while(|tick| *tick <= high + step * 1e-6).collect()
}

/// 1, 2 and 5 times the powers of ten from `low` to `high`; the powers alone when there are many.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = if high / low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// A number as an axis shows it: at most three digits that matter.
fn shown(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(points: Vec<(f64, Option<f64>)>) -> Figure {
        Figure {
            title: "t".into(),
            x: "load, %".into(),
            y: "latency, ms".into(),
            log: false,
            y_max: None,
            series: vec![Series { name: "one <line>".into(), points, mark: false }],
            spans: vec![Shade { from: 0.0, to: 1.0, label: "slow & bad".into() }],
        }
    }

    fn drawn(figure: &Figure) -> String {
        svg(figure, |_| "c0".to_owned())
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(30.0, 95.0), [40.0, 60.0, 80.0]);
        assert_eq!(log_ticks(4.0, 110.0), [5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(log_ticks(1.0, 5000.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!([0.05, 2.5, 100.0, 1234.0].map(shown), ["0.05", "2.5", "100", "1234"]);
    }

    #[test]
    fn labels_keep_their_distance_and_stay_near() {
        let places = spread(&[100.0, 101.0, 102.0, 300.0], 16.0, 320.0);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] > 15.5), "{places:?}");
        assert!((places[1] - 101.0).abs() < 2.0 && places[3] == 300.0, "{places:?}");
        let low = spread(&[318.0, 319.0], 16.0, 320.0);
        assert!(low[1] <= 320.0 && low[1] - low[0] > 15.5, "{low:?}");
    }

    #[test]
    fn text_of_a_recipe_is_escaped() {
        let text = drawn(&figure(vec![(0.0, Some(1.0)), (1.0, Some(2.0))]));
        assert!(
            text.contains("one &lt;line&gt;") && text.contains("slow &amp; bad") && !text.contains("<line>")
        );
    }

    #[test]
    fn line_that_rises_above_the_figure_ends_at_its_edge_with_its_name_there() {
        let mut steep = figure(vec![(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, Some(400.0))]);
        steep.y_max = Some(10.0);
        let text = drawn(&steep);
        assert!(text.contains("one &lt;line&gt; ↑"), "{text}");
        assert!(!text.contains("-1") && !text.contains("NaN"), "nothing is drawn outside: {text}");
    }

    #[test]
    fn gap_breaks_the_line() {
        let text = drawn(&figure(vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(1.0)), (3.0, Some(2.0))]));
        let path = text.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
    }

    #[test]
    fn nothing_and_a_single_point_are_drawn_without_nonsense() {
        for points in [vec![], vec![(1.0, Some(5.0))], vec![(1.0, None)], vec![(1.0, Some(f64::NAN))]] {
            for log in [false, true] {
                let text = drawn(&Figure { log, ..figure(points.clone()) });
                assert!(!text.contains("NaN") && !text.contains("inf"), "{points:?}: {text}");
            }
        }
    }
}
