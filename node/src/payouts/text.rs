//! Names and references in the letters that every bank takes.
//! Invariant: what comes out consists of the basic Latin set of SEPA, is not empty and not longer than asked for; what
//! has no equivalent there is refused and never dropped.

/// Why a text cannot be written for a bank, in order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing but spaces.
    #[error("is empty")]
    Empty,
    /// A character without an equivalent.
    #[error("has the character {0:?}, which banks do not take; write it in Latin letters")]
    Character(char),
    /// Too long.
    #[error("has {got} characters, where at most {max} are allowed")]
    Length {
        /// What it has.
        got: usize,
        /// The limit.
        max: usize,
    },
}

/// `text` in the basic Latin set of SEPA: letters, digits, space and `/-?:().,'+`. Letters with marks lose them, as the
/// conversion table of the European Payments Council says (EPC217-08); runs of spaces become one.
///
/// # Errors
/// As [`TextError`] says; `max` is in characters.
pub fn basic_latin(text: &str, max: usize) -> Result<String, TextError> {
    let mut out = String::with_capacity(text.len());
    for character in text.trim().chars() {
        let basic = if character.is_ascii_alphanumeric() || " /-?:().,'+".contains(character) {
            character
        } else {
            plain(character).ok_or(TextError::Character(character))?
        };
        if basic != ' ' || !out.ends_with(' ') {
            out.push(basic);
        }
    }
    let got = out.len();
    if got == 0 {
        return Err(TextError::Empty);
    }
    if got > max {
        return Err(TextError::Length { got, max });
    }
    Ok(out)
}

/// The basic character for one of the European alphabets' others.
fn plain(character: char) -> Option<char> {
    Some(match character {
        'À'..='Å' | 'Æ' | 'Ā' | 'Ă' | 'Ą' | 'Α' | 'Ά' | 'А' => 'A',
        'à'..='å' | 'æ' | 'ā' | 'ă' | 'ą' | 'α' | 'ά' | 'а' => 'a',
        'Ç' | 'Ć' | 'Ĉ' | 'Ċ' | 'Č' => 'C',
        'ç' | 'ć' | 'ĉ' | 'ċ' | 'č' => 'c',
        'Ď' | 'Đ' | 'Ð' => 'D',
        'ď' | 'đ' | 'ð' => 'd',
        'È'..='Ë' | 'Ē' | 'Ĕ' | 'Ė' | 'Ę' | 'Ě' => 'E',
        'è'..='ë' | 'ē' | 'ĕ' | 'ė' | 'ę' | 'ě' => 'e',
        'Ĝ' | 'Ğ' | 'Ġ' | 'Ģ' => 'G',
        'ĝ' | 'ğ' | 'ġ' | 'ģ' => 'g',
        'Ĥ' | 'Ħ' => 'H',
        'ĥ' | 'ħ' => 'h',
        'Ì'..='Ï' | 'Ĩ' | 'Ī' | 'Ĭ' | 'Į' | 'İ' => 'I',
        'ì'..='ï' | 'ĩ' | 'ī' | 'ĭ' | 'į' | 'ı' => 'i',
        'Ĵ' => 'J',
        'ĵ' => 'j',
        'Ķ' => 'K',
        'ķ' => 'k',
        'Ĺ' | 'Ļ' | 'Ľ' | 'Ŀ' | 'Ł' => 'L',
        'ĺ' | 'ļ' | 'ľ' | 'ŀ' | 'ł' => 'l',
        'Ñ' | 'Ń' | 'Ņ' | 'Ň' => 'N',
        'ñ' | 'ń' | 'ņ' | 'ň' => 'n',
        'Ò'..='Ö' | 'Ø' | 'Ō' | 'Ŏ' | 'Ő' | 'Œ' => 'O',
        'ò'..='ö' | 'ø' | 'ō' | 'ŏ' | 'ő' | 'œ' => 'o',
        'Ŕ' | 'Ŗ' | 'Ř' => 'R',
        'ŕ' | 'ŗ' | 'ř' => 'r',
        'Ś' | 'Ŝ' | 'Ş' | 'Š' | 'Ș' => 'S',
        'ś' | 'ŝ' | 'ş' | 'š' | 'ș' | 'ß' => 's',
        'Ţ' | 'Ť' | 'Ŧ' | 'Ț' | 'Þ' => 'T',
        'ţ' | 'ť' | 'ŧ' | 'ț' | 'þ' => 't',
        'Ù'..='Ü' | 'Ũ' | 'Ū' | 'Ŭ' | 'Ů' | 'Ű' | 'Ų' => 'U',
        'ù'..='ü' | 'ũ' | 'ū' | 'ŭ' | 'ů' | 'ű' | 'ų' => 'u',
        'Ŵ' => 'W',
        'ŵ' => 'w',
        'Ý' | 'Ÿ' | 'Ŷ' => 'Y',
        'ý' | 'ÿ' | 'ŷ' => 'y',
        'Ź' | 'Ż' | 'Ž' => 'Z',
        'ź' | 'ż' | 'ž' => 'z',
        '\u{a0}' => ' ',
        '‘' | '’' | '´' | '`' => '\'',
        '–' | '—' | '‐' => '-',
        '&' => '+',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_dropped_and_other_alphabets_refused() {
        for (text, want) in [
            ("Müller & Söhne", Ok("Muller + Sohne")),
            ("  José   Ångström ", Ok("Jose Angstrom")),
            ("Łukasz Žižek-Ćosić", Ok("Lukasz Zizek-Cosic")),
            ("O’Brien (Dublin), 4/5", Ok("O'Brien (Dublin), 4/5")),
            ("", Err(TextError::Empty)),
            ("   ", Err(TextError::Empty)),
            ("Ivan <b>", Err(TextError::Character('<'))),
            ("a\nb", Err(TextError::Character('\n'))),
            ("李雷", Err(TextError::Character('李'))),
            ("x@y", Err(TextError::Character('@'))),
            ("\u{202e}abc", Err(TextError::Character('\u{202e}'))),
        ] {
            assert_eq!(basic_latin(text, 70), want.map(str::to_owned), "{text:?}");
        }
        assert_eq!(basic_latin(&"é".repeat(70), 70), Ok("e".repeat(70)));
        assert_eq!(basic_latin(&"é".repeat(71), 70), Err(TextError::Length { got: 71, max: 70 }));
    }
}
