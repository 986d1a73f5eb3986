//! The plots: each as PNG and as SVG.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use super::breakdown::{Breakdown, Kind};
use super::numbers::{number, whole};
use super::stats::{Figure, Server, reference, servers, spread};
use crate::protocol::Mode;
use crate::results::{Link, Load, Results};
use crate::spread::Spread;

/// Where Linux distributions put a font that fits, and the last a place of one's own.
const FONTS: [&str; 4] = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/local/share/fonts/DejaVuSans.ttf",
];
const FAMILY: &str = "report";
const SIZE: (u32, u32) = (960, 560);
/// Width of the part of a plot that has lines, the rest being their names.
const LINES_WIDTH: u32 = 790;

/// The proof that there is a font to write with.
#[derive(Clone, Copy, Debug)]
pub struct Font(());

impl Font {
    /// Finds the font.
    ///
    /// # Errors
    /// There is none; the message says how to come by one.
    pub fn load() -> Result<Self> {
        let bytes = FONTS.iter().find_map(|file| fs::read(file).ok()).with_context(|| {
            format!(
                "the plots need the font {}; `cargo xtask setup` installs it, or: apt-get install fonts-dejavu-core",
                FONTS[0]
            )
        })?;
        // Fonts are registered for good.
        register_font(FAMILY, FontStyle::Normal, bytes.leak())
            .map_err(|_| anyhow!("the file of DejaVuSans is not a font that can be read; install it anew"))?;
        Ok(Self(()))
    }
}

/// A plot that was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plot {
    /// The names of its files, without `.png` and `.svg`.
    pub name: String,
    /// What it shows.
    pub title: String,
}

/// What a plot shows, before it is drawn.
struct Chart {
    plot: Plot,
    x: &'static str,
    y: &'static str,
    data: Data,
}

enum Data {
    /// Lines over two logarithmic axes, one for each mode; and the modes that are too slow to be among them.
    Lines(Vec<(Mode, Vec<(f64, f64)>)>, Vec<Mode>),
    /// A point on a logarithmic axis for each server, the lowest first.
    Points(Vec<(Server, Spread)>),
    /// A bar of parts for each server, the lowest first.
    Stacks(Vec<(Server, Vec<(Kind, f64)>)>),
}

/// Draws all plots for which something was measured.
///
/// # Errors
/// A file cannot be written.
pub fn draw(results: &Results, folder: &Path, _font: Font) -> Result<Vec<Plot>> {
    let charts = charts(results);
    for chart in &charts {
        let file = |suffix: &str| folder.join(format!("{}.{suffix}", chart.plot.name));
        let (png, svg) = (file("png"), file("svg"));
        paint(&BitMapBackend::new(&png, SIZE).into_drawing_area(), chart)
            .map_err(|error| anyhow!("cannot draw {}: {error}", png.display()))?;
        paint(&SVGBackend::new(&svg, SIZE).into_drawing_area(), chart)
            .map_err(|error| anyhow!("cannot draw {}: {error}", svg.display()))?;
    }
    Ok(charts.into_iter().map(|chart| chart.plot).collect())
}

