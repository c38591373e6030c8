//! What a job file says of its container and its limits: the tables `docker` and `limits`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::container::{Container, Engine, Gpus, Limits, RESERVED_LABELS, Rule, Volume, is_name, is_plain_path};
use super::super::limits::{CPUS, LEAST_MEMORY, PIDS, in_millis};
use super::super::message::quoted;
use super::super::time::{SIZE_RULE, parse_size, show_duration};
use super::super::toml_read::{At, Reader};
use super::keys::{DOCKER_KEYS, ENGINES, LIMIT_KEYS, PULLS};

/// How long a container can be kept that nothing runs in.
const KEPT_MOST: Duration = Duration::from_secs(86_400);
/// How many GPUs can be asked for.
pub(super) const GPUS: RangeInclusive<i64> = 1..=64;

const IMAGE: &str = "the name of an image, such as \"debian:bookworm-slim\"";

/// The table `docker`, if there is one.
pub(super) fn container(reader: &mut Reader<'_>) -> Option<Container> {
    reader.within("docker", "a table", table)
}

/// The members of the table `docker`, which stands at `place`.
pub(super) fn table(reader: &mut Reader<'_>, place: usize) -> Option<Container> {
    let refused = refuse_by_policy(reader);
    let known: Vec<&str> = DOCKER_KEYS.iter().map(|key| key.name).chain(refused).collect();
    reader.only_keys(&known);
    if reader.key("image").is_none() {
        reader.problem(
            place,
            "found no `image`, expected the image that the container is made of".to_owned(),
            "image = \"debian:bookworm-slim\"",
        );
    }
    let default = Container::of(image(reader).unwrap_or_default());
    let container = Container {
        pull: reader.word("pull", &PULLS).unwrap_or(default.pull),
        network: network(reader).unwrap_or(default.network),
        volumes: volumes(reader),
        user: user(reader),
        gpus: gpus(reader).unwrap_or(default.gpus),
        entrypoint: entrypoint(reader),
        labels: labels(reader),
        tmpfs: tmpfs(reader).unwrap_or(default.tmpfs),
        read_only: reader.boolean("read_only").unwrap_or(default.read_only),
        share_common: reader.boolean("share_common").unwrap_or(default.share_common),
        keep_warm: keep_warm(reader),
        engine: reader.word("engine", &ENGINES).unwrap_or(default.engine),
        image: default.image,
        node_tags: default.node_tags,
    };
    if container.engine == Engine::Swarm {
        refuse_in_swarm(reader, place, &container);
    }
    Some(container)
}

/// What a service of a swarm cannot have.
fn refuse_in_swarm(reader: &mut Reader<'_>, place: usize, container: &Container) {
    let reasons = [
        ("keep_warm", "a service of a swarm ends with its run"),
        ("gpus", "tag the jobs, and label the nodes that have one"),
        ("pull", "each node fetches an image that it does not have"),
    ];
    for (key, hint) in reasons {
        if let Some(at) = reader.key(key) {
            let error = format!("found `{key}` with `engine = \"swarm\"`, expected it with another engine");
            reader.problem(at, error, hint);
        }
    }
    if container.network == "none" {
        let error = "found the network `none` with `engine = \"swarm\"`, expected another one: a service of a swarm has a network";
        reader.problem(
            reader.key("network").or(reader.key("engine")).unwrap_or(place),
            error.to_owned(),
            "network = \"bridge\"",
        );
    }
    let is_known = |option: &str| match option.split_once('=') {
        Some(("size", size)) => parse_size(size).is_some(),
        Some(("mode", mode)) => u32::from_str_radix(mode, 8).is_ok(),
        Some(_) | None => option.is_empty(),
    };
    if let Some((path, options)) = container.tmpfs.iter().find(|(_, options)| !options.split(',').all(is_known)) {
        let error = format!(
            "`tmpfs` has {}, expected only size, in bytes or with a unit, and mode in a swarm",
            quoted(&format!("{path}:{options}"))
        );
        reader.problem(reader.key("tmpfs").unwrap_or(place), error, "tmpfs = [\"/tmp:size=64m\"]");
    }
}

