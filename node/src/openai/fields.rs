//! A JSON object as its own fields, in order, each value exactly as it was written.
//! Invariant: a value that nobody replaced is written back byte for byte; no field occurs twice.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;
use std::fmt;

/// Most fields of one object.
pub const FIELDS_MAX: usize = 256;

/// An object's fields in the order they were written.
///
/// Two fields of one name are refused: this node and the backend might take different ones for true.
#[derive(Clone, Debug, Default)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'a> Fields<'a> {
    /// Reads an object; what is within its values is not looked at.
    ///
    /// # Errors
    /// If it is no JSON, no object, names a field twice, or has more than [`FIELDS_MAX`] fields.
    pub fn parse(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The value of `name` as it was written, unless it is absent or `null`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.get()).filter(|value| *value != "null")
    }

    /// The value of `name` as it was written, `null` too.
    #[must_use]
    pub fn raw(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// The value of `name` read as a `T`; `None` if it is absent, `null`, or something else.
    #[must_use]
    pub fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// As [`Self::read`], for what borrows from the object.
    #[must_use]
    pub fn read_borrowed<'s, T: Deserialize<'s>>(&'s self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// Puts `value` where `name` was, or at the end.
    pub fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = Cow::Owned(value),
            None => self.0.push((Cow::Owned(name.to_owned()), Cow::Owned(value))),
        }
    }

    /// Gives a field another name, unless there is one of that name; whether it did.
    pub fn rename(&mut self, name: &str, to: &str) -> bool {
        if self.0.iter().any(|(key, _)| key == to) {
            return false;
        }
        let found = self.0.iter_mut().find(|(key, _)| key == name);
        found.map(|(key, _)| *key = Cow::Owned(to.to_owned())).is_some()
    }

    /// Takes `name` out; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(key, _)| key != name);
        self.0.len() < before
    }

    /// Puts the fields of these names first, in the names' order; all others keep theirs behind them.
    pub fn put_first(&mut self, names: &[&str]) {
        let place = |name: &str| names.iter().position(|first| *first == name).unwrap_or(names.len());
        self.0.sort_by_key(|(name, _)| place(name));
    }

    /// Takes out all whose name `is_out` holds for; whether there was any.
    pub fn remove_where(&mut self, is_out: impl Fn(&str) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|(key, _)| !is_out(key));
        self.0.len() < before
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The object's JSON, without spaces between the fields.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names and raw values are JSON already")
    }

    /// The object as one value for another object's field.
    #[must_use]
    pub fn to_raw(&self) -> Box<RawValue> {
        raw(self)
    }
}

/// An object of these fields.
#[must_use]
pub fn object<const N: usize>(fields: [(&str, Box<RawValue>); N]) -> Box<RawValue> {
    let mut object = Fields::default();
    for (name, value) in fields {
        object.set(name, value);
    }
    object.to_raw()
}

/// A value's JSON.
///
/// # Panics
/// If `value` has no JSON: a map with keys that are no strings, which nothing here has.
#[must_use]
pub fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    to_raw_value(value).expect("the value has string keys only")
}

/// The value that `json` already is.
///
/// # Panics
/// If `json` is no JSON; callers pass literals and numbers they formatted themselves.
#[must_use]
pub fn literal(json: impl Into<String>) -> Box<RawValue> {
    RawValue::from_string(json.into()).expect("the caller wrote JSON")
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// A field's name, borrowed unless it is written with escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Vec<(Cow<'de, str>, Cow<'de, RawValue>)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Self::Value = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    if fields.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format_args!("field `{}` occurs twice", shown(&name))));
                    }
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom(format_args!("more than {FIELDS_MAX} fields")));
                    }
                    fields.push((name, Cow::Borrowed(value)));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(ObjectVisitor).map(Self)
    }
}

/// The start of a name that came from outside, for messages.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// How deep arrays and objects nest in `json`; counts brackets outside strings, so it holds for broken JSON too.
#[must_use]
pub fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were_written() {
        for json in [
            r#"{}"#,
            r#"{"b":1.10,"a":1e400,"c":-0.0,"d":12345678901234567890123}"#,
            r#"{"x":{"z":1, "y" : [ 2,3 ]},"s":"\u00e9\n","n":null}"#,
        ] {
            let fields = Fields::parse(json.as_bytes()).expect(json);
            assert_eq!(String::from_utf8_lossy(&fields.to_bytes()), json);
        }
    }

    #[test]
    fn fields_are_replaced_in_place_appended_and_removed() {
        let mut fields = Fields::parse(br#"{"a":1,"b":null,"c":3.0}"#).expect("an object");
        assert_eq!((fields.get("a"), fields.get("b"), fields.get("z")), (Some("1"), None, None));
        assert!(fields.raw("b").is_some());
        fields.set("a", literal("true"));
        fields.set("d", raw("x"));
        assert!(fields.remove("b"));
        assert!(!fields.remove("b"));
        assert_eq!(fields.to_bytes(), br#"{"a":true,"c":3.0,"d":"x"}"#);
        fields.put_first(&["d", "z", "c"]);
        assert_eq!(fields.to_bytes(), br#"{"d":"x","c":3.0,"a":true}"#);
        assert!(fields.remove_where(|name| name != "a") && !fields.remove_where(|name| name != "a"));
        assert_eq!(fields.to_bytes(), br#"{"a":true}"#);
    }

    #[test]
    fn what_is_no_plain_object_is_refused() {
        let many = format!("{{{}}}", (0..=FIELDS_MAX).map(|i| format!("\"f{i}\":0")).collect::<Vec<_>>().join(","));
        let cases = [
            ("", "EOF"),
            ("[]", "an object"),
            ("{\"a\":1", "EOF"),
            ("{\"a\":1} x", "trailing"),
            (r#"{"a":1,"\u0061":2}"#, "`a` occurs twice"),
            (&many, "more than 256"),
        ];
        for (json, why) in cases {
            let error = Fields::parse(json.as_bytes()).expect_err(json).to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn depth_counts_outside_strings() {
        let deep = "[".repeat(100_000);
        for (json, want) in [("1", 0), ("{}", 1), (r#"{"a":[{"b":"[[[\"[["}]}"#, 3), (&deep, 100_000)] {
            assert_eq!(depth(json.as_bytes()), want);
        }
    }
}
