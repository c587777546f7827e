//! Plots of what was measured, one below the other in one SVG.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use super::statistics::Spread;

const WIDTH: u32 = 960;
const TITLE_HEIGHT: u32 = 40;
/// Of each bar, with the gap to the next.
const BAR_HEIGHT: u32 = 26;
const LINES_HEIGHT: u32 = 420;
const MARGIN: u32 = 16;
/// Where bars begin: what is left of it holds their names.
const NAMES_WIDTH: i32 = 240;
/// What is right of the longest bar: its figures.
const FIGURES_WIDTH: i32 = 220;

const OURS: RGBColor = RGBColor(0x2f, 0x6f, 0xb5);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb6, 0xbd);
/// Of lines, in turn: all of them show on white.
const LINES: [RGBColor; 6] = [
    OURS,
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x9e, 0x77),
    RGBColor(0x75, 0x70, 0xb3),
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0x4d, 0x4d, 0x4d),
];

/// One plot.
#[derive(Clone, Debug, PartialEq)]
pub enum Plot {
    /// A bar for each name, as long as the median; a thin line shows the range. Names that begin with mgre stand out.
    Bars {
        /// With the unit.
        title: String,
        /// Names and figures, from the top.
        bars: Vec<(String, Spread)>,
    },
    /// Lines over a logarithmic axis.
    Lines {
        /// What heads it.
        title: String,
        /// What goes to the right, with its unit; logarithmic, so never zero.
        x: String,
        /// What goes up, with its unit; from zero.
        y: String,
        /// Names and points.
        lines: Vec<(String, Vec<(f64, f64)>)>,
    },
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Plot {
    fn height(&self) -> u32 {
        match self {
            Self::Bars { bars, .. } => TITLE_HEIGHT + BAR_HEIGHT * bars.len() as u32 + MARGIN,
            Self::Lines { .. } => LINES_HEIGHT + MARGIN,
        }
    }

    fn draw(&self, area: &Area<'_>) -> Result<()> {
        match self {
            Self::Bars { title, bars } => draw_bars(area, title, bars),
            Self::Lines { title, x, y, lines } => draw_lines(area, title, [x, y], lines),
        }
    }
}

/// Writes plots to an SVG file, in a folder that is made if it is not there.
///
/// # Errors
/// The file cannot be written.
pub fn write(plots: &[Plot], file: &Path) -> Result<()> {
    let name = || file.display().to_string();
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(name)?;
    }
    std::fs::write(file, svg(plots)?).with_context(name)
}

fn svg(plots: &[Plot]) -> Result<String> {
    let height = plots.iter().map(Plot::height).sum::<u32>() + MARGIN;
    let mut text = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        rest.fill(&WHITE).map_err(drawing)?;
        for plot in plots {
            let (area, below) = rest.split_vertically(plot.height());
            plot.draw(&area.margin(MARGIN, 0, MARGIN, MARGIN))?;
            rest = below;
        }
        rest.present().map_err(drawing)?;
    }
    Ok(text)
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn draw_bars(area: &Area<'_>, title: &str, bars: &[(String, Spread)]) -> Result<()> {
    area.draw_text(title, &font(18), (0, 0)).map_err(drawing)?;
    let most = bars.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let length = (WIDTH - 2 * MARGIN) as i32 - NAMES_WIDTH - FIGURES_WIDTH;
    let at = |figure: f64| NAMES_WIDTH + (figure / most * f64::from(length)).round() as i32;
    for (index, (name, spread)) in bars.iter().enumerate() {
        let top = (TITLE_HEIGHT - MARGIN / 2 + BAR_HEIGHT * index as u32) as i32;
        let (middle, bottom) = (top + BAR_HEIGHT as i32 / 2 - 2, top + BAR_HEIGHT as i32 - 6);
        let color = if name.starts_with("mgre") { OURS } else { OTHERS };
        let bar = Rectangle::new([(NAMES_WIDTH, top), (at(spread.median), bottom)], color.filled());
        let range = PathElement::new([(at(spread.min), middle), (at(spread.max), middle)], BLACK);
        let figures = format!("{} ({} .. {})", short(spread.median), short(spread.min), short(spread.max));
        area.draw(&bar).map_err(drawing)?;
        area.draw(&range).map_err(drawing)?;
        area.draw_text(name, &font(14), (0, top + 2)).map_err(drawing)?;
        area.draw_text(&figures, &font(14), (at(spread.max) + 8, top + 2)).map_err(drawing)?;
    }
    Ok(())
}

/// Three or four digits.
fn short(figure: f64) -> String {
    match figure {
        figure if figure.abs() < 10.0 => format!("{figure:.3}"),
        figure if figure.abs() < 100.0 => format!("{figure:.2}"),
        figure => format!("{figure:.0}"),
    }
}

fn draw_lines(
    area: &Area<'_>,
    title: &str,
    axes: [&str; 2],
    lines: &[(String, Vec<(f64, f64)>)],
) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let top = points().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max) * 1.05;
    // One point, or none, still needs an axis.
    let across = if least < most { least..most } else { 1.0..most.max(2.0) };
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(18))
        .x_label_area_size(36)
        .y_label_area_size(56)
        .margin_right(40)
        .build_cartesian_2d(across.log_scale(), 0.0..top)
        .map_err(drawing)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(axes[0]).y_desc(axes[1]).light_line_style(WHITE);
    mesh.x_label_formatter(&|x| x.to_string()).y_label_formatter(&|y| y.to_string());
    mesh.draw().map_err(drawing)?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let color = LINES[index % LINES.len()];
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2));
        chart.draw_series(line).map_err(drawing)?.label(name).legend(key);
    }
    let position = SeriesLabelPosition::UpperLeft;
    let mut names = chart.configure_series_labels();
    names.position(position).background_style(WHITE.mix(0.8)).border_style(BLACK).draw().map_err(drawing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_each_name_and_a_line_for_each_series() {
        let spread = |median| Spread { median, min: median, max: median };
        let bars = vec![("mgre <XDP>".to_owned(), spread(2.0)), ("bridges".to_owned(), spread(0.5))];
        let lines = vec![("fdb".to_owned(), vec![(1e3, 4.0), (1e6, 30.0)])];
        let plots = [
            Plot::Bars { title: "Mpps".into(), bars },
            Plot::Lines { title: "lookup".into(), x: "entries".into(), y: "ns".into(), lines },
        ];
        let svg = svg(&plots).expect("draws");
        for wanted in ["mgre &lt;XDP&gt;", "bridges", "2.000 (2.000 .. 2.000)", "lookup", "entries", "fdb"] {
            assert!(svg.contains(wanted), "no {wanted} in {svg}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_measured_is_still_a_picture() {
        let empty = Plot::Lines { title: "t".into(), x: "x".into(), y: "y".into(), lines: Vec::new() };
        assert!(svg(&[empty, Plot::Bars { title: "none".into(), bars: Vec::new() }]).is_ok());
    }
}
