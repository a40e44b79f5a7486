//! A small plot: the points, and the line of their growth.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::growth::Growth;
use super::series::Series;
use crate::error::{Result, fail};

const SIZE: (u32, u32) = (600, 320);

/// Draws a series into an SVG file.
pub(super) fn draw(
    path: &Path,
    series: &Series,
    points: &[(f64, f64)],
    growth: Option<&Growth>,
) -> Result<()> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(()) };
    let top = points.iter().map(|point| point.1).fold(0.0, f64::max) * 1.15;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(fail(format_args!("cannot draw {}", path.display())))?;
    if series.logarithmic {
        chart(&area, series, points, growth, (first.0 * 0.8..last.0 * 1.25).log_scale(), 0.0..top)?;
    } else {
        chart(&area, series, points, growth, first.0 - 0.2..last.0 * 1.05 + 0.2, 0.0..top)?;
    }
    area.present().map_err(fail(format_args!("cannot write {}", path.display())))?;
    Ok(())
}

fn chart<X>(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    series: &Series,
    points: &[(f64, f64)],
    growth: Option<&Growth>,
    x: X,
    y: std::ops::Range<f64>,
) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let problem = || fail(format_args!("cannot draw {}", series.name));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(problem())?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .x_desc(series.x)
        .y_desc(series.axis())
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()
        .map_err(problem())?;
    if let (Some(growth), Some(first), Some(last)) = (growth, points.first(), points.last()) {
        let steps = 60;
        let at = |step: i32| {
            let part = f64::from(step) / f64::from(steps);
            match series.logarithmic {
                true => first.0 * (last.0 / first.0).powf(part),
                false => first.0 + (last.0 - first.0) * part,
            }
        };
        let line = (0..=steps).map(at).map(|x| (x, growth.at(x)));
        chart.draw_series(LineSeries::new(line, RGBColor(170, 170, 170))).map_err(problem())?;
    }
    let blue = RGBColor(31, 88, 150);
    chart.draw_series(LineSeries::new(points.iter().copied(), &blue)).map_err(problem())?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, blue.filled()))).map_err(problem())?;
    Ok(())
}

/// `10000000` as `10M`.
fn short(figure: f64) -> String {
    match figure {
        f if f >= 1e6 => format!("{}M", (f / 1e5).round() / 10.0),
        f if f >= 1e4 => format!("{}k", (f / 100.0).round() / 10.0),
        f => format!("{}", (f * 100.0).round() / 100.0),
    }
}