fn keep_warm(reader: &mut Reader<'_>) -> Option<Duration> {
    let At { at, value } = reader.duration("keep_warm")?;
    if value.is_zero() || value > KEPT_MOST {
        let error = format!("`keep_warm` is {}, expected more than 0 and at most 1d", show_duration(value));
        reader.problem(at, error, "keep_warm = \"10m\"");
    }
    Some(value)
}

/// The table `limits`.
pub(super) fn limits(reader: &mut Reader<'_>) -> Limits {
    let read = |reader: &mut Reader<'_>, _| {
        reader.only_keys(&LIMIT_KEYS.each_ref().map(|key| key.name));
        let pids = reader.integer("pids", &PIDS);
        Some(Limits { memory: memory(reader), cpu_millis: cpus(reader), pids })
    };
    reader.within("limits", "a table", read).unwrap_or_default()
}

/// Names the rule against each key that other tools have and this one will not, instead of calling it unknown.
fn refuse_by_policy<'t>(reader: &mut Reader<'t>) -> Vec<&'t str> {
    let mut refused = Vec::new();
    for At { at, value: key } in reader.keys() {
        if let Some(rule) = Rule::against(key) {
            let error = format!("`{key}` is refused by the rule {}", rule.name());
            reader.problem(at, error, "no container of a job gets privileges, devices or namespaces of its host");
            refused.push(key);
        }
    }
    refused
}

fn image(reader: &mut Reader<'_>) -> Option<String> {
    let At { at, value } = reader.string("image", IMAGE)?;
    let is_image = value.len() <= 512
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | ':' | '@' | '-'));
    if !is_image {
        reader.problem(at, format!("`image` is {}, expected {IMAGE}", quoted(value)), "as `docker run` takes it");
    }
    Some(value.to_owned())
}

fn network(reader: &mut Reader<'_>) -> Option<String> {
    let At { at, value } = reader.string("network", "`none`, `bridge` or the name of a network")?;
    if value == "host" || value.starts_with("container:") || value.starts_with("ns:") {
        let error = format!("`network` is {}, refused by the rule {}", quoted(value), Rule::NoHostNamespaces.name());
        reader.problem(at, error, "make a network with `docker network create` and name it here");
    } else if !is_name(value) {
        let error = format!("`network` is {}, expected `none`, `bridge` or the name of a network", quoted(value));
        reader.problem(at, error, "network = \"bridge\"");
    }
    Some(value.to_owned())
}

fn volumes(reader: &mut Reader<'_>) -> Vec<Volume> {
    let hint =
        "volumes = [\"/data:/data:ro\", \"cache:/cache\"]; AIOS_ALLOWED_VOLUMES of the device must list each source";
    let found = reader.names_at("volumes", "an array of volumes", hint, Volume::parse).unwrap_or_default();
    let mut volumes: Vec<Volume> = Vec::with_capacity(found.len());
    for At { at, value } in found {
        if volumes.iter().any(|other| other.target == value.target) {
            let error = format!("`volumes` has two for {}, expected each place once", quoted(&value.target));
            reader.problem(at, error, hint);
        }
        volumes.push(value);
    }
    volumes
}

fn user(reader: &mut Reader<'_>) -> Option<String> {
    let expected = "a user, or a user and a group: \"1000:1000\"";
    let At { at, value } = reader.string("user", expected)?;
    let mut parts = value.split(':');
    let is_user = parts.by_ref().take(2).all(is_name) && parts.next().is_none();
    if !is_user {
        reader.problem(
            at,
            format!("`user` is {}, expected {expected}", quoted(value)),
            "numbers, or names of the image",
        );
    }
    Some(value.to_owned())
}

