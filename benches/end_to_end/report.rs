//! The table of results.

use std::fmt;

use crate::{scenarios::Measure, subject::Subject};

/// The results so far.
pub(crate) struct Report {
    subjects: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    scenario: &'static str,
    measure: Measure,
    /// By subject.
    values: Vec<Vec<f64>>,
}

impl Report {
    pub(crate) fn new(subjects: &[Subject]) -> Self {
        let subjects = subjects.iter().map(|subject| subject.name.clone()).collect();
        Self { subjects, rows: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        subject: usize,
        scenario: &'static str,
        measure: Measure,
        value: f64,
    ) {
        let same = |row: &Row| row.scenario == scenario && row.measure == measure;
        let at = self.rows.iter().position(same).unwrap_or_else(|| {
            let values = vec![Vec::new(); self.subjects.len()];
            self.rows.push(Row { scenario, measure, values });
            self.rows.len() - 1
        });
        self.rows[at].values[subject].push(value);
    }
}

impl fmt::Display for Report {
    /// Shows medians, and their ratios to the first subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| | |")?;
        for (at, subject) in self.subjects.iter().enumerate() {
            write!(f, " {subject} |")?;
            if at > 0 {
                write!(f, " ratio |")?;
            }
        }
        write!(f, "\n| --- | --- |")?;
        for _ in 1..self.subjects.len() * 2 {
            write!(f, " ---: |")?;
        }
        let mut scenario = "";
        for row in &self.rows {
            let repeated = std::mem::replace(&mut scenario, row.scenario) == row.scenario;
            let name = if repeated { "" } else { row.scenario };
            write!(f, "\n| {name} | {} |", row.measure.name)?;
            let base = median(&row.values[0]);
            for (at, values) in row.values.iter().enumerate() {
                let value = median(values);
                cell(f, value, row.measure.decimals)?;
                if at > 0 {
                    cell(f, value.zip(base).map(|(value, base)| value / base), 2)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes a figure, or a blank cell.
fn cell(f: &mut fmt::Formatter<'_>, figure: Option<f64>, decimals: usize) -> fmt::Result {
    match figure {
        Some(figure) => write!(f, " {figure:.decimals$} |"),
        None => write!(f, " |"),
    }
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[n / 2]),
        n => Some((values[n / 2 - 1] + values[n / 2]) / 2.0),
    }
}