fn charts(results: &Results) -> Vec<Chart> {
    let Some(load) = reference(results) else { return Vec::new() };
    let plot = |name: &str, title: String| Plot { name: name.to_owned(), title };
    let mut charts = Vec::new();
    for link in [Link::Veth, Link::Memif, Link::Ring] {
        let (size, connections) = (load.size, load.connections);
        let by_connections = loads(results, |other| Load { connections, ..other } == load);
        let by_size = loads(results, |other| Load { size, ..other } == load);
        let rate: Figure = |cell| cell.requests_per_s;
        charts.push(Chart {
            plot: plot(
                &format!("latency-{link}"),
                format!("Latency against throughput: {size} B on {link}, more and more connections"),
            ),
            x: "requests per second",
            y: "median latency in us",
            data: lines(results, link, &by_connections, |server, load| {
                let rate = spread(&results.cells, server, load, rate)?.median;
                Some((rate, spread(&results.cells, server, load, |cell| cell.p50_us)?.median))
            }),
        });
        charts.push(Chart {
            plot: plot(
                &format!("connections-{link}"),
                format!("Throughput by connections: {size} B on {link}"),
            ),
            x: "connections",
            y: "requests per second",
            data: lines(results, link, &by_connections, |server, load| {
                Some((f64::from(load.connections), spread(&results.cells, server, load, rate)?.median))
            }),
        });
        charts.push(Chart {
            plot: plot(
                &format!("size-{link}"),
                format!("Throughput by size of request: {connections} connections on {link}"),
            ),
            x: "bytes of payload",
            y: "requests per second",
            data: lines(results, link, &by_size, |server, load| {
                Some((f64::from(load.size), spread(&results.cells, server, load, rate)?.median))
            }),
        });
    }
    let cpu =
        |server| Some((server, spread(&results.cells, server, load, |cell| cell.server_cpu_ns_per_request)?));
    charts.push(Chart {
        plot: plot("cpu", format!("Server CPU per request, median and range: {load}")),
        x: "ns of the server's core per request (logarithmic)",
        y: "",
        data: Data::Points(servers(results).into_iter().rev().filter_map(cpu).collect()),
    });
    let stack = |server: Server| {
        let parts = Breakdown::of(results, server, load).map(|breakdown| breakdown.parts);
        Some((server, parts.filter(|_| !server.mode.is_kernel())?))
    };
    charts.push(Chart {
        plot: plot("stages", format!("Where a request's time goes: {load}")),
        x: "ns of the server's core per request, profiled",
        y: "",
        data: Data::Stacks(servers(results).into_iter().rev().filter_map(stack).collect()),
    });
    charts.retain(|chart| match &chart.data {
        Data::Lines(lines, _) => lines.iter().any(|(_, points)| points.len() > 1),
        Data::Points(points) => !points.is_empty(),
        Data::Stacks(stacks) => !stacks.is_empty(),
    });
    charts
}

/// The loads that were measured and are wanted, in order.
fn loads(results: &Results, wanted: impl Fn(Load) -> bool) -> Vec<Load> {
    let mut loads: Vec<Load> =
        results.cells.iter().map(|cell| cell.load).filter(|load| wanted(*load)).collect();
    loads.sort();
    loads.dedup();
    loads
}

/// A mode that answers a smaller part of the fastest one's requests would leave the others no room.
const TOO_SLOW: f64 = 0.02;

/// A line for each mode on a link, with a point for each load.
fn lines(
    results: &Results,
    link: Link,
    loads: &[Load],
    point: impl Fn(Server, Load) -> Option<(f64, f64)>,
) -> Data {
    let of_link = servers(results).into_iter().filter(|server| server.link == link);
    let line = |server: Server| {
        let points: Vec<_> = loads.iter().filter_map(|&load| point(server, load)).collect();
        (!points.is_empty()).then_some((server.mode, points))
    };
    let fastest = |mode: Mode| {
        let cells = results.cells.iter().filter(|cell| (cell.link, cell.mode) == (link, mode));
        cells
            .filter(|cell| loads.contains(&cell.load))
            .filter_map(|cell| cell.requests_per_s)
            .fold(0.0, f64::max)
    };
    let lines: Vec<_> = of_link.filter_map(line).collect();
    let most = lines.iter().map(|(mode, _)| fastest(*mode)).fold(0.0, f64::max);
    let (shown, slow): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|(mode, _)| fastest(*mode) >= TOO_SLOW * most);
    Data::Lines(shown, slow.into_iter().map(|(mode, _)| mode).collect())
}

fn paint<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &Chart,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    area.fill(&WHITE)?;
    let area = area.margin(8, 0, 0, 0).titled(&chart.plot.title, (FAMILY, 20))?;
    match &chart.data {
        Data::Lines(lines, slow) => paint_lines(&area, chart, lines, slow)?,
        Data::Points(points) => paint_points(&area, chart, points)?,
        Data::Stacks(stacks) => paint_stacks(&area, chart, stacks)?,
    }
    area.present()
}

