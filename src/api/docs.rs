//! The API described: OpenAPI 3.1 for programs, and a page made from it for people. The page asks nobody else for anything.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::Value;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, PathItem, RefOr};

use super::routes::{VERSION, description};
use crate::model::access::Right;

/// The name of the one way to show who one is.
const BEARER: &str = "bearer";

const ABOUT: &str = "Control over an AIOS volume, the same on every device that shares the folder.

Send `Authorization: Bearer KEY` (or `X-API-Key: KEY`); `orchestrator keys create --name NAME --role ROLE` makes a key. Users get a \
token for their password at `/token`. Roles: viewer looks; agent starts jobs too; operator also runs commands, restarts, drains; admin \
also changes job files, keys and users. A key may have scopes (`job:PREFIX`, `tag:TAG`): what lies outside them does not exist for it.

Every path below `/api/v1` but `/health`, `/me`, `/events`, `/keys`, `/users`, `/backup` and `/backups` is served without that prefix \
too; `/api/nodes` is `/api/v1/devices`.

Errors are problem documents (RFC 9457). Lists come in pages: `next` is the `cursor` of the one behind. What is polled has an ETag. \
Times are RFC 3339 in UTC, durations are written like `30s`.";

/// The operations of a path, with their methods.
pub(super) fn methods(path: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    let all = [
        ("GET", &path.get),
        ("POST", &path.post),
        ("PATCH", &path.patch),
        ("PUT", &path.put),
        ("DELETE", &path.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

/// Gives each operation of a path a name, and says what right it takes and that it asks for a key.
pub(super) fn mark(path: &str, item: &mut PathItem, right: Option<Right>) {
    let all = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("put", &mut item.put),
        ("delete", &mut item.delete),
    ];
    for (method, operation) in all.into_iter().filter_map(|(method, it)| Some((method, it.as_mut()?))) {
        // Handlers of different things may have one name; a path and its method are one of a kind.
        let words = path.trim_start_matches(VERSION).replace(|c: char| !c.is_ascii_alphanumeric(), " ");
        let words: Vec<&str> = words.split_whitespace().collect();
        let place = if path.starts_with(VERSION) { "" } else { "service_" };
        operation.operation_id = Some(format!("{method}_{place}{}", words.join("_")));
        let Some(right) = right else { continue };
        let role = serde_json::json!(right.least_role());
        operation.extensions = Some([("x-role".to_owned(), role)].into_iter().collect());
        operation.security = Some(vec![SecurityRequirement::new(BEARER, std::iter::empty::<String>())]);
        let said = operation.description.take().or_else(|| operation.summary.clone()).unwrap_or_default();
        operation.description = Some(format!("{said}\n\nTakes the role {} or more.", right.least_role()));
        if operation.request_body.is_some() {
            for (status, what) in [("413", "The body is larger than 1 MiB"), ("415", "The body is no JSON")] {
                operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem(what).into());
            }
        }
        for (status, what) in [
            ("400", "It cannot be meant"),
            ("401", "No key or token was sent, or it is not good"),
            ("403", "The role does not allow it"),
            ("429", "Too many requests; `Retry-After` says when to come again"),
            ("503", "The shared folder cannot be used"),
        ] {
            operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem(what).into());
        }
    }
}

fn problem(what: &str) -> utoipa::openapi::Response {
    let content =
        utoipa::openapi::ContentBuilder::new().schema(Some(utoipa::openapi::Ref::from_schema_name("Problem"))).build();
    utoipa::openapi::ResponseBuilder::new().description(what).content("application/problem+json", content).build()
}

/// What may stand behind the `?` of a path, by the name it was matched by.
pub(super) fn asked_for(method: &str, path: &str) -> &'static [String] {
    static ALL: LazyLock<HashMap<String, Vec<String>>> = LazyLock::new(|| {
        let mut all = HashMap::new();
        for (path, item) in description().paths.paths {
            for (method, operation) in methods(&item) {
                let named = operation.parameters.iter().flatten().filter_map(|it| match it {
                    RefOr::T(it) => (it.parameter_in == ParameterIn::Query).then(|| it.name.clone()),
                    RefOr::Ref(_) => None,
                });
                all.insert(format!("{method} {path}"), named.collect());
            }
        }
        all
    });
    let versioned = format!("{VERSION}{}", path.replace("/api/nodes", "/devices"));
    let of = |path: &str| ALL.get(&format!("{method} {path}"));
    of(path).or_else(|| of(&versioned)).map_or(&[], Vec::as_slice)
}

/// The description as JSON.
pub(super) fn document() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut whole = description();
        whole.info = InfoBuilder::new()
            .title("AIOS orchestrator")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(ABOUT))
            .build();
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key, or a user's token"))
            .build();
        let components = whole.components.get_or_insert_with(Components::new);
        components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
        let mut document = serde_json::to_value(&whole).unwrap_or_default();
        problems_are_problems(&mut document);
        document.to_string()
    });
    &TEXT
}

