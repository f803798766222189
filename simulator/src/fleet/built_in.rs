//! The settings for comparing policies that ship with the simulator.

use super::setting::{Setting, SettingError};

const BUILT_IN: [&str; 2] =
    [include_str!("../../scenarios/fleet/spillover.toml"), include_str!("../../scenarios/fleet/corner.toml")];

/// All of them.
#[must_use]
pub fn built_in() -> Vec<Setting> {
    BUILT_IN.iter().map(|text| Setting::from_toml(text).expect("a test reads every built-in setting")).collect()
}

/// The built-in setting of that name.
///
/// # Errors
/// [`SettingError::Unknown`] names those that there are.
pub fn named(name: &str) -> Result<Setting, SettingError> {
    let text = text(name)?;
    Ok(Setting::from_toml(text).expect("a test reads every built-in setting"))
}

/// The same as TOML, with its comments.
///
/// # Errors
/// As [`named`].
pub fn text(name: &str) -> Result<&'static str, SettingError> {
    let all = built_in();
    let index = all.iter().position(|setting| setting.name == name);
    let known = || all.iter().map(|setting| setting.name.as_str()).collect::<Vec<_>>().join(", ");
    let text = index.and_then(|index| BUILT_IN.get(index)).copied();
    text.ok_or_else(|| SettingError::Unknown(name.to_owned(), known()))
}
