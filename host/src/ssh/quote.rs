//! Values inside remote shell text. The one place that knows how a POSIX shell reads a word.
//!
//! This module does not split or interpret shell text.

/// The value as one word of POSIX shell text, whatever it holds: blanks, quotes, newlines, `$()`, `!`.
///
/// A value of harmless characters stays as it is, so that messages stay readable. NUL cannot be in a word of any
/// shell; commands that hold one are refused before they are sent.
#[must_use]
pub fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/,.+:@%".contains(c);
    if !value.is_empty() && value.chars().all(plain) && !value.starts_with('=') {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Whether a shell accepts this as the name of a variable.
#[must_use]
pub(crate) fn is_variable(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_readable() {
        for word in ["a", "/srv/app-1/x.json", "key=value", "10.0.0.1:80"] {
            assert_eq!(quote(word), word);
        }
    }

    /// The judge is a real shell: what it prints must be the value, byte for byte.
    #[test]
    fn a_shell_reads_back_exactly_the_value() {
        let hostile = [
            "",
            " ",
            "'",
            "''",
            "\"",
            "\\",
            "\\\\'",
            "$(id)",
            "`id`",
            "$HOME",
            "a\nb",
            "\n",
            "a;b",
            "&",
            "|",
            "*",
            "~",
            "!!",
            "#",
            "{a,b}",
            "=ls",
            "ünï — 漢字",
            "-n",
            "a'b\"c\\d$e`f",
        ];
        for value in hostile {
            let script = format!("printf %s {}", quote(value));
            let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }

    #[test]
    fn variable_names() {
        for name in ["A", "_x", "PATH2"] {
            assert!(is_variable(name), "{name}");
        }
        for name in ["", "2A", "A-B", "A B", "A=", "é", "A\n"] {
            assert!(!is_variable(name), "{name}");
        }
    }
}
