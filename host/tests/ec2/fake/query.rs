//! The query protocol's parameters. Strict: whoever answers a call takes what it understands, and what is left over
//! is a mistake.

use std::collections::BTreeMap;

/// The parameters that have not been taken yet.
#[derive(Debug, Default)]
pub(crate) struct Params {
    left: BTreeMap<String, String>,
    /// Of the filter with the most values.
    pub(crate) filter_values_most: usize,
}

/// `Filter.N.Name` with its values.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) name: String,
    pub(crate) values: Vec<String>,
}

impl Params {
    pub(crate) fn parse(body: &str) -> Self {
        let pairs = body.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        };
        Self { left: pairs.map(pair).collect(), filter_values_most: 0 }
    }

    /// All of them in one text, for comparing requests.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{:?}", self.left)
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        self.left.remove(key)
    }

    /// `true` when the parameter is there and says so.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        self.take(key).as_deref() == Some("true")
    }

    /// `KEY.1`, `KEY.2`, ...
    pub(crate) fn list(&mut self, key: &str) -> Vec<String> {
        (1..).map_while(|number| self.take(&format!("{key}.{number}"))).collect()
    }

    /// The numbers for which there is any `KEY.N.`
    pub(crate) fn members(&self, key: &str) -> Vec<usize> {
        let has = |number: &usize| {
            let start = format!("{key}.{number}.");
            self.left.keys().any(|name| name.starts_with(&start))
        };
        (1..).take_while(has).collect()
    }

    pub(crate) fn filters(&mut self) -> Vec<Filter> {
        let numbers = self.members("Filter");
        let one = |number: usize| Filter {
            name: self.take(&format!("Filter.{number}.Name")).unwrap_or_default(),
            values: self.list(&format!("Filter.{number}.Value")),
        };
        let filters: Vec<_> = numbers.into_iter().map(one).collect();
        self.filter_values_most = filters.iter().map(|it| it.values.len()).max().unwrap_or(0);
        filters
    }

    /// `TagSpecification.N` by resource type.
    pub(crate) fn tag_specifications(&mut self) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for number in self.members("TagSpecification") {
            let at = format!("TagSpecification.{number}");
            let kind = self.take(&format!("{at}.ResourceType")).unwrap_or_default();
            all.insert(kind, self.tags(&format!("{at}.Tag")));
        }
        all
    }

    /// `KEY.N.Key` and `KEY.N.Value`.
    pub(crate) fn tags(&mut self, key: &str) -> BTreeMap<String, String> {
        let numbers = self.members(key);
        let one = |number: usize| {
            let key = format!("{key}.{number}");
            (
                self.take(&format!("{key}.Key")).unwrap_or_default(),
                self.take(&format!("{key}.Value")).unwrap_or_default(),
            )
        };
        numbers.into_iter().map(one).collect()
    }

    /// What nobody has understood.
    pub(crate) fn leftover(self) -> Vec<String> {
        self.left.into_keys().collect()
    }
}

/// Percent-decoding of a form field.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        match (first, more.get(..2).and_then(hex)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = more;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
