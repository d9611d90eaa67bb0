//! Plain aligned tables for terminals.
//!
//! It decides no columns and prints nothing.

use serde_json::{Map, Value};

/// The widest cell shown; longer text is cut with an ellipsis, so that one field cannot ruin a table.
const CELL_CHARS_MAX: usize = 60;

/// Numbers with more decimals than this were not made for reading, and are shown as they are.
const DECIMALS_MAX: usize = 3;

/// Renders rows, which are JSON objects. `columns` come first and in this order; without any, all keys are shown,
/// sorted. Numbers are aligned to the right, with the same number of decimals in a column.
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
    let mut cells: Vec<Vec<String>> =
        objects.iter().map(|row| columns.iter().map(|key| cell(row.get(*key))).collect()).collect();
    let numeric: Vec<bool> = columns
        .iter()
        .map(|key| objects.iter().all(|row| row.get(*key).is_none_or(Value::is_number)))
        .collect();
    for n in (0..columns.len()).filter(|n| numeric[*n]) {
        pad_decimals(&mut cells, n);
    }
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| cells.iter().map(|row| chars(&row[n])).chain([chars(columns[n])]).max().unwrap_or(0))
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

/// Gives all numbers of a column as many decimals as the one with the most has.
fn pad_decimals(cells: &mut [Vec<String>], column: usize) {
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, digits)| digits.len());
    let most = cells.iter().map(|row| decimals(&row[column])).max().unwrap_or(0);
    if most == 0 || most > DECIMALS_MAX {
        return;
    }
    for cell in cells.iter_mut().map(|row| &mut row[column]) {
        if let Ok(number) = cell.parse::<f64>() {
            *cell = format!("{number:.most$}");
        }
    }
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
    fn numbers_of_a_column_have_the_same_decimals() {
        let text =
            render(&[json!({"a": 1.0}), json!({"a": 12.25}), json!({"a": 3}), json!({})], &["a".into()]);
        assert_eq!(text, "      a\n   1.00\n  12.25\n   3.00\n      -\n");
        assert_eq!(
            render(&[json!({"a": 0.12345}), json!({"a": 1})], &[]),
            "        a\n  0.12345\n        1\n"
        );
    }

    #[test]
    fn missing_values_are_dashes() {
        assert_eq!(render(&[json!({"a": null}), json!({"a": "b"})], &[]), "  a\n  -\n  b\n");
    }
}
