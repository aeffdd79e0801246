//! `scan`: rows of a segment, printed as they come.

use std::io::Write;

use clap::Args;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{Format, OutputArgs, output, verbs};
use crate::engine::error::Result;
use crate::engine::format::rows::json::brief;
use crate::engine::handle::{Handle, Reply, Request};
use crate::engine::ids::SegmentId;
use crate::engine::scan::{Found, Scan};

/// Characters of a value in a table.
const CELL: usize = 40;
/// Rows whose widths a table's columns are made for.
const FIRST: usize = 64;

/// `scan`.
#[derive(Clone, Debug, Args)]
pub struct ScanArgs {
    /// The segment's id.
    pub segment: i64,
    /// Only these fields, by name or id; all of the collection's and Timestamp when absent.
    #[arg(long, value_delimiter = ',', value_name = "FIELD,…")]
    pub fields: Vec<String>,
    /// At most so many rows; 0 = all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: u64,
    /// Apply deletes: those of the segment's delta logs and of the L0 segments of its channel.
    #[arg(long)]
    pub with_deletes: bool,
    /// Output format; `jsonl` prints a row a line, and the counts on standard error.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// Rows as they come.
enum Printer {
    /// Columns, once their widths are known.
    Table {
        heads: Vec<(String, usize)>,
        waiting: Vec<Vec<String>>,
        wide: bool,
    },
    Lines,
    Document {
        any: bool,
    },
    Kept(Vec<Value>),
}

/// `scan`.
pub async fn scan(handle: &Handle, args: ScanArgs, out: &mut (dyn Write + Send)) -> Result<u8> {
    let (sender, mut found) = mpsc::channel::<Found>(2);
    let scan = Scan {
        segment: SegmentId(args.segment),
        fields: args.fields,
        limit: (args.limit > 0).then_some(args.limit),
        deletes: args.with_deletes,
    };
    let asked = handle.clone();
    let answer = async move { asked.request(Request::Scan(scan, Some(sender))).await };
    tokio::pin!(answer);
    let mut printer = Printer::new(args.out.output);
    let mut answered = None;
    // The rows end when the engine lets go of the sender, which is before or as it answers.
    loop {
        tokio::select! {
            biased;
            rows = found.recv() => match rows {
                Some(rows) => printer.rows(out, &rows)?,
                None => break,
            },
            reply = &mut answer, if answered.is_none() => answered = Some(reply),
        }
    }
    let reply = match answered {
        Some(reply) => reply,
        None => answer.await,
    };
    printer.end(out, reply?, args.out.output)?;
    Ok(0)
}

impl Printer {
    fn new(format: Format) -> Self {
        match format {
            Format::Table | Format::Wide => Self::Table {
                heads: Vec::new(),
                waiting: Vec::new(),
                wide: format == Format::Wide,
            },
            Format::Jsonl => Self::Lines,
            Format::Json => Self::Document { any: false },
            Format::Yaml => Self::Kept(Vec::new()),
        }
    }

    fn rows(&mut self, out: &mut dyn Write, rows: &[Map<String, Value>]) -> Result<()> {
        for row in rows {
            match self {
                Self::Table {
                    heads,
                    waiting,
                    wide,
                } => {
                    let cell = |v: &Value| {
                        if *wide {
                            brief(v, usize::MAX)
                        } else {
                            brief(v, CELL)
                        }
                    };
                    let cells: Vec<String> = row.values().map(cell).collect();
                    if waiting.is_empty() && heads.is_empty() {
                        waiting.push(row.keys().cloned().collect());
                    }
                    waiting.push(cells);
                    if heads.is_empty() && waiting.len() <= FIRST {
                        continue;
                    }
                    print(out, heads, waiting)?;
                }
                Self::Lines => output::line(out, &Value::from(row.clone()).to_string())?,
                Self::Document { any } => {
                    let text = Value::from(row.clone()).to_string();
                    output::line(
                        out,
                        &format!("{}{text}", if *any { "," } else { "{\"rows\":[" }),
                    )?;
                    *any = true;
                }
                Self::Kept(kept) => kept.push(row.clone().into()),
            }
        }
        Ok(())
    }

    fn end(self, out: &mut (dyn Write + Send), reply: Reply, format: Format) -> Result<()> {
        match self {
            Self::Table {
                mut heads,
                mut waiting,
                ..
            } => {
                print(out, &mut heads, &mut waiting)?;
                if !heads.is_empty() {
                    output::line(out, "")?;
                }
                verbs::tree(reply, format, out)
            }
            Self::Lines => verbs::tree(reply, Format::Jsonl, &mut std::io::stderr()),
            Self::Document { any } => {
                let Reply::Tree(counts) = reply else {
                    return Err(super::jobs::unexpected());
                };
                let begin = if any { "" } else { "{\"rows\":[" };
                output::line(out, &format!("{begin}],\"scan\":{counts}}}"))
            }
            Self::Kept(rows) => {
                let Reply::Tree(counts) = reply else {
                    return Err(super::jobs::unexpected());
                };
                let whole = serde_json::json!({ "rows": rows, "scan": &*counts });
                output::tree(out, &whole, format)
            }
        }
    }
}

/// Prints what waits; the first lines decide the widths.
fn print(
    out: &mut dyn Write,
    heads: &mut Vec<(String, usize)>,
    waiting: &mut Vec<Vec<String>>,
) -> Result<()> {
    let width = |text: &str| unicode_width::UnicodeWidthStr::width(text);
    if heads.is_empty() {
        let names = waiting.first().cloned().unwrap_or_default();
        *heads = names.into_iter().map(|name| (name, 0)).collect();
        for line in waiting.iter() {
            for (head, cell) in heads.iter_mut().zip(line) {
                head.1 = head.1.max(width(cell));
            }
        }
    }
    for line in waiting.drain(..) {
        let mut text = String::new();
        for ((_, wide), cell) in heads.iter().zip(&line) {
            text.push_str(cell);
            text.push_str(&" ".repeat(wide.saturating_sub(width(cell)) + 2));
        }
        output::line(out, text.trim_end())?;
    }
    Ok(())
}
