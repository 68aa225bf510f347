//! Fills in templates (minijinja) with what a node sees of its site and the secrets of the
//! template's system. Whatever is undefined or none is an error, never an empty place in a file.
//! An error names the template's line; it never shows a value, since that may be a secret.

use crate::site::view::View;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, escape_formatter};
use std::collections::BTreeMap;

/// A longer result is a loop gone wrong, bytes.
pub const RESULT_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Renders one template. `name` is only shown in errors. Top-level names are those of the view
/// (`cluster`, `node`, `network`, `members`, `ssh_keys`) and `secrets`, where `galera.sst` is both
/// `secrets.galera.sst` and `secrets["galera.sst"]`.
pub fn render(
    name: &str,
    template_text: &str,
    view: &View,
    secrets: &BTreeMap<String, String>,
) -> Result<String, String> {
    attempt(template_text, view, secrets).map_err(|failure| match failure.line {
        0 => format!("{name}: {}", failure.message),
        line => format!("{name}:{line}: {}", failure.message),
    })
}

/// Why a template has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The template's line; 0: the template as a whole.
    pub line: usize,
    pub message: String,
}

/// Like [`render`], with the line apart from the message.
pub fn attempt(template_text: &str, view: &View, secrets: &BTreeMap<String, String>) -> Result<String, Failure> {
    let whole = |message: String| Failure { line: 0, message };
    let mut context = match serde_json::to_value(view) {
        Ok(serde_json::Value::Object(view)) => view,
        _ => return Err(whole("the site's view is not a JSON object".to_string())),
    };
    context.insert("secrets".to_string(), nested(secrets));
    let environment = environment().map_err(|e| whole(e.kind().to_string()))?;
    let rendered = environment
        .template_from_str(template_text)
        .and_then(|template| template.render(value(&serde_json::Value::Object(context))))
        .map_err(|error| failure(template_text, &error))?;
    if rendered.len() > RESULT_MAX_BYTES {
        return Err(whole(format!("its result is longer than {RESULT_MAX_BYTES} bytes")));
    }
    Ok(rendered)
}

fn environment<'s>() -> Result<Environment<'s>, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    environment.set_debug(false);
    environment.set_formatter(|out, state, value| {
        if value.is_none() {
            return Err(Error::new(ErrorKind::UndefinedError, ""));
        }
        escape_formatter(out, state, value)
    });
    Ok(environment)
}

/// Dotted names as nested objects, beside the flat ones.
fn nested(secrets: &BTreeMap<String, String>) -> serde_json::Value {
    let mut root = serde_json::Map::new();
    for (name, secret) in secrets {
        put(&mut root, name, secret);
    }
    for (name, secret) in secrets.iter().filter(|(name, _)| name.contains('.')) {
        root.insert(name.clone(), serde_json::Value::String(secret.clone()));
    }
    serde_json::Value::Object(root)
}

/// Where one name is both a secret and a prefix of others (`a`, `a.b`), the others stay flat only.
fn put(map: &mut serde_json::Map<String, serde_json::Value>, name: &str, secret: &str) {
    let Some((folder, rest)) = name.split_once('.') else {
        map.insert(name.to_string(), serde_json::Value::String(secret.to_string()));
        return;
    };
    let below = map.entry(folder).or_insert_with(|| serde_json::Value::Object(Default::default()));
    if let serde_json::Value::Object(below) = below {
        put(below, rest, secret);
    }
}

/// minijinja's serde support is not built in, and this is all of JSON.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), _, _) => Value::from(n),
            (_, Some(n), _) => Value::from(n),
            (_, _, n) => Value::from(n.unwrap_or_default()),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(value).collect::<Vec<Value>>()),
        serde_json::Value::Object(map) => {
            Value::from(map.iter().map(|(k, v)| (k.clone(), value(v))).collect::<BTreeMap<String, Value>>())
        }
    }
}

