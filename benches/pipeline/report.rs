//! Rows, verdicts, the table and the JSON.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::volume::Place;
use crate::{BROKEN, Outcome};

/// The value that this share of the values is not above; the nearest rank. 0 of nothing.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The middle value, of an even number the mean of the two in the middle. 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let (low, high) = (if sorted.len().is_multiple_of(2) { middle.saturating_sub(1) } else { middle }, middle);
    (sorted.get(low).copied().unwrap_or_default() + sorted.get(high).copied().unwrap_or_default()) / 2.0
}

/// The rounds of one side, in their order.
#[derive(Debug, Clone)]
pub(crate) struct Spread {
    rounds: Vec<f64>,
}

impl Spread {
    /// `None` of no rounds.
    pub(crate) fn of(rounds: Vec<f64>) -> Option<Self> {
        (!rounds.is_empty()).then_some(Self { rounds })
    }

    fn median(&self) -> f64 {
        median(&self.rounds)
    }

    fn range(&self) -> (f64, f64) {
        let bounds = (f64::INFINITY, f64::NEG_INFINITY);
        self.rounds.iter().fold(bounds, |(low, high), &value| (low.min(value), high.max(value)))
    }

    fn json(&self) -> Value {
        let (min, max) = self.range();
        json!({"median": self.median(), "min": min, "max": max, "rounds": self.rounds})
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.range();
        match self.rounds.len() {
            1 => formatter.write_str(&figure(self.median())),
            _ => write!(formatter, "{} ({}–{})", figure(self.median()), figure(low), figure(high)),
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Product / floor, of times and sizes.
    RatioAtMost(f64),
    /// Product / floor, of rates.
    RatioAtLeast(f64),
    /// The product's own figure.
    AtMost(f64),
    /// The product's own figure.
    AtLeast(f64),
}

impl Target {
    /// A ratio that could not be made does not meet its target.
    fn is_met(self, product: f64, ratio: Option<f64>) -> bool {
        match self {
            Self::RatioAtMost(limit) => ratio.is_some_and(|ratio| ratio <= limit),
            Self::RatioAtLeast(limit) => ratio.is_some_and(|ratio| ratio >= limit),
            Self::AtMost(limit) => product <= limit,
            Self::AtLeast(limit) => product >= limit,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::RatioAtMost(limit) => format!("≤ {limit} ×"),
            Self::RatioAtLeast(limit) => format!("≥ {limit} ×"),
            Self::AtMost(limit) => format!("≤ {limit} {unit}"),
            Self::AtLeast(limit) => format!("≥ {limit} {unit}"),
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    measure: &'static str,
    what: String,
    unit: &'static str,
    place: &'static str,
    gated: bool,
    floor: Option<Spread>,
    product: Spread,
    ratio: Option<f64>,
    targets: Vec<Target>,
}

impl Row {
    /// A row with the ratio of the medians.
    pub(crate) fn new(
        measure: &'static str,
        what: &str,
        unit: &'static str,
        place: &Place,
        floor: Option<Spread>,
        product: Spread,
        targets: &[Target],
    ) -> Self {
        let base = floor.as_ref().map(Spread::median).filter(|&median| median > 0.0);
        let ratio = base.map(|base| product.median() / base);
        let (what, targets) = (what.to_owned(), targets.to_vec());
        Self { measure, what, unit, place: place.name, gated: place.gated, floor, product, ratio, targets }
    }

    /// The same without the ratio, where it says nothing.
    pub(crate) fn without_ratio(mut self) -> Self {
        self.ratio = None;
        self
    }

    /// `None` without a target.
    fn is_met(&self) -> Option<bool> {
        let product = self.product.median();
        let met = |target: &Target| target.is_met(product, self.ratio);
        (!self.targets.is_empty()).then(|| self.targets.iter().all(met))
    }

    fn verdict(&self) -> &'static str {
        match (self.is_met(), self.gated) {
            (None, _) => "",
            (Some(true), true) => "ok",
            (Some(false), true) => "MISS",
            (Some(true), false) => "(ok)",
            (Some(false), false) => "(miss)",
        }
    }

    fn target_text(&self) -> String {
        self.targets.iter().map(|target| target.text(self.unit)).collect::<Vec<_>>().join(", ")
    }

    fn cells(&self) -> [String; 8] {
        let with_unit = |spread: &Spread| format!("{spread} {}", self.unit);
        [
            self.measure.to_owned(),
            self.what.clone(),
            self.place.to_owned(),
            self.floor.as_ref().map(with_unit).unwrap_or_default(),
            with_unit(&self.product),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.target_text(),
            self.verdict().to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "measure": self.measure, "what": self.what, "unit": self.unit, "place": self.place, "gated": self.gated,
            "floor": self.floor.as_ref().map(Spread::json), "product": self.product.json(), "ratio": self.ratio,
            "target": self.target_text(), "ok": self.is_met(),
        })
    }
}

/// The subject of a report.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Every measure, in the order in which they are shown.
    pub measures: &'static [&'static str],
    /// The two sides of the comparison.
    pub sides: [&'static str; 2],
    /// The number of rounds.
    pub rounds: u32,
    /// The method.
    pub options: Value,
}

/// Everything that was found out.
#[derive(Debug)]
pub(crate) struct Report {
    subject: Subject,
    about: Value,
    rows: Vec<Row>,
    failures: Vec<String>,
    remarks: Vec<&'static str>,
}

impl Report {
    /// Nothing yet, but the machine it is about.
    pub(crate) fn new(subject: Subject) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let about = json!({
            "at": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            "version": env!("CARGO_PKG_VERSION"),
            "cpus": std::thread::available_parallelism().map_or(1, usize::from),
            "kernel": read("/proc/sys/kernel/osrelease"),
            "load_before": read("/proc/loadavg"),
            "rounds": subject.rounds, "options": subject.options,
        });
        Self { subject, about, rows: Vec::new(), failures: Vec::new(), remarks: Vec::new() }
    }

