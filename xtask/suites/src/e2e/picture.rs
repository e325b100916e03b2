//! A dashboard as a picture: its panels where Grafana would put them, with a run's own data.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::dashboard::{Dashboard, Panel};
use super::prometheus::Series;

const COLUMN: f64 = 40.0;
const ROW: f64 = 26.0;
const MARGIN: f64 = 6.0;
const TITLE: f64 = 24.0;
const LEGEND_LINE: f64 = 13.0;
const MOST_LEGENDS: usize = 6;
const COLOURS: [&str; 8] = [
    "#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4b5563",
];

/// A line's name and its values over time.
type Line = (String, Vec<(f64, f64)>);

/// Draws it: for each panel, by its place in the list, what its queries have found, with the names
/// that they give to lines.
pub(super) fn draw(dashboard: &Dashboard, found: &[Vec<(String, Vec<Series>)>]) -> String {
    let bottom = |panel: &Panel| panel.grid_pos.y + panel.grid_pos.h;
    let rows = dashboard.panels.iter().map(bottom).fold(0.0, f64::max);
    let (width, height) = (24.0 * COLUMN, rows * ROW + 30.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#f3f4f6\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escaped(&dashboard.title)
    );
    for (panel, queries) in dashboard.panels.iter().zip(found) {
        let mut lines: Vec<Line> = Vec::new();
        for (legend, all) in queries {
            lines.extend(all.iter().map(|series| line(legend, series)));
        }
        // What happened most comes first: there are names for a few only.
        let most = |(_, values): &Line| values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        lines.sort_by(|a, b| most(b).total_cmp(&most(a)));
        panel_at(&mut svg, panel, &lines);
    }
    svg + "</svg>\n"
}

fn line(legend: &str, series: &Series) -> Line {
    let values = series.values.iter();
    let values = values.filter_map(|(time, value)| {
        let value: f64 = value.parse().ok()?;
        value.is_finite().then_some((*time, value))
    });
    (named(legend, &series.metric), values.collect())
}

/// `{{label}}` in a legend is that label's value.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    let mut name = legend.to_owned();
    for (label, value) in labels {
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    name
}

fn panel_at(svg: &mut String, panel: &Panel, lines: &[Line]) {
    let place = &panel.grid_pos;
    let (x, y) = (place.x * COLUMN + MARGIN / 2.0, place.y * ROW + 30.0);
    let (width, height) = (place.w * COLUMN - MARGIN, place.h * ROW - MARGIN);
    let unit = &panel.field_config.defaults.unit;
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<g transform=\"translate({x:.0},{y:.0})\"><rect width=\"{width:.0}\" height=\"{height:.0}\" rx=\"3\" fill=\"#fff\" stroke=\"#d1d5db\"/>\
         <text x=\"8\" y=\"16\" font-weight=\"bold\" font-size=\"{}\">{}</text>",
        if place.w < 6.0 { 9 } else { 11 },
        escaped(&panel.title)
    );
    let values = lines.iter().flat_map(|(_, values)| values);
    let most = values.clone().map(|(_, value)| *value).fold(0.0, f64::max);
    if lines.is_empty() {
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"34\" fill=\"#6b7280\">nothing of it has happened</text>"
        );
    } else if panel.kind == "stat" {
        let last = lines.iter().find_map(|(_, values)| values.last());
        let shown = last.map_or_else(String::new, |(_, value)| with_unit(*value, unit));
        let middle = (height + TITLE) / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{middle:.0}\" font-size=\"22\" fill=\"#059669\">{shown}</text>"
        );
    } else {
        let begin = values
            .clone()
            .map(|(time, _)| *time)
            .fold(f64::MAX, f64::min);
        let end = values.map(|(time, _)| *time).fold(begin + 1.0, f64::max);
        #[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
        let legends = lines.len().min(MOST_LEGENDS) as f64 * LEGEND_LINE;
        let bottom = height - legends - 8.0;
        let top = if most > 0.0 { most } else { 1.0 };
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"16\" text-anchor=\"end\" fill=\"#6b7280\">up to {}</text><path d=\"M8 {bottom:.1}H{:.1}\" stroke=\"#e5e7eb\"/>",
            width - 8.0,
            with_unit(most, unit),
            width - 8.0
        );
        for (at, (name, values)) in lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let point = |(time, value): &(f64, f64)| {
                let across = 8.0 + (time - begin) / (end - begin) * (width - 16.0);
                let up = bottom - (value / top).max(0.0) * (bottom - TITLE);
                format!("{across:.1},{up:.1}")
            };
            let points: Vec<_> = values.iter().map(point).collect();
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            );
            if at < MOST_LEGENDS {
                #[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
                let line = bottom + (at + 1) as f64 * LEGEND_LINE;
                let _ = writeln!(
                    svg,
                    "<text x=\"8\" y=\"{line:.0}\" font-size=\"10\" fill=\"{colour}\">{}</text>",
                    escaped(&name.chars().take(70).collect::<String>())
                );
            }
        }
    }
    svg.push_str("</g>\n");
}

/// A value as Grafana's units of the dashboards have it.
fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "s" if value >= 86_400.0 => format!("{:.1} d", value / 86_400.0),
        "s" if value >= 120.0 => format!("{:.0} min", value / 60.0),
        "s" if value < 1.0 => format!("{:.1} ms", value * 1000.0),
        "s" => format!("{value:.1} s"),
        "bytes" => format!("{:.1} MiB", value / f64::from(1 << 20)),
        "reqps" | "ops" => format!("{value:.2}/s"),
        "percentunit" => format!("{:.0} %", value * 100.0),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_named_by_their_labels() {
        let labels = BTreeMap::from([
            ("handler".to_owned(), "role".to_owned()),
            ("code".to_owned(), "200".to_owned()),
        ]);
        assert_eq!(named("{{handler}} {{code}}", &labels), "role 200");
        assert_eq!(named("all", &labels), "all");
    }

    #[test]
    fn values_are_shown_with_their_units() {
        assert_eq!(with_unit(0.0123, "s"), "12.3 ms");
        assert_eq!(with_unit(3600.0, "s"), "60 min");
        assert_eq!(with_unit(0.5, "percentunit"), "50 %");
        assert_eq!(with_unit(2_097_152.0, "bytes"), "2.0 MiB");
    }
}
