//! What a step of one unit costs.

use crate::PlanError;

/// The measured time of a step of one unit over the rows in it. The unit of time is the caller's.
#[derive(Clone, Debug, PartialEq)]
pub struct CostCurve {
    /// Rising rows with times that do not fall. Never empty.
    points: Vec<(f64, f64)>,
}

impl CostCurve {
    /// A curve through `(rows, time)` points: straight between them, flat below the first, and beyond the last with
    /// the slope before it.
    ///
    /// # Errors
    /// If there are no points, rows do not rise from at least 1, or times are not positive or fall.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self, PlanError> {
        if points.is_empty() {
            return Err(PlanError::CurveEmpty);
        }
        let mut before = (0.0, 0.0);
        for (index, &(rows, time)) in points.iter().enumerate() {
            let numbers = rows.is_finite() && time.is_finite();
            if !numbers || rows < 1.0 || time <= 0.0 || rows <= before.0 || time < before.1 {
                return Err(PlanError::CurvePoint { index, rows, time });
            }
            before = (rows, time);
        }
        Ok(Self { points })
    }

    /// One unit of time per row, nothing for the weights: all that can be said without a measurement.
    pub fn linear() -> Self {
        Self { points: vec![(1.0, 1.0), (2.0, 2.0)] }
    }

    /// The time of a step of `rows` rows, which may be an expected value. Below one row it is the part of the steps
    /// in which the unit is asked at all, times the cost of one row.
    pub fn time(&self, rows: f64) -> f64 {
        if rows <= 0.0 {
            return 0.0;
        }
        if rows < 1.0 {
            return rows * self.time(1.0);
        }
        let above = self.points.partition_point(|&(at, _)| at < rows);
        let Some(&(r1, t1)) = self.points.get(above) else {
            let last = self.points[self.points.len() - 1];
            let Some(&before) = self.points.len().checked_sub(2).and_then(|i| self.points.get(i)) else {
                return last.1;
            };
            return last.1 + (rows - last.0) * (last.1 - before.1) / (last.0 - before.0);
        };
        match above.checked_sub(1).map(|i| self.points[i]) {
            None => t1,
            Some((r0, t0)) => t0 + (rows - r0) * (t1 - t0) / (r1 - r0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_flat_then_straight_then_goes_on() {
        let curve = CostCurve::new(vec![(4.0, 10.0), (8.0, 12.0), (16.0, 20.0)]).unwrap();
        let cases = [
            (-1.0, 0.0),
            (0.0, 0.0),
            (0.25, 2.5),
            (1.0, 10.0),
            (3.0, 10.0),
            (4.0, 10.0),
            (5.0, 10.5),
            (8.0, 12.0),
            (12.0, 16.0),
            (16.0, 20.0),
            (24.0, 28.0),
        ];
        for (rows, time) in cases {
            assert_eq!(curve.time(rows), time, "{rows} rows");
        }
    }

    #[test]
    fn one_point_is_a_constant() {
        let curve = CostCurve::new(vec![(2.0, 3.0)]).unwrap();
        assert_eq!((curve.time(1.0), curve.time(2.0), curve.time(9.0)), (3.0, 3.0, 3.0));
    }

    #[test]
    fn without_a_measurement_time_is_rows() {
        for rows in [0.0, 0.5, 1.0, 1.5, 7.25] {
            assert_eq!(CostCurve::linear().time(rows), rows);
        }
    }

    #[test]
    fn what_is_no_curve_is_refused() {
        assert_eq!(CostCurve::new(vec![]), Err(PlanError::CurveEmpty));
        let bad = [
            vec![(0.5, 1.0)],
            vec![(1.0, 0.0)],
            vec![(1.0, f64::INFINITY)],
            vec![(f64::INFINITY, 1.0)],
            vec![(1.0, f64::NAN)],
            vec![(f64::NAN, 1.0)],
        ];
        for points in bad {
            assert!(matches!(CostCurve::new(points), Err(PlanError::CurvePoint { index: 0, .. })));
        }
        for point in [(1.0, 2.0), (2.0, 0.5)] {
            let points = vec![(1.0, 1.0), point];
            let (rows, time) = point;
            assert_eq!(CostCurve::new(points), Err(PlanError::CurvePoint { index: 1, rows, time }));
        }
        assert!(CostCurve::new(vec![(1.0, 1.0), (2.0, 1.0)]).is_ok());
    }
}
