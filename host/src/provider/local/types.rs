//! The instance types that a local instance can pretend to be.

use crate::Error;

/// The names whose capacity the worker can emulate.
pub(super) const NAMES: [&str; 14] = [
    "t2.nano",
    "t2.micro",
    "t2.small",
    "t2.medium",
    "t2.large",
    "t2.xlarge",
    "t2.2xlarge",
    "t3.nano",
    "t3.micro",
    "t3.small",
    "t3.medium",
    "t3.large",
    "t3.xlarge",
    "t3.2xlarge",
];

/// How alike a name must be to be suggested: 0 is nothing in common, 1 is the same.
const SUGGEST_FROM: f64 = 0.7;

/// Errors with the nearest known name when this one is not known.
pub(super) fn check(name: &str) -> Result<(), Error> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    let error = Error::provider(format!("launch instances: there is no local instance type `{name}`"));
    let nearest = NAMES
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .filter(|(alike, _)| *alike >= SUGGEST_FROM);
    Err(match nearest {
        Some((_, known)) => error.with_hint(format!("did you mean `{known}`?")),
        None => error.with_hint(format!("the local provider knows {}", NAMES.join(", "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_refused_with_the_nearest_name() {
        check("t2.large").unwrap();
        assert_eq!(check("t2.lrage").unwrap_err().hint.unwrap(), "did you mean `t2.large`?");
        assert_eq!(check("t2large").unwrap_err().hint.unwrap(), "did you mean `t2.large`?");
        assert!(check("quantum").unwrap_err().hint.unwrap().contains("t2.nano"));
    }
}
