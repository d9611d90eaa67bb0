//! What a misspelt word was meant to be.
//!
//! It does not know where the words come from, and words no hint.

/// The known word nearest to `word`, when it is near enough to be what was meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min_by_key(|(distance, candidate)| (*distance, candidate.len()))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["count", "cluster", "type"];
        assert_eq!(nearest("cuont", known), Some("count"));
        assert_eq!(nearest("clutser", known), Some("cluster"));
        assert_eq!(nearest("banana", known), None);
    }
}