fn paint_lines<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &Chart,
    lines: &[(Mode, Vec<(f64, f64)>)],
    slow: &[Mode],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let (area, legend) = area.split_horizontally(LINES_WIDTH);
    let points = || lines.iter().flat_map(|(_, points)| points);
    let (x, y) = (around(points().map(|point| point.0)), around(points().map(|point| point.1)));
    let mut context = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(80)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    context
        .configure_mesh()
        .x_desc(chart.x)
        .y_desc(chart.y)
        .x_label_formatter(&once(round_number))
        .y_label_formatter(&once(round_number))
        .label_style((FAMILY, 14))
        .light_line_style(WHITE)
        .draw()?;
    for (mode, points) in lines {
        let style = color(*mode).stroke_width(2);
        context.draw_series(LineSeries::new(points.iter().copied(), style).point_size(4))?;
    }
    paint_legend(&legend, lines.iter().map(|(mode, _)| (mode.to_string(), color(*mode))))?;
    for (place, mode) in slow.iter().enumerate() {
        let y = LEGEND_TOP + LEGEND_ROW * (lines.len() + 1 + place) as i32;
        legend.draw(&Text::new(format!("too slow: {mode}"), (4, y), (FAMILY, 12)))?;
    }
    Ok(())
}

/// Where a legend begins, and how far its rows lie apart.
const LEGEND_TOP: i32 = 40;
const LEGEND_ROW: i32 = 24;

fn paint_legend<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    entries: impl Iterator<Item = (String, RGBColor)>,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    for (place, (name, color)) in entries.enumerate() {
        let y = LEGEND_TOP + LEGEND_ROW * place as i32;
        area.draw(&PathElement::new([(4, y), (26, y)], color.stroke_width(3)))?;
        let style = TextStyle::from((FAMILY, 14)).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name, (32, y), style))?;
    }
    Ok(())
}

/// Names the servers of rows.
fn row_name<T>(rows: &[(Server, T)]) -> impl Fn(&SegmentValue<usize>) -> String {
    |place| match place {
        SegmentValue::CenterOf(place) => {
            rows.get(*place).map(|(server, _)| format!("{} {}", server.link, server.mode)).unwrap_or_default()
        }
        _ => String::new(),
    }
}

fn paint_points<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &Chart,
    points: &[(Server, Spread)],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let values = around(points.iter().flat_map(|(_, spread)| [spread.min, spread.max]));
    // Room behind the last point for its number.
    let (first, last) = (values.start, values.end * 4.0);
    let mut context = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(170)
        .build_cartesian_2d((first..last).log_scale(), (0..points.len() - 1).into_segmented())?;
    context
        .configure_mesh()
        .disable_y_mesh()
        .x_desc(chart.x)
        .x_label_formatter(&once(round_number))
        .y_labels(points.len())
        .y_label_formatter(&row_name(points))
        .label_style((FAMILY, 14))
        .light_line_style(WHITE)
        .draw()?;
    for (place, (server, spread)) in points.iter().enumerate() {
        let (at, color) = (SegmentValue::CenterOf(place), color(server.mode));
        let line = |from: f64, to: f64, width| {
            PathElement::new([(from, at.clone()), (to, at.clone())], color.stroke_width(width))
        };
        context.draw_series([line(first, spread.median, 1), line(spread.min, spread.max, 5)])?;
        context.draw_series([Circle::new((spread.median, at.clone()), 5, color.filled())])?;
        let style = TextStyle::from((FAMILY, 14)).pos(Pos::new(HPos::Left, VPos::Center));
        let end = (spread.max * 1.1, at.clone());
        context.draw_series([Text::new(format!(" {}", whole(spread.median)), end, style)])?;
    }
    Ok(())
}