fn gpus(reader: &mut Reader<'_>) -> Option<Gpus> {
    if reader.holds_array("gpus") {
        let id = |id: &str| {
            let is_id = is_name(id);
            is_id.then(|| id.to_owned()).ok_or_else(|| format!("found {}, expected the id of a GPU", quoted(id)))
        };
        return reader.names("gpus", "an array of ids", "nvidia-smi -L lists them", id).map(Gpus::Ids);
    }
    let count: Option<Option<u32>> =
        reader.integer_or_word("gpus", &GPUS, "all", "\"all\", a number from 1 to 64, or an array of ids");
    count.map(|count| count.map_or(Gpus::All, Gpus::Count))
}

fn entrypoint(reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let words = reader.strings("entrypoint", "an array of strings: a program of the image and its arguments")?;
    if let Some(at) = reader.empty_array("entrypoint") {
        let error = "`entrypoint` is empty, expected a program of the image and its arguments".to_owned();
        reader.problem(at, error, "leave it out: then the command runs by itself");
    }
    for (what, word) in &words {
        if word.value.contains('\0') || word.value.is_empty() && what == "entrypoint[0]" {
            let error = format!("`{what}` is {}, expected text without NUL, and not empty", quoted(word.value));
            reader.problem(word.at, error, "entrypoint = [\"/entrypoint.sh\"]");
        }
    }
    (!words.is_empty()).then(|| words.into_iter().map(|(_, word)| word.value.to_owned()).collect())
}

fn labels(reader: &mut Reader<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, found) in reader.members("labels", "a table of strings").unwrap_or_default() {
        let Some(value) = found.value.as_str() else {
            reader.wrong_type::<()>(&format!("labels.{}", quoted(name.value)), found, "a string");
            continue;
        };
        let reserved = RESERVED_LABELS.into_iter().find(|prefix| name.value.starts_with(prefix));
        if name.value.is_empty() || reserved.is_some() {
            let why = reserved.map_or_else(String::new, |prefix| format!(": {prefix} is reserved"));
            let error = format!("`labels` has {}, expected another name{why}", quoted(name.value));
            reader.problem(name.at, error, "rename the label");
        }
        labels.insert(name.value.to_owned(), value.to_owned());
    }
    labels
}

fn tmpfs(reader: &mut Reader<'_>) -> Option<BTreeMap<String, String>> {
    let read = |text: &str| {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let is_option = |c: char| c.is_ascii_alphanumeric() || matches!(c, '=' | ',' | '%' | '_');
        if is_plain_path(path) && path != "/" && options.chars().all(is_option) {
            Ok((path.to_owned(), options.to_owned()))
        } else {
            Err(format!("found {}, expected a path below / with mount options, such as /tmp:size=64m", quoted(text)))
        }
    };
    let hint = "tmpfs = [\"/tmp\", \"/run:size=16m\"]";
    reader.names("tmpfs", "an array of paths", hint, read).map(BTreeMap::from_iter)
}

fn memory(reader: &mut Reader<'_>) -> Option<u64> {
    let expected = format!("a size in quotes, {SIZE_RULE}, at least 6m");
    let At { at, value } = reader.string("memory", &expected)?;
    let size = parse_size(value).filter(|size| (LEAST_MEMORY..=i64::MAX.unsigned_abs()).contains(size));
    if size.is_none() {
        reader.problem(at, format!("`memory` is {}, expected {expected}", quoted(value)), "memory = \"512m\"");
    }
    size
}

fn cpus(reader: &mut Reader<'_>) -> Option<u32> {
    let At { at, value } = reader.number("cpus")?;
    let millis = in_millis(value);
    if millis.is_none() {
        let error = format!("`cpus` is {value}, expected a number from {} to {}", CPUS.start(), CPUS.end());
        reader.problem(at, error, "cpus = 1.5");
    }
    millis
}
