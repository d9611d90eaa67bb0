//! Plain aligned tables for terminals.

use serde_json::{Map, Value};

/// The widest cell shown; longer text is cut with an ellipsis, so that one field cannot ruin a table.
const CELL_CHARS_MAX: usize = 60;

/// Renders rows, which are JSON objects. `columns` come first and in this order; without any, all keys are shown,
/// sorted. Numbers are aligned to the right.
#[must_use]
pub fn render(rows: &[Value], columns: &[String]) -> String {
    let all = columns.is_empty();
    let mut columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let empty = Map::new();
    let objects: Vec<_> = rows.iter().map(|row| row.as_object().unwrap_or(&empty)).collect();
    for key in objects.iter().flat_map(|row| row.keys()) {
        if all && !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    let cells: Vec<Vec<String>> =
        objects.iter().map(|row| columns.iter().map(|key| cell(row.get(*key))).collect()).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| cells.iter().map(|row| chars(&row[n])).chain([chars(columns[n])]).max().unwrap_or(0))
        .collect();
    let numeric: Vec<bool> = columns
        .iter()
        .map(|key| objects.iter().all(|row| row.get(*key).is_none_or(Value::is_number)))
        .collect();
    let mut text = line(&columns, &widths, &numeric);
    for row in &cells {
        text.push_str(&line(row, &widths, &numeric));
    }
    text
}

fn line(cells: &[impl AsRef<str>], widths: &[usize], numeric: &[bool]) -> String {
    let mut text = String::new();
    for ((cell, width), numeric) in cells.iter().zip(widths).zip(numeric) {
        let cell = cell.as_ref();
        let space = " ".repeat(width.saturating_sub(chars(cell)));
        text.push_str("  ");
        text.push_str(&if *numeric { space + cell } else { cell.to_owned() + space.as_str() });
    }
    text.trim_end().to_owned() + "\n"
}

fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Some(other) => other.to_string(),
    };
    if chars(&text) <= CELL_CHARS_MAX {
        return text;
    }
    text.chars().take(CELL_CHARS_MAX - 1).collect::<String>() + "…"
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_aligned_and_numbers_stand_right() {
        let text =
            render(&[json!({"name": "micro-1", "requests": 5}), json!({"name": "x", "requests": 1000})], &[]);
        assert_eq!(text, "  name     requests\n  micro-1         5\n  x            1000\n");
    }

    #[test]
    fn named_columns_are_shown_in_their_order() {
        assert_eq!(render(&[json!({"a": 1, "b": 2, "c": 3})], &["c".into(), "a".into()]), "  c  a\n  3  1\n");
    }

    #[test]
    fn missing_values_are_dashes() {
        assert_eq!(render(&[json!({"a": null}), json!({"a": "b"})], &[]), "  a\n  -\n  b\n");
    }
}
