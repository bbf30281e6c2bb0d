//! Plain YAML scalars as Kubernetes reads them: YAML 1.1 (`sigs.k8s.io/yaml`), where `yes` and `on` are
//! booleans and a leading zero makes a number octal.

use netpol_policy::model::Str;

use crate::source::parse::Value;

/// The value of a scalar written without quotes.
pub(super) fn plain(text: &str, intern: impl FnOnce(&str) -> Str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        let digits: String = text.chars().filter(|c| *c != '_').collect();
        if let Some(number) = integer(&digits) {
            return Value::Int(number);
        }
        if is_float(&digits)
            && let Ok(number) = digits.parse()
        {
            return Value::Float(number);
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

    #[test]
    fn scalars_mean_what_kubernetes_takes_them_for() {
        let string = |text: &str| Value::String(text.into());
        for (text, value) in [
            ("yes", Value::Bool(true)),
            ("off", Value::Bool(false)),
            ("~", Value::Null),
            ("80", Value::Int(80)),
            ("-1", Value::Int(-1)),
            ("+5", Value::Int(5)),
            ("010", Value::Int(8)),
            ("0o17", Value::Int(15)),
            ("0x1F", Value::Int(31)),
            ("1_000", Value::Int(1000)),
            ("0", Value::Int(0)),
            ("80.0", Value::Float(80.0)),
            ("1e3", Value::Float(1000.0)),
            ("08", Value::Float(8.0)),
            ("99999999999999999999", Value::Float(1e20)),
            ("10.0.0.1", string("10.0.0.1")),
            ("1.2.3", string("1.2.3")),
            ("--5", string("--5")),
            ("0x", string("0x")),
            ("-", string("-")),
            ("1e", string("1e")),
            ("tRue", string("tRue")),
            ("http", string("http")),
        ] {
            assert_eq!(plain(text, |text| text.into()), value, "{text}");
        }
    }
}
