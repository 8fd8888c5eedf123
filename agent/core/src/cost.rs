//! Measured cost curves: nanoseconds of a step by its rows.

use crate::ids::Nanos;

/// A piecewise linear curve through measured points, flat before the first and extrapolated beyond the last.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// From (rows, nanoseconds), in any order. Points that fall below an earlier one are lifted to it, since a
    /// larger batch never costs less.
    pub fn new(mut points: Vec<(f64, f64)>) -> Self {
        points.retain(|p| p.0.is_finite() && p.1.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|b, a| a.0 == b.0);
        let mut top = 0.0f64;
        for p in &mut points {
            top = top.max(p.1);
            p.1 = top;
        }
        Self { points }
    }

    /// The time of a step of `rows`; nothing costs nothing.
    pub fn at(&self, rows: f64) -> f64 {
        if rows <= 0.0 {
            return 0.0;
        }
        let i = self.points.partition_point(|p| p.0 < rows);
        match (i.checked_sub(1).and_then(|j| self.points.get(j)), self.points.get(i)) {
            (None, None) => 0.0,
            (None, Some(&(_, y))) => y,
            (Some(&(x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * (rows - x0) / (x1 - x0),
            (Some(&(x1, y1)), None) => {
                let Some(&(x0, y0)) = i.checked_sub(2).and_then(|j| self.points.get(j)) else {
                    return y1 * rows / x1;
                };
                y1 + (y1 - y0) / (x1 - x0) * (rows - x1)
            }
        }
    }

    /// Whether anything was measured.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// The curves of one worker.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Costs {
    /// An attention step, launch included.
    pub attention: Curve,
    /// One unit of an expert step, without the launch.
    pub unit: Curve,
    /// The launch of an expert step.
    pub launch: Nanos,
}

/// The part of a batch of `rows` that need not be paid again when `missing` more come later:
/// `(t(n + m) - t(m)) / t(n)`. An unmeasured curve says 0: wait.
pub fn useful(t: impl Fn(f64) -> f64, rows: f64, missing: f64) -> f64 {
    let now = t(rows);
    if now <= 0.0 { 0.0 } else { (t(rows + missing) - t(missing)) / now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_interpolates_and_extrapolates() {
        let c = Curve::new(vec![(8.0, 100.0), (1.0, 100.0), (16.0, 180.0)]);
        assert!(Curve::default().is_empty() && !c.is_empty());
        assert_eq!(c.at(0.0), 0.0);
        assert_eq!(c.at(0.5), 100.0);
        assert_eq!(c.at(4.0), 100.0);
        assert_eq!(c.at(12.0), 140.0);
        assert_eq!(c.at(32.0), 340.0);
        assert_eq!(Curve::new(vec![(4.0, 100.0)]).at(8.0), 200.0, "one point is a line through the origin");
    }

    #[test]
    fn a_falling_point_is_lifted() {
        let c = Curve::new(vec![(1.0, 50.0), (2.0, 40.0), (4.0, 60.0)]);
        assert_eq!(c.at(2.0), 50.0);
    }

    #[test]
    fn a_weight_bound_batch_is_not_worth_splitting() {
        let c = Curve::new(vec![(1.0, 100.0), (64.0, 100.0), (128.0, 200.0)]);
        assert!(useful(|n| c.at(n), 8.0, 8.0) < 0.1);
        assert!(useful(|n| c.at(n), 64.0, 64.0) > 0.9);
        assert_eq!(useful(|n| Curve::default().at(n), 8.0, 8.0), 0.0);
        assert_eq!(useful(|n| 100.0 + n * 100.0, 4.0, 2.0), 0.8, "of five hundred, one is paid again");
    }
}