    /// Adds rows.
    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    /// Adds a line below the table.
    pub(crate) fn remark(&mut self, remark: &'static str) {
        self.remarks.push(remark);
    }

    /// The figures, or `None` and a failure more.
    pub(crate) fn keep<T>(&mut self, measure: &str, place: &str, figures: Outcome<T>) -> Option<T> {
        figures
            .map_err(|error| {
                let failure = format!("{measure} on {place}: {error}");
                eprintln!("FAILED {failure}");
                self.failures.push(failure);
            })
            .ok()
    }

    /// The table and what else there is to say.
    pub(crate) fn table(&self) -> String {
        let [floor, product] = self.subject.sides;
        let head = ["", "measure", "where", floor, product, "ratio", "target", "verdict"].map(str::to_owned);
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| self.subject.measures.iter().position(|name| *name == row.measure));
        let lines: Vec<[String; 8]> = std::iter::once(head).chain(rows.iter().map(|row| row.cells())).collect();
        let mut text = String::from("\n");
        for line in &lines {
            let mut shown = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
                let gap = width.saturating_sub(cell.chars().count()) + 2;
                shown.extend([cell.as_str(), &" ".repeat(gap)]);
            }
            text.extend([shown.trim_end(), "\n"]);
        }
        text + &self.below()
    }

    fn below(&self) -> String {
        let mut text = format!(
            "\nMedians of {} rounds (lowest–highest); (verdicts) are not gated. Load: {}\n",
            self.subject.rounds,
            self.about["load_before"].as_str().unwrap_or_default(),
        );
        text.extend(self.remarks.iter().map(|remark| format!("{remark}\n")));
        text.extend(self.failures.iter().map(|failure| format!("FAILED {failure}\n")));
        text
    }

    /// Writes the figures of every round.
    pub(crate) fn write_json(&self, path: &Path) -> Outcome<()> {
        let document = json!({
            "about": self.about, "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "remarks": self.remarks, "failures": self.failures,
        });
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// 0, 1 or 2: see the crate's first lines.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let missed = self.rows.iter().any(|row| row.gated && row.is_met() == Some(false));
        match (self.failures.is_empty(), missed) {
            (false, _) => ExitCode::from(BROKEN),
            (true, true) => ExitCode::FAILURE,
            (true, false) => ExitCode::SUCCESS,
        }
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
