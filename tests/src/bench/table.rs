//! Tables of figures.

use serde_json::{Map, Value, json};

use super::statistics::Spread;

/// What a table holds at one place.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing: not measured, or it would say nothing.
    Empty,
    /// One figure, and how many decimals to show.
    Figure(f64, usize),
    /// The middle of some and their range, and how many decimals to show.
    Spread(Spread, usize),
    /// Words.
    Text(String),
}

impl Cell {
    /// Of some figures; empty if there are none.
    pub fn spread(spread: Option<Spread>, decimals: usize) -> Self {
        spread.map_or(Self::Empty, |spread| Self::Spread(spread, decimals))
    }

    fn text(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Figure(figure, decimals) => format!("{figure:.decimals$}"),
            Self::Spread(Spread { median, min, max }, decimals) => {
                format!("{median:.decimals$} ({min:.decimals$} .. {max:.decimals$})")
            }
            Self::Text(text) => text.clone(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Empty => Value::Null,
            Self::Figure(figure, _) => json!(figure),
            Self::Spread(spread, _) => spread.json(),
            Self::Text(text) => json!(text),
        }
    }
}

/// A column's names, with the unit of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// In JSON.
    pub key: String,
    /// On the terminal.
    pub title: String,
}

/// A row: its names, and a cell for each column.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In JSON.
    pub key: String,
    /// On the terminal.
    pub title: String,
    /// As many as there are columns.
    pub cells: Vec<Cell>,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What heads the rows' names.
    pub heading: String,
    /// The columns after the rows' names.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Table {
    /// An empty one, with each column's key and title.
    pub fn new(heading: &str, columns: &[(&str, &str)]) -> Self {
        let column = |(key, title): &(&str, &str)| Column { key: (*key).into(), title: (*title).into() };
        Self { heading: heading.into(), columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    /// One more row.
    pub fn row(&mut self, key: &str, title: &str, cells: impl IntoIterator<Item = Cell>) {
        let cells = cells.into_iter().collect();
        self.rows.push(Row { key: key.into(), title: title.into(), cells });
    }

    /// Aligned columns for the terminal. A column with nothing in it is left out.
    pub fn text(&self) -> String {
        let names = [&self.heading].into_iter().chain(self.rows.iter().map(|row| &row.title));
        let mut lines: Vec<String> = names.map(|name| format!("  {name}")).collect();
        pad(&mut lines);
        for (index, column) in self.columns.iter().enumerate() {
            let cells: Vec<String> = self
                .rows
                .iter()
                .map(|row| row.cells.get(index).map_or_else(String::new, Cell::text))
                .collect();
            if cells.iter().all(String::is_empty) {
                continue;
            }
            for (line, cell) in lines.iter_mut().zip([&column.title].into_iter().chain(&cells)) {
                *line += &format!("  {cell}");
            }
            pad(&mut lines);
        }
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// For programs: a list of rows, each with its columns by key.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(&row.cells);
            let mut object: Map<String, Value> =
                cells.map(|(column, cell)| (column.key.clone(), cell.json())).collect();
            object.insert("name".into(), json!(row.key));
            Value::Object(object)
        });
        rows.collect()
    }
}

/// Makes all lines as long as the longest.
fn pad(lines: &mut [String]) {
    let longest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    for line in lines {
        *line += &" ".repeat(longest - line.chars().count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Mpps", &[("rate", "median"), ("none", "nothing"), ("note", "note")]);
        let spread = Spread { median: 1.0, min: 0.5, max: 2.0 };
        table.row("one", "the first", [Cell::Spread(spread, 2), Cell::Empty, Cell::Text("fast".into())]);
        table.row("two", "second", [Cell::Figure(10.0, 1), Cell::Empty, Cell::Empty]);
        table
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let wanted = "  Mpps       median               note\n  \
                      the first  1.00 (0.50 .. 2.00)  fast\n  \
                      second     10.0\n";
        assert_eq!(table().text(), wanted);
    }

    #[test]
    fn programs_get_keys_and_all_digits() {
        let wanted = json!([
            {"name": "one", "rate": {"median": 1.0, "min": 0.5, "max": 2.0}, "none": null, "note": "fast"},
            {"name": "two", "rate": 10.0, "none": null, "note": null},
        ]);
        assert_eq!(table().json(), wanted);
    }
}
