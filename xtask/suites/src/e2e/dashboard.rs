//! The parts of the dashboards of `deploy/grafana` that are drawn.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use toolchain::workspace;

#[derive(Debug, Deserialize)]
pub(super) struct Dashboard {
    pub(super) title: String,
    pub(super) panels: Vec<Panel>,
    /// Its file's name.
    #[serde(skip)]
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Panel {
    pub(super) title: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) grid_pos: Place,
    pub(super) field_config: FieldConfig,
    pub(super) targets: Vec<Target>,
}

/// Position and size, in columns, of which there are 24, and rows.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct FieldConfig {
    pub(super) defaults: Defaults,
}

#[derive(Debug, Deserialize)]
pub(super) struct Defaults {
    pub(super) unit: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    pub(super) expr: String,
    #[serde(default)]
    pub(super) legend_format: String,
}

/// All dashboards, by name.
pub(super) fn all() -> Result<Vec<Dashboard>> {
    let folder = workspace().join("deploy/grafana");
    let mut all = Vec::new();
    let entries = std::fs::read_dir(&folder);
    for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let mut dashboard: Dashboard =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        dashboard.name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        all.push(dashboard);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}
