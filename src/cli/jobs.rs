//! Plan, confirm, apply, follow.

use std::io::Write;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::{Handle, Reply, Request};
use crate::engine::ids::JobId;
use crate::engine::model::jobs::{JobInfo, JobState};
use crate::engine::plan::{Danger, Intent, Plan};

use super::{ApplyArgs, Format, output};

/// Makes a plan.
pub async fn plan(handle: &Handle, intent: Intent) -> Result<std::sync::Arc<Plan>> {
    match handle.request(Request::Plan(intent)).await? {
        Reply::Planned(plan) => Ok(plan),
        other => Err(unexpected(&other)),
    }
}

/// Plans, shows, asks, applies and follows until the job ends.
pub async fn apply(
    handle: &mut Handle,
    intent: Intent,
    args: &ApplyArgs,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let plan = plan(handle, intent).await?;
    if args.plan {
        output::plan(out, &plan, args.out.output)?;
        return Ok(if plan.applicable() { 0 } else { 4 });
    }
    if !plan.applicable() {
        output::plan(out, &plan, args.out.output)?;
        return Ok(4);
    }
    let typed = confirm(&plan, args)?;
    let job = match handle
        .request(Request::Apply {
            hash: plan.hash.clone(),
            typed,
        })
        .await?
    {
        Reply::Accepted(job) => job,
        other => return Err(unexpected(&other)),
    };
    follow(handle, job, args.out.output, out).await
}

/// What has to be typed, from the flags or from the terminal.
fn confirm(plan: &Plan, args: &ApplyArgs) -> Result<String> {
    let wanted = match plan.danger {
        Danger::Low => String::new(),
        Danger::Medium => "y".to_owned(),
        Danger::High => plan
            .type_to_confirm
            .clone()
            .unwrap_or_else(|| "y".to_owned()),
    };
    if plan.danger == Danger::Low && (args.yes || !super::interactive()) {
        return Ok(wanted);
    }
    if plan.danger == Danger::Medium && args.yes {
        return Ok(wanted);
    }
    if let Some(text) = &args.confirm {
        return Ok(text.clone());
    }
    if !super::interactive() {
        let how = if plan.danger == Danger::High {
            format!("--confirm {wanted}")
        } else {
            "--yes".to_owned()
        };
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{} needs a confirmation and there is no terminal to ask",
                plan.title
            ),
        )
        .fix(format!("look at it with --plan, then give {how}")));
    }
    let mut text = Vec::new();
    output::plan(&mut text, plan, Format::Table)?;
    let mut err = std::io::stderr();
    let question = match plan.danger {
        Danger::Low => "Press Enter to apply, Ctrl-C to leave: ".to_owned(),
        Danger::Medium => "Type y and Enter to apply: ".to_owned(),
        Danger::High => format!("Type {wanted} and Enter to apply: "),
    };
    let asked = err
        .write_all(&text)
        .and_then(|()| write!(err, "\n{question}"))
        .and_then(|()| err.flush());
    asked.map_err(output::write_failed)?;
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|e| Error::new(ErrorKind::Invalid, "no answer was read").caused_by(e))?;
    let line = line.trim_end_matches(['\r', '\n']).to_owned();
    if line != wanted {
        return Err(Error::new(
            ErrorKind::Cancelled,
            "not confirmed, nothing was done",
        ));
    }
    Ok(line)
}

/// Follows a job of this process until it ends; progress goes to standard error when it is a terminal.
pub async fn follow(
    handle: &mut Handle,
    job: JobId,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let live = super::interactive() && format == Format::Table;
    let mut said = 0;
    loop {
        let seen = handle
            .jobs
            .borrow_and_update()
            .jobs
            .iter()
            .find(|j| j.id == job)
            .cloned();
        if let Some(info) = seen {
            if live {
                let mut err = std::io::stderr();
                let _ = write!(err, "\r\x1b[K{}", output::progress_line(&info));
                let _ = err.flush();
            } else if format == Format::Jsonl && info.notes.len() > said {
                said = info.notes.len();
                output::job(out, &info, Format::Jsonl)?;
            }
            if info.state.ended() {
                if live {
                    let _ = writeln!(std::io::stderr());
                }
                output::job(out, &info, format)?;
                return result(&info);
            }
        }
        if handle.jobs.changed().await.is_err() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the engine stopped while job {job} was running"),
            )
            .fix("start Falconer again: the job resumes or is undone, and it says which"));
        }
    }
}

fn result(info: &JobInfo) -> Result<u8> {
    match info.state {
        JobState::Verified => Ok(0),
        JobState::Cancelled => Err(Error::new(
            ErrorKind::Cancelled,
            format!("{} was cancelled", info.title),
        )),
        _ => {
            let why = info
                .error
                .clone()
                .unwrap_or_else(|| "no reason recorded".into());
            Err(Error::new(
                ErrorKind::Conflict,
                format!("{} failed: {why}", info.title),
            ))
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the engine answered something else: {reply:?}"),
    )
}
