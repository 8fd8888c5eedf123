//! What a step of one unit costs, where rows are expected values.

use sluice_core::cost::Curve;

/// A measured curve, or one unit of time per row where nothing was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost<'a>(pub &'a Curve);

impl Cost<'_> {
    /// The time of a step of `rows`. Below one row it is the part of the steps in which the unit is asked at all,
    /// times the cost of one row.
    pub(crate) fn time(self, rows: f64) -> f64 {
        if self.0.is_empty() {
            return rows;
        }
        rows.min(1.0) * self.0.at(rows.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_a_row_it_is_a_chance() {
        let curve = Curve::new(vec![(4.0, 10.0), (8.0, 12.0)]);
        let cost = Cost(&curve);
        for (rows, time) in [(0.0, 0.0), (0.25, 2.5), (1.0, 10.0), (6.0, 11.0)] {
            assert_eq!(cost.time(rows), time, "{rows} rows");
        }
    }

    #[test]
    fn without_a_measurement_time_is_rows() {
        for rows in [0.0, 0.5, 1.0, 7.25] {
            assert_eq!(Cost(&Curve::default()).time(rows), rows);
        }
    }
}
