//! A page of figures and tables in one file: no scripts, no other files, light and dark.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use super::chart::{self, COLOURS, Figure, Series, escaped};
use crate::options_map;

options_map! {
    /// An item of `sections`.
    pub struct Section {
        pub title: String,
        /// Paragraphs before the figures.
        #[serde(default)]
        pub text: Vec<String>,
        /// Line charts, maps of `title`, `x`, `y`, `series`, and if wanted `log`, `y_max`, `spans`; a line is
        /// `#{ name, points, mark }`.
        #[serde(default)]
        pub figures: Vec<Figure>,
        /// The columns of a table, in order.
        #[serde(default)]
        pub columns: Vec<String>,
        /// Its rows, maps as for `ui::table`.
        #[serde(default)]
        pub rows: Vec<BTreeMap<String, Value>>,
    }
}

options_map! {
    /// Options of `sim::page`.
    pub struct Page {
        pub title: String,
        /// Paragraphs at the top.
        #[serde(default)]
        pub text: Vec<String>,
        /// Parts of the page, maps of `title` and what it has of `text`, `figures`, `columns` and `rows`.
        pub sections: Vec<Section>,
    }
}

/// More decimals than this are noise in a figure of the simulator.
const DECIMALS_MAX: usize = 3;

/// Blue is for the first line that is no mark; the others were chosen to differ also in lightness.
const STYLE: &str = "\
:root{color-scheme:light dark;--back:#fff;--ink:#1c1c1e;--quiet:#6b6b70;--grid:#e9e9ec;--base:#b9b9bf;--shade:#f4f1ea;
--c0:#0b5fff;--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#b08900;--c5:#0c8599;--mark:#77777d}
@media(prefers-color-scheme:dark){:root{--back:#141416;--ink:#ececee;--quiet:#9a9aa2;--grid:#29292d;--base:#55555c;
--shade:#211f1a;--c0:#6ea8ff;--c1:#ff8f5e;--c2:#69db7c;--c3:#da8ff0;--c4:#f2c94c;--c5:#66d9e8;--mark:#98989f}}
body{background:var(--back);color:var(--ink);font:16px/1.55 system-ui,-apple-system,\"Segoe UI\",sans-serif;
max-width:76rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .6rem;font-weight:650}h2{font-size:1.15rem;margin:3rem 0 .2rem;font-weight:650}
p{max-width:44rem;margin:.4rem 0;color:var(--quiet)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(31rem,100%),1fr));gap:1.5rem 2.5rem;margin-top:1.3rem}
svg{width:100%;height:auto;display:block;overflow:visible;font:13px system-ui,-apple-system,\"Segoe UI\",sans-serif}
svg text{fill:var(--ink)}.title{font-weight:600;font-size:14px}
svg .axis,svg .tick,svg .note{fill:var(--quiet);font-size:12px}.y,.end{text-anchor:end}.x{text-anchor:middle}
.tick{font-variant-numeric:tabular-nums}.grid{stroke:var(--grid)}.base{stroke:var(--base)}.shade{fill:var(--shade)}
.leader{stroke:var(--base);stroke-width:.75}.line path{fill:none;stroke-width:1.8;stroke-linejoin:round}
.line.c0 path{stroke-width:2.8}.line circle{stroke:var(--back);stroke-width:1}.line.mark path{stroke-dasharray:5 4}
.line.mark circle{opacity:0}svg .label.c0{font-weight:650}
.table{overflow-x:auto;margin-top:1rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.28rem .9rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--quiet);font-weight:500}th:first-child,td:first-child{padding-left:0}.word{text-align:left}";

/// The whole page.
#[must_use]
pub fn html(page: &Page) -> String {
    let classes = classes(page);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{title}</title>\n<style>{STYLE}{colours}</style>\n\
         <h1>{title}</h1>\n",
        title = escaped(&page.title),
        colours = colours()
    );
    paragraphs(&mut text, &page.text);
    for section in &page.sections {
        let _ = writeln!(text, "<h2>{}</h2>", escaped(&section.title));
        paragraphs(&mut text, &section.text);
        if !section.figures.is_empty() {
            text.push_str("<div class=\"figures\">\n");
            for figure in &section.figures {
                text.push_str(&chart::svg(figure, |line| class_of(&classes, line)));
            }
            text.push_str("</div>\n");
        }
        if !section.rows.is_empty() {
            table(&mut text, section);
        }
    }
    text.push_str("</html>\n");
    text
}

