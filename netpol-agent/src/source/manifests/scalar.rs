//! Plain YAML scalars as Kubernetes reads them: YAML 1.1 (`sigs.k8s.io/yaml`), where `yes` and `on` are
//! booleans and a leading zero makes a number octal.

use netpol_policy::model::Str;

use crate::source::parse::Value;

/// The value of a scalar written without quotes.
pub(super) fn plain(text: &str, intern: impl FnOnce(&str) -> Str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true, intern(text));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false, intern(text));
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Value::Float(intern(text)),
        _ => {}
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        let digits: String = text.chars().filter(|c| *c != '_').collect();
        if let Some(number) = integer(&digits) {
            return Value::Int(number, intern(text));
        }
        if is_float(&digits) {
            return Value::Float(intern(text));
        }
    }
    Value::String(intern(text))
}

/// Go's `strconv.ParseInt(text, 0, 64)`.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match prefix.as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some(_) if digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` would take a second sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

/// `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let mantissa_ok = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && digits(fraction),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    let exponent_ok = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    mantissa_ok && exponent_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts, and the value of each.
    type Case<'c> = (&'c [&'c str], &'c dyn Fn(&str) -> Value);

    #[test]
    fn scalars_mean_what_kubernetes_takes_them_for() {
        let string = |text: &str| Value::String(text.into());
        let int = |number| move |text: &str| Value::Int(number, text.into());
        let bool = |value| move |text: &str| Value::Bool(value, text.into());
        let float = |text: &str| Value::Float(text.into());
        let cases: [Case<'_>; 14] = [
            (&["", "~", "null", "Null", "NULL"], &|_| Value::Null),
            (&["y", "yes", "On", "TRUE", "true"], &bool(true)),
            (&["n", "No", "off", "False"], &bool(false)),
            (
                &["80", "+80", "8_0", "0x50", "0o120", "0120", "0b1010000"],
                &int(80),
            ),
            (&["-1", "-01"], &int(-1)),
            (&["0", "-0", "00", "0_"], &int(0)),
            (&["9223372036854775807"], &int(i64::MAX)),
            (
                &["80.0", "1e3", ".5", "5.", "08", "-1.5E-3", "99999999999999999999"],
                &float,
            ),
            (&[".inf", "-.INF", ".nan"], &float),
            (&["10.0.0.1", "1.2.3", "2026-01-01", "1:2"], &string),
            (&["--5", "+-5", "0x", "-", "+", ".", "1e", "e1", "0xg"], &string),
            (&["tRue", "nULL", "yEs", "http", "ye"], &string),
            (&["0x-5", "-0x-5"], &string),
            (&["_1"], &string),
        ];
        for (text, value) in cases
            .iter()
            .flat_map(|(texts, value)| texts.iter().map(move |text| (*text, value(text))))
        {
            assert_eq!(plain(text, |text| text.into()), value, "{text}");
        }
    }
}
