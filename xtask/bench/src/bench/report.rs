//! Report of the measurements: tables for people and one object for machines.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use toolchain::page;

use super::plot::Plot;

/// Command whose comments `--write` looks for in a page.
const COMMAND: &str = "cargo xtask bench --write";

/// Target for a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
}

impl Aim {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// One number.
#[derive(Debug, Clone)]
pub struct Figure {
    key: String,
    what: String,
    unit: &'static str,
    /// Quartiles: of those that were measured by turns, else three times the same.
    value: [f64; 3],
    aim: Option<Aim>,
}

impl Figure {
    /// The median of several measurements.
    #[must_use]
    pub fn of(key: &str, what: &str, unit: &'static str, values: &[f64]) -> Self {
        Self {
            key: key.to_owned(),
            what: what.to_owned(),
            unit,
            value: quartiles(values),
            aim: None,
        }
    }

    /// One measurement.
    #[must_use]
    pub fn one(key: &str, what: &str, unit: &'static str, value: f64) -> Self {
        Self::of(key, what, unit, &[value])
    }

    /// Adds a target.
    #[must_use]
    pub const fn aiming(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    /// Its key in the JSON object.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The median.
    #[must_use]
    pub const fn median(&self) -> f64 {
        self.value[1]
    }

    fn row(&self) -> String {
        let [low, middle, high] = self.value.map(short);
        let spread = if low == high {
            String::new()
        } else {
            format!(" ({low}–{high})")
        };
        let aim = match self.aim {
            None => String::new(),
            Some(aim) => {
                let (sign, value) = match aim {
                    Aim::AtMost(value) => ("≤", value),
                    Aim::AtLeast(value) => ("≥", value),
                };
                let met = if aim.is_met(self.median()) {
                    "met"
                } else {
                    "**missed**"
                };
                format!("{sign} {}: {met}", short(value))
            }
        };
        let unit = self.unit;
        format!("| {} | {middle}{spread} {unit} | {aim} |\n", self.what)
    }
}

/// Numbers that belong together.
#[derive(Debug, Clone)]
pub struct Section {
    /// Title.
    pub title: &'static str,
    /// Measured process and path.
    pub path: String,
    /// The numbers.
    pub figures: Vec<Figure>,
}

/// The whole report.
#[derive(Debug, Clone)]
pub struct Report {
    /// Machine on which the figures were measured.
    pub machine: Machine,
    /// Measurements.
    pub sections: Vec<Section>,
    /// Some of it as curves.
    pub plots: Vec<Plot>,
}

/// The machine, and its other load.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// The kernel.
    pub kernel: String,
    /// Its memory, in GiB.
    pub memory_gib: f64,
    /// Load average over one minute, when the benchmark started.
    pub load: f64,
}

impl Machine {
    /// Returns this machine.
    ///
    /// # Errors
    /// Fails when the kernel does not report it.
    pub fn this() -> Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
        };
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo")?, "MemTotal");
        let kib: f64 = memory.trim_end_matches(" kB").parse()?;
        let load = read("/proc/loadavg")?;
        Ok(Self {
            processor: field(&read("/proc/cpuinfo")?, "model name"),
            cores: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_gib: kib / f64::from(1 << 20),
            load: load.split(' ').next().unwrap_or_default().parse()?,
        })
    }
}

impl Report {
    /// One object: each figure's median by its key, the quartiles of those that were measured by
    /// turns.
    #[must_use]
    pub fn json(&self) -> Value {
        let (mut all, mut spread, mut missed) = (Map::new(), Map::new(), Vec::new());
        for figure in self.sections.iter().flat_map(|section| &section.figures) {
            let [low, middle, high] = figure.value;
            all.insert(figure.key.clone(), json!(middle));
            spread.insert(figure.key.clone(), json!([low, high]));
            if figure.aim.is_some_and(|aim| !aim.is_met(middle)) {
                missed.push(figure.key.clone());
            }
        }
        let Machine {
            processor,
            cores,
            kernel,
            memory_gib,
            load,
        } = &self.machine;
        all.insert("machine".into(), json!({ "processor": processor, "cores": cores, "kernel": kernel, "memory_gib": memory_gib, "load": load }));
        all.insert("quartiles".into(), spread.into());
        all.insert("missed".into(), missed.into());
        all.into()
    }

    /// Tables in Markdown, which are legible on a terminal too.
    #[must_use]
    pub fn text(&self) -> String {
        let Machine {
            processor,
            cores,
            kernel,
            memory_gib,
            load,
        } = &self.machine;
        let mut text = format!(
            "Measured on {processor}, {cores} cores, {memory_gib:.0} GiB, Linux {kernel}; the load average was {load} at the start. Medians; in brackets the quartiles of the turns.\n"
        );
        for Section {
            title,
            path,
            figures,
        } in &self.sections
        {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\n### {title}\n\n{path}\n\n| | | aim |\n|---|---|---|\n"
            );
            figures
                .iter()
                .for_each(|figure| text.push_str(&figure.row()));
        }
        text
    }

    /// Writes the tables to a page, between its marks, and the plots into a folder beside it.
    ///
    /// # Errors
    /// Fails when the page has no marks, or cannot be written.
    pub fn write(&self, page: &Path) -> Result<()> {
        let mut tables = self.text();
        let folder = page.with_extension("");
        std::fs::create_dir_all(&folder)?;
        for plot in &self.plots {
            let file = format!("{}.svg", plot.name);
            std::fs::write(folder.join(&file), plot.svg())?;
            let folder = folder.file_name().unwrap_or_default().display();
            let _ = write!(
                tables,
                "\n![{}, by {}]({folder}/{file})\n",
                plot.title, plot.x
            );
        }
        page::replace(page, COMMAND, &tables)
    }
}

/// A quarter is below, half, three quarters.
#[must_use]
pub(super) fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    [0.25, 0.5, 0.75].map(|part| {
        let index = (last * part).round() as usize;
        values.get(index).copied().unwrap_or(f64::NAN)
    })
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_flat_object_and_tables_between_marks() {
        let figure = Figure::of("speed", "How fast", "a second", &[3.0, 1.0, 2.0]);
        let report = Report {
            machine: Machine::this().unwrap(),
            sections: vec![Section {
                title: "It",
                path: "Through a pod.".into(),
                figures: vec![figure.aiming(Aim::AtLeast(2.5))],
            }],
            plots: vec![Plot {
                name: "curve",
                title: "A curve",
                x: "pods",
                y: "MiB",
                curves: Vec::new(),
            }],
        };
        let json = report.json();
        assert_eq!(json["speed"], 2.0);
        assert_eq!(
            json["quartiles"]["speed"],
            json!([2.0, 3.0]),
            "of three, rounded up"
        );
        assert_eq!(json["missed"], json!(["speed"]));
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("page.md");
        assert!(report.write(&page).is_err());
        std::fs::write(
            &page,
            format!(
                "a\n<!-- made by {COMMAND} -->\nold\n<!-- end of what {COMMAND} makes -->\nz\n"
            ),
        )
        .unwrap();
        report.write(&page).unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("a\n<!--") && text.ends_with("-->\nz\n"));
        assert!(text.contains("| How fast | 2.00 (2.00–3.00) a second | ≥ 2.50: **missed** |"));
        assert!(!text.contains("old") && text.contains("![A curve, by pods](page/curve.svg)"));
        assert!(folder.path().join("page/curve.svg").is_file());
    }
}