fn paint_stacks<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &Chart,
    stacks: &[(Server, Vec<(Kind, f64)>)],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let (area, legend) = area.split_horizontally(LINES_WIDTH);
    let sum = |parts: &[(Kind, f64)]| parts.iter().map(|(_, ns)| ns).sum::<f64>();
    let longest = stacks.iter().map(|(_, parts)| sum(parts)).fold(0.0, f64::max);
    let mut context = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..longest * 1.12, (0..stacks.len() - 1).into_segmented())?;
    context
        .configure_mesh()
        .disable_y_mesh()
        .x_desc(chart.x)
        .x_label_formatter(&|value| whole(*value))
        .y_labels(stacks.len())
        .y_label_formatter(&row_name(stacks))
        .label_style((FAMILY, 14))
        .light_line_style(WHITE)
        .draw()?;
    for (place, (_, parts)) in stacks.iter().enumerate() {
        let mut end = 0.0;
        for (kind, ns) in parts {
            let corners = [(end, SegmentValue::Exact(place)), (end + ns, SegmentValue::Exact(place + 1))];
            let mut bar = Rectangle::new(corners, part_color(*kind).filled());
            bar.set_margin(4, 4, 0, 0);
            context.draw_series([bar])?;
            end += ns;
        }
        let style = TextStyle::from((FAMILY, 14)).pos(Pos::new(HPos::Left, VPos::Center));
        let at = (end, SegmentValue::CenterOf(place));
        context.draw_series([Text::new(format!(" {}", whole(end)), at, style)])?;
    }
    paint_legend(&legend, Kind::STAGES.into_iter().map(|kind| (kind.to_string(), part_color(kind))))
}

/// A formatter that does not write the same label twice in a row: axes ask for some of theirs twice.
fn once(format: impl Fn(f64) -> String) -> impl Fn(&f64) -> String {
    let last = RefCell::new(String::new());
    move |value| {
        let label = format(*value);
        if *last.borrow() == label {
            String::new()
        } else {
            last.replace(label.clone());
            label
        }
    }
}

/// A number on a logarithmic axis, if it is one of those that leave each other room there.
fn round_number(value: f64) -> String {
    let leading = value / 10f64.powf(value.log10().floor());
    let is_round = [1.0, 2.0, 5.0, 10.0].iter().any(|digit| (leading - digit).abs() < 1e-6);
    match is_round {
        true if value >= 0.999 => whole(value),
        true => number(value),
        false => String::new(),
    }
}

/// A range around values, with some room for a logarithmic axis.
fn around(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), value| (min.min(value), max.max(value)));
    min / 1.3..max * 1.3
}

/// A mode's colour, the same in all plots.
fn color(mode: Mode) -> RGBColor {
    match mode {
        Mode::StatusQuo => RGBColor(0, 0, 0),
        Mode::StatusQuoFsync => RGBColor(140, 140, 140),
        Mode::MsgZerocopy => RGBColor(188, 128, 40),
        Mode::Kcm => RGBColor(120, 200, 120),
        Mode::DpdkCopy => RGBColor(30, 110, 200),
        Mode::KernelPaste => RGBColor(150, 70, 170),
        Mode::Paste => RGBColor(210, 30, 40),
        Mode::PasteEcho => RGBColor(245, 150, 150),
        Mode::Limit => RGBColor(60, 170, 170),
    }
}

/// The colour of a part of a request's time.
fn part_color(kind: Kind) -> RGBColor {
    match kind {
        Kind::Rx => RGBColor(31, 119, 180),
        Kind::StackIn => RGBColor(120, 170, 220),
        Kind::App => RGBColor(44, 140, 60),
        Kind::Flush => RGBColor(230, 120, 30),
        Kind::Fence => RGBColor(200, 40, 40),
        Kind::StackOut => RGBColor(170, 150, 210),
        Kind::Tx => RGBColor(110, 70, 160),
        _ => RGBColor(160, 160, 160),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_a_logarithmic_axis_leave_each_other_room() {
        for (value, label) in
            [(0.1, "0.10"), (1.0, "1"), (20.0, "20"), (50_000.0, "50,000"), (1e6, "1,000,000")]
        {
            assert_eq!(round_number(value), label);
        }
        for value in [3.0, 40.0, 90_000.0] {
            assert_eq!(round_number(value), "");
        }
    }
}
