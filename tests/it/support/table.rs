//! Tables of results that are committed beside their tests. `UPDATE_SNAPSHOTS=1` rewrites them.

use std::path::Path;

/// Renders rows of cells in columns of equal width.
pub(crate) fn render<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let line = |row: &[String; N]| {
        let cells =
            row.iter().enumerate().map(|(column, cell)| format!("{cell:width$}", width = width(column)));
        cells.collect::<Vec<_>>().join(" | ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Compares a table with the committed one, `tests/it/NAME`.
#[track_caller]
pub(crate) fn compare(name: &str, seen: &str, context: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, seen).expect("the table is written");
    }
    let committed = std::fs::read_to_string(&file).expect("the table is committed");
    assert_eq!(committed, seen, "{context}; UPDATE_SNAPSHOTS=1 writes tests/it/{name} anew");
}