/// Rules that give lines and labels the colours of their classes.
fn colours() -> String {
    let names = (0..COLOURS).map(|number| format!("c{number}")).chain(["mark".to_owned()]);
    names
        .map(|name| {
            format!(
                ".line.{name} path{{stroke:var(--{name})}}.line.{name} circle,svg .label.{name}{{fill:var(--{name})}}"
            )
        })
        .collect()
}

/// A number for each name of a line that is no mark, in the order in which they come.
fn classes(page: &Page) -> BTreeMap<&str, usize> {
    let mut classes = BTreeMap::new();
    let lines = page.sections.iter().flat_map(|section| &section.figures).flat_map(|figure| &figure.series);
    for line in lines.filter(|line| !line.mark) {
        let next = classes.len();
        classes.entry(line.name.as_str()).or_insert(next);
    }
    classes
}

fn class_of(classes: &BTreeMap<&str, usize>, line: &Series) -> String {
    if line.mark {
        return "mark".to_owned();
    }
    format!("c{}", classes.get(line.name.as_str()).copied().unwrap_or(0) % COLOURS)
}

fn paragraphs(text: &mut String, paragraphs: &[String]) {
    for paragraph in paragraphs {
        let _ = writeln!(text, "<p>{}</p>", escaped(paragraph));
    }
}

fn table(text: &mut String, section: &Section) {
    let is_word = |column: &String| !section.rows.iter().all(|row| row.get(column).is_none_or(is_figure));
    let class = |column: &String| if is_word(column) { " class=\"word\"" } else { "" };
    text.push_str("<div class=\"table\"><table><tr>");
    for column in &section.columns {
        let _ = write!(text, "<th{}>{}", class(column), escaped(column));
    }
    for row in &section.rows {
        text.push_str("\n<tr>");
        for column in &section.columns {
            let value =
                row.get(column).map_or_else(String::new, |value| shown(value, decimals(section, column)));
            let _ = write!(text, "<td{}>{}", class(column), escaped(&value));
        }
    }
    text.push_str("\n</table></div>\n");
}

fn is_figure(value: &Value) -> bool {
    value.is_number() || value.is_null()
}

/// As many decimals as the number with the most has in this column, up to [`DECIMALS_MAX`].
fn decimals(section: &Section, column: &str) -> usize {
    let of = |value: &Value| match value {
        Value::Number(number) => number.to_string().split_once('.').map_or(0, |(_, digits)| match digits {
            "0" => 0,
            digits => digits.len(),
        }),
        _ => 0,
    };
    let most = section.rows.iter().filter_map(|row| row.get(column)).map(of).max();
    most.unwrap_or(0).min(DECIMALS_MAX)
}

fn shown(value: &Value, decimals: usize) -> String {
    match (value, value.as_f64()) {
        (Value::Null, _) => "–".to_owned(),
        (Value::String(text), _) => text.clone(),
        (_, Some(number)) => format!("{number:.decimals$}"),
        (other, None) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let figure = |names: &[&str]| {
            let series: Vec<_> = names
                .iter()
                .map(|name| serde_json::json!({ "name": name, "points": [[0, 1], [1, null], [2, 3.5]], "mark": *name == "oracle" }))
                .collect();
            serde_json::json!({ "title": "f", "x": "x", "y": "y", "series": series })
        };
        serde_json::from_value(serde_json::json!({
            "title": "a <page>", "text": ["<script>alert(1)</script>"],
            "sections": [{ "title": "s", "figures": [figure(&["ours", "oracle", "p2c"]), figure(&["p2c", "random"])],
                "columns": ["policy", "ms"], "rows": [{ "policy": "a&b", "ms": 1.5 }, { "policy": "c", "ms": null }] }],
        }))
        .unwrap()
    }

    #[test]
    fn page_is_one_file_without_scripts_or_addresses() {
        let text = html(&page());
        for forbidden in ["<script", "http://", "https://", "url(", "src=", "<page>"] {
            assert!(!text.contains(forbidden), "{forbidden} in {text}");
        }
        assert!(text.contains("a&amp;b") && text.contains("<td>1.5") && text.contains("<td>–"));
        assert_eq!(text.matches("<svg ").count(), 2);
    }

    #[test]
    fn line_has_one_colour_on_the_whole_page() {
        let page = page();
        let classes = classes(&page);
        assert_eq!(classes, BTreeMap::from([("ours", 0), ("p2c", 1), ("random", 2)]));
        let text = html(&page);
        assert_eq!(text.matches("class=\"line c1\"").count(), 2);
        assert_eq!(text.matches("class=\"line mark\"").count(), 1);
    }
}
