//! The delivery curves, as SVG.

use std::fmt::Write as _;
use std::time::Duration;

use crate::lab::{Run, Tally, parts};
use crate::providers::Provider;
use crate::table::time as written;

const WIDTH: f64 = 960.0;
const RIGHT: f64 = WIDTH - 24.0;
/// Colours that most people can tell apart (Okabe and Ito), and dashes for those who can not, and for print.
const STYLES: [(&str, &str); 6] = [
    ("#0072b2", "none"),
    ("#d55e00", "7 4"),
    ("#009e73", "2 3"),
    ("#cc79a7", "10 3 2 3"),
    ("#b8860b", "4 2"),
    ("#444444", "1 2"),
];
pub(crate) const MOST_POLICIES: usize = STYLES.len();
/// Where the axis of time may have marks.
const MARKS: [(u64, &str); 9] = [
    (1, "1 s"),
    (10, "10 s"),
    (60, "1 min"),
    (600, "10 min"),
    (3_600, "1 h"),
    (21_600, "6 h"),
    (86_400, "1 d"),
    (3 * 86_400, "3 d"),
    (10 * 86_400, "10 d"),
];
/// Small panels, beside each other.
const COLUMNS: usize = 4;

/// Which part of the mail was delivered within a time of its submission: of all mail, and of each provider's.
pub(crate) fn svg(title: &str, longest: Duration, providers: &[Provider], runs: &[(String, Run)]) -> String {
    let mut chart = Chart { text: String::new(), longest };
    chart.label(24.0, 34.0, "Mail delivered, by time since its submission", "#111", 20, "start");
    chart.label(24.0, 56.0, title, "#555", 13, "start");
    chart.legend(76.0, runs);

    let (left, top) = (72.0, 104.0 + 20.0 * runs.len() as f64);
    let main = Panel { left, top, width: RIGHT - left, height: 300.0, small: false };
    let mut bottom = main.bottom();
    chart.label(left, bottom + 42.0, "time since submission", "#555", 13, "start");
    let (left, gap) = (58.0, 44.0);
    let width = (RIGHT - left - gap * (COLUMNS - 1) as f64) / COLUMNS as f64;
    let mut nth = 0;
    for (name, tallies) in parts(providers, runs) {
        match name {
            "all" => chart.panel(&main, "all mail", &tallies),
            // Most of all mail: its curve says little more.
            "newsletter" => {}
            _ => {
                let left = left + (nth % COLUMNS) as f64 * (width + gap);
                let top = main.bottom() + 92.0 + (nth / COLUMNS) as f64 * 190.0;
                let panel = Panel { left, top, width, height: 120.0, small: true };
                chart.panel(&panel, name, &tallies);
                bottom = panel.bottom();
                nth += 1;
            }
        }
    }
    chart.finish(title, bottom + 40.0)
}

struct Chart {
    text: String,
    longest: Duration,
}

struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    small: bool,
}

impl Panel {
    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    fn y(&self, share: f64) -> f64 {
        self.bottom() - self.height * share
    }
}

impl Chart {
    fn legend(&mut self, top: f64, runs: &[(String, Run)]) {
        for (nth, ((policy, run), style)) in runs.iter().zip(STYLES).enumerate() {
            let y = top + 20.0 * nth as f64;
            self.stroke(&format!("M24 {y}h36"), 2.5, style);
            let total = &run.total;
            let share = 100.0 * total.delivered() as f64 / total.mail.max(1) as f64;
            let age = |part| total.quantile(part).map_or_else(|| "-".to_owned(), written);
            let (median, most) = (age(0.5), age(0.99));
            let words =
                format!("{policy}: {share:.1} % delivered, half of it within {median}, 99 % within {most}");
            self.label(70.0, y + 4.5, &words, "#111", 13, "start");
        }
    }

    fn panel(&mut self, panel: &Panel, name: &str, tallies: &[&Tally]) {
        let Panel { left, top, width, small, .. } = *panel;
        let size = if small { 11 } else { 13 };
        self.label(left, top - 10.0, name, "#111", size + 2, "start");
        let shares: &[u32] = if small { &[0, 50, 100] } else { &[0, 20, 40, 60, 80, 100] };
        for share in shares {
            let y = panel.y(f64::from(*share) / 100.0);
            self.grid(&format!("M{left} {y:.1}h{width:.1}"), if *share == 0 { "#888" } else { "#e2e2e2" });
            self.label(left - 6.0, y + 4.0, &format!("{share} %"), "#555", size, "end");
        }
        for (nth, (seconds, mark)) in MARKS.into_iter().enumerate() {
            let time = Duration::from_secs(seconds);
            // Small panels have room for every second one.
            if time > self.longest || (small && nth % 2 == 1) {
                continue;
            }
            let x = left + width * (time.as_secs_f64().ln() / self.longest_ln());
            self.grid(&format!("M{x:.1} {top}V{:.1}", panel.bottom() + 4.0), "#e2e2e2");
            self.label(x, panel.bottom() + 18.0, mark, "#555", size, "middle");
        }
        for (tally, style) in tallies.iter().zip(STYLES) {
            let curve = self.curve(panel, tally);
            self.stroke(&curve, if small { 1.8 } else { 2.5 }, style);
        }
    }

    /// The axis of time is logarithmic, from one second on: half a minute and half a day are both to be seen.
    fn longest_ln(&self) -> f64 {
        self.longest.as_secs_f64().max(10.0).ln()
    }

    /// A point for each unit of the width at most.
    fn curve(&self, panel: &Panel, tally: &Tally) -> String {
        let (mut path, mut before) = (String::new(), None);
        let steps = panel.width as u32;
        for step in 0..=steps {
            let part = f64::from(step) / f64::from(steps);
            let share = tally.delivered_within(Duration::from_secs_f64((self.longest_ln() * part).exp()));
            let (x, y) = (panel.left + panel.width * part, format!("{:.1}", panel.y(share)));
            if step == 0 {
                let _ = write!(path, "M{x:.1} {y}");
            } else if before.as_ref() != Some(&y) || step == steps {
                let _ = write!(path, "H{x:.1}V{y}");
            }
            before = Some(y);
        }
        path
    }

    fn stroke(&mut self, path: &str, width: f64, (colour, dashes): (&str, &str)) {
        let _ = writeln!(
            self.text,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-dasharray=\"{dashes}\" stroke-linejoin=\"round\"/>"
        );
    }

    fn grid(&mut self, path: &str, colour: &str) {
        let _ = writeln!(self.text, "<path d=\"{path}\" stroke=\"{colour}\"/>");
    }

    fn label(&mut self, x: f64, y: f64, words: &str, colour: &str, size: u32, anchor: &str) {
        let words = escaped(words);
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\" font-size=\"{size}\" \
             text-anchor=\"{anchor}\">{words}</text>"
        );
    }

    fn finish(self, title: &str, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\">\n<title>{}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
            escaped(title),
            self.text
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
