//! Aligned columns: a line of headers, then a line for each row, two blanks
//! between columns.

use std::fmt;

/// What stands in an empty cell, so that columns can be counted by blanks.
const EMPTY: &str = "-";

/// Rows below headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<const N: usize> {
    headers: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with no rows.
    pub fn new(headers: [&'static str; N]) -> Self {
        Self { headers, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = self.headers.map(|header| header.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(shown(cell).chars().count());
            }
        }
        line(f, &widths, self.headers.iter().copied())?;
        self.rows.iter().try_for_each(|row| line(f, &widths, row.iter().map(|cell| shown(cell))))
    }
}

fn shown(cell: &str) -> &str {
    if cell.is_empty() { EMPTY } else { cell }
}

/// One line, with no blanks at its end.
fn line<'a>(
    f: &mut fmt::Formatter<'_>,
    widths: &[usize],
    cells: impl Iterator<Item = &'a str>,
) -> fmt::Result {
    for (i, (cell, width)) in cells.zip(widths).enumerate() {
        match i + 1 < widths.len() {
            true => write!(f, "{cell:width$}  ")?,
            false => f.write_str(cell)?,
        }
    }
    f.write_str("\n")
}

/// The text of a value, or nothing.
pub fn optional(value: Option<impl fmt::Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["NAME", "MTU", "STATE"]);
        assert_eq!(table.to_string(), "NAME  MTU  STATE\n");
        table.row(["a-long-name".into(), "1458".into(), "up".into()]);
        table.row(["b".into(), optional(None::<u32>), "unresolved".into()]);
        assert_eq!(
            table.to_string(),
            "NAME         MTU   STATE\na-long-name  1458  up\nb            -     unresolved\n"
        );
    }
}