/// The error with the template's own line. minijinja's detail is shown for syntax alone, where no
/// value is at hand yet: elsewhere it may quote one (a filter's name may come from a value too).
fn failure(text: &str, error: &Error) -> Failure {
    let line = error.line().unwrap_or(0);
    let source = text.lines().nth(line.wrapping_sub(1)).unwrap_or_default().trim();
    let mut message = match error.kind() {
        ErrorKind::UndefinedError => "a value is undefined or none".to_string(),
        kind => kind.to_string(),
    };
    if let Some(detail) = error.detail().filter(|_| error.kind() == ErrorKind::SyntaxError) {
        message.push_str(&format!(" ({detail})"));
    }
    if !source.is_empty() {
        message.push_str(&format!(" in: {source}"));
    }
    Failure { line, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::sample::sample_view;

    const SECRET: &str = "hunter2canary";

    fn secrets() -> BTreeMap<String, String> {
        BTreeMap::from([("galera.sst".to_string(), SECRET.to_string()), ("top".to_string(), "t".to_string())])
    }

    fn check(template: &str) -> Result<String, String> {
        render("etc/x.conf.j2", template, &sample_view("infra"), &secrets())
    }

    #[test]
    fn templates_see_the_site_and_their_secrets() {
        for (label, template, want) in [
            ("own address", "bind {{ node.address }}/{{ node.prefix }}\n", "bind 192.0.2.11/24\n"),
            ("nested secret", "{{ secrets.galera.sst }}", SECRET),
            ("dotted secret", "{{ secrets['galera.sst'] }}", SECRET),
            ("plain secret", "{{ secrets.top }}", "t"),
            (
                "members",
                "{% for m in members.infra %}{{ m.name }}={{ m.index }} {% endfor %}",
                "infra1=1 infra2=2 infra3=3 ",
            ),
            ("index without end", "{{ node.index + 1 }}", "2"),
            ("trailing newlines stay", "a\n\n", "a\n\n"),
            ("nothing is escaped", "{{ '<&\"' }}", "<&\""),
            ("optional by test", "{% if node.nothing is defined %}x{% endif %}-", "-"),
        ] {
            assert_eq!(check(template).as_deref(), Ok(want), "{label}");
        }
    }

    #[test]
    fn errors_show_the_line_and_never_a_secret() {
        for (label, template, line, part) in [
            ("undefined", "a\n{{ node.nothing }}\n", 2, "undefined"),
            ("undefined top", "{{ nobody.x }}", 1, "undefined"),
            ("undefined secret", "\n\n{{ secrets.galera.other }}", 3, "undefined"),
            ("syntax", "a\n{% if %}\n", 2, "syntax error"),
            ("filter", "{{ 1 | nofilter }}", 1, "nofilter"),
            ("secret in a conversion", "{{ secrets.galera.sst | int }}", 1, ""),
            ("secret as a filter's argument", "{{ 1 | round(secrets.galera.sst) }}", 1, ""),
            ("secret in arithmetic", "{{ secrets.galera.sst - 1 }}", 1, ""),
            ("secret as an include", "{% include secrets.galera.sst %}", 1, ""),
            ("secret called", "{{ secrets.galera.sst() }}", 1, ""),
            ("secret as a method", "{{ secrets.galera.sst.nope() }}", 1, ""),
            ("secret as a filter's name", "{{ [1] | map(secrets.galera.sst) | list }}", 1, ""),
            ("secret as a test's name", "{{ [1] | select(secrets.galera.sst) | list }}", 1, ""),
            ("secret in a range", "{{ range(secrets.galera.sst) }}", 1, ""),
        ] {
            let error = check(template).expect_err(label);
            assert!(error.starts_with(&format!("etc/x.conf.j2:{line}: ")), "{label}: {error}");
            assert!(error.contains(part), "{label}: {error}");
            assert!(!error.contains(SECRET), "{label}: {error}");
        }
    }

    #[test]
    fn what_the_site_does_not_say_never_becomes_a_word() {
        let mut view = sample_view("infra");
        view.cluster.vip = None;
        let error = render("a", "vip {{ cluster.vip }}", &view, &BTreeMap::new()).unwrap_err();
        assert_eq!(error, "a:1: a value is undefined or none in: vip {{ cluster.vip }}");
        let text = "{% if cluster.vip %}{{ cluster.vip }}{% else %}alone{% endif %}";
        assert_eq!(render("a", text, &view, &BTreeMap::new()).as_deref(), Ok("alone"));
    }

    proptest::proptest! {
        #[test]
        fn no_template_panics_or_shows_a_secret_in_its_error(text in "[a-z{}%|. ()'\"\\[\\]0-9\n-]{0,60}") {
            if let Err(error) = check(&text) {
                proptest::prop_assert!(!error.contains(SECRET));
            }
        }
    }
}
