//! The page `/metrics`, and what it says of a server at rest.

use std::collections::BTreeMap;

/// All series of one scrape, by name with labels.
#[derive(Debug)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub fn parse(page: &str) -> Self {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (series, value) = line.rsplit_once(' ').unwrap();
                    (series.to_owned(), value.parse().unwrap())
                })
                .collect(),
        )
    }

    /// The sum of a family over all its series; there is at least one.
    pub fn sum(&self, family: &str) -> f64 {
        let series: Vec<f64> = self
            .0
            .iter()
            .filter(|(name, _)| name.split('{').next() == Some(family))
            .map(|(_, value)| *value)
            .collect();
        assert!(!series.is_empty(), "no series of {family}");
        series.iter().sum()
    }

    /// One series.
    pub fn one(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no series {series}"))
    }

    /// Requests answered with a 4xx.
    pub fn refused(&self) -> f64 {
        let refused =
            |name: &str| name.starts_with("sluice_http_requests_total{") && name.contains("code=\"4");
        self.0.iter().filter(|(name, _)| refused(name)).map(|(_, value)| value).sum()
    }

    /// What is still held; nothing at rest.
    pub fn held(&self) -> Vec<String> {
        let gauges = [
            "sluice_sequences",
            "sluice_rank_sequences",
            "sluice_kv_used_pages",
            "sluice_stalled_rows",
            "sluice_orphan_rows",
            "sluice_http_connections",
        ];
        let mut held: Vec<String> = gauges
            .iter()
            .map(|family| (family, self.sum(family)))
            .filter(|(_, value)| *value != 0.0)
            .map(|(family, value)| format!("{family} {value}"))
            .collect();
        let (came, went) =
            (self.sum("sluice_sequences_received_total"), self.sum("sluice_sequences_ended_total"));
        if came != went {
            held.push(format!("{came} sequences came and {went} are over"));
        }
        held
    }
}
