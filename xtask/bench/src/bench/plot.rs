//! Curves as SVG: from zero upwards, over a logarithmic axis on which nothing stands where one
//! does.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Horizontal lines.
const STEPS: u32 = 4;
/// Colours that people with colour blindness can distinguish, too (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// Curves over one axis.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Name of its file.
    pub name: &'static str,
    /// Title.
    pub title: &'static str,
    /// Label of the x axis.
    pub x: &'static str,
    /// Label of the y axis.
    pub y: &'static str,
    /// Names and points.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Plot {
    /// Renders a self-contained picture.
    #[must_use]
    pub fn svg(&self) -> String {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let low = points()
            .map(|point| point.0.max(1.0))
            .fold(f64::INFINITY, f64::min);
        let high = points().map(|point| point.0).fold(0.0, f64::max);
        let top = round_up(points().map(|point| point.1).fold(0.0, f64::max));
        let wide = (high / low).ln().max(f64::MIN_POSITIVE);
        let right = |x: f64| LEFT + (x.max(1.0) / low).ln() / wide * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>\n<text x=\"{LEFT}\" y=\"34\" fill=\"#555\">{}</text>\n",
            self.y,
            title = self.title,
        );
        let end = WIDTH - RIGHT;
        // Writing to a string does not fail.
        for step in 0..=STEPS {
            let value = top * f64::from(step) / f64::from(STEPS);
            let y = up(value);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{end}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
        ticks.sort_unstable_by(f64::total_cmp);
        ticks.dedup();
        for x in ticks {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>",
                right(x),
                HEIGHT - BOTTOM + 18.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            f64::midpoint(LEFT, end),
            HEIGHT - 10.0,
            self.x
        );
        for ((name, points), colour) in self.curves.iter().zip(COLOURS.iter().cycle()) {
            let path: Vec<_> = points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", right(*x), up(*y)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (x, y) in points {
                let (x, y) = (right(*x), up(*y));
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            if let Some((_, y)) = points.last() {
                let y = up(*y) + 4.0;
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{name}</text>",
                    end + 8.0
                );
            }
        }
        svg + "</svg>\n"
    }
}

/// The next of 1, 2, 4, 5, 8 and ten times those.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let ten = 10_f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0]
        .into_iter()
        .find(|step| step * ten >= value);
    step.unwrap_or(10.0) * ten
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_within_the_picture() {
        let plot = Plot {
            name: "it",
            title: "It",
            x: "pods",
            y: "MiB",
            curves: vec![("server".into(), vec![(10.0, 3.0), (1000.0, 37.0)])],
        };
        let svg = plot.svg();
        // The first at the left edge; the last at the right one, a bit below the top line, which is 40.
        assert!(svg.contains("points=\"70.0,289.8 510.0,60.2\""), "{svg}");
        assert!(svg.contains(">40</text>"));
        let nothing = Plot {
            curves: vec![("agent".into(), vec![(0.0, 4.0), (100.0, 4.0)])],
            ..plot
        };
        assert!(nothing.svg().contains("points=\"70.0,40.0 510.0,40.0\""));
        assert_eq!(
            [0.0, 0.3, 9.0, 100.0, 101.0].map(round_up),
            [1.0, 0.4, 10.0, 100.0, 200.0]
        );
    }
}