/// Gives every problem document its own content type, which the derive has no word for.
fn problems_are_problems(document: &mut Value) {
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
    let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(|path| path.values_mut());
    let answers = operations.filter_map(|operation| operation.get_mut("responses")?.as_object_mut());
    for (status, answer) in answers.flat_map(|answers| answers.iter_mut()) {
        let Some(content) = answer.get_mut("content").and_then(Value::as_object_mut) else { continue };
        if status.starts_with(['4', '5'])
            && let Some(schema) = content.remove("application/json")
        {
            content.insert("application/problem+json".to_owned(), schema);
        }
    }
}

/// The description as a page.
pub(super) fn page() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let document: Value = serde_json::from_str(document()).unwrap_or_default();
        render(&document)
    });
    &TEXT
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f3f3f3;border-radius:3px}code{padding:0 .25em}pre{padding:.75rem;overflow:auto}\
h2{margin-top:2.5rem;border-bottom:1px solid #ddd}h3{margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #eee}.m{display:inline-block;min-width:4.5em;font-weight:600}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code,pre{background:#262626}h2,td,th{border-color:#333}a{color:#8ab4f8}}";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text with paragraphs and `code`.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text.split("\n\n") {
        let mut inside = String::new();
        for (at, piece) in paragraph.split('`').enumerate() {
            let piece = escaped(piece);
            inside += &if at % 2 == 1 { format!("<code>{piece}</code>") } else { piece };
        }
        let _ = write!(html, "<p>{inside}</p>");
    }
    html
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn render(document: &Value) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style></head><body><h1>{0} {1}</h1>{2}\
         <p>The same for programs: <a href=\"/api/openapi.json\">openapi.json</a></p>",
        escaped(text(&document["info"], "title")),
        escaped(text(&document["info"], "version")),
        prose(text(&document["info"], "description")),
    );
    let empty = serde_json::Map::new();
    let paths = document["paths"].as_object().unwrap_or(&empty);
    let operations = || {
        paths.iter().flat_map(|(path, item)| {
            let of_path = item.as_object().into_iter().flatten();
            of_path
                .filter(|(_, it)| it.get("responses").is_some())
                .map(move |(method, it)| (path, method.to_uppercase(), it))
        })
    };
    let mut tags: Vec<&str> = operations().filter_map(|(_, _, it)| it["tags"][0].as_str()).collect();
    let mut seen = std::collections::BTreeSet::new();
    tags.retain(|tag| seen.insert(*tag));
    for tag in tags {
        let _ = write!(html, "<h2 id=\"{0}\">{0}</h2>", escaped(tag));
        for (path, method, operation) in operations().filter(|(_, _, it)| it["tags"][0] == tag) {
            let _ = write!(html, "<h3><span class=\"m\">{method}</span> <code>{}</code></h3>", escaped(path));
            html += &prose(match text(operation, "description") {
                "" => text(operation, "summary"),
                said => said,
            });
            html += &parameters(operation);
            html += &body(operation, document);
            html += &answers(operation);
        }
    }
    html + "</body></html>"
}

fn parameters(operation: &Value) -> String {
    let Some(all) = operation["parameters"].as_array().filter(|all| !all.is_empty()) else { return String::new() };
    let rows: String = all
        .iter()
        .map(|it| {
            let (name, place) = (escaped(text(it, "name")), escaped(text(it, "in")));
            format!("<tr><td><code>{name}</code></td><td>{place}</td><td>{}</td></tr>", prose(text(it, "description")))
        })
        .collect();
    format!("<table><tr><th>parameter</th><th>in</th><th></th></tr>{rows}</table>")
}

fn body(operation: &Value, document: &Value) -> String {
    let Some((kind, content)) = operation["requestBody"]["content"].as_object().and_then(|all| all.iter().next())
    else {
        return String::new();
    };
    let mut schema = &content["schema"];
    // A body that can be left out is one of two: itself, or nothing.
    if let Some(whole) = schema["oneOf"].as_array().and_then(|all| all.iter().find(|one| one.get("$ref").is_some())) {
        schema = whole;
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/components/schemas/")) {
        schema = &document["components"]["schemas"][name];
    }
    let mut html = format!("<p>Body: <code>{}</code></p>", escaped(kind));
    if let Some(example) = content.get("example") {
        let _ = write!(html, "<pre>{}</pre>", escaped(&example.to_string()));
    }
    if let Some(keys) = schema["properties"].as_object() {
        let rows: String = keys
            .iter()
            .map(|(name, it)| {
                format!("<tr><td><code>{}</code></td><td>{}</td></tr>", escaped(name), prose(text(it, "description")))
            })
            .collect();
        let _ = write!(html, "<table><tr><th>key</th><th></th></tr>{rows}</table>");
    }
    html
}

fn answers(operation: &Value) -> String {
    let rows: String = operation["responses"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(status, it)| {
            format!("<tr><td><code>{}</code></td><td>{}</td></tr>", escaped(status), prose(text(it, "description")))
        })
        .collect();
    format!("<table><tr><th>answer</th><th></th></tr>{rows}</table>")
}
