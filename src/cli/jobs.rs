//! Plan, confirm, apply, follow.

use std::io::Write;
use std::time::Duration;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::{Handle, Reply, Request};
use crate::engine::ids::JobId;
use crate::engine::model::catalog::Catalog;
use crate::engine::model::jobs::{JobInfo, JobKind, JobState};
use crate::engine::plan::{Danger, Intent, Plan};

use super::{ApplyArgs, Format, output};

/// A dead process's lease has run out by then.
const TAKEN_UP: Duration = Duration::from_secs(30);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(50);

/// Makes a plan.
pub async fn plan(handle: &Handle, intent: Intent) -> Result<std::sync::Arc<Plan>> {
    match handle.request(Request::Plan(intent)).await? {
        Reply::Planned(plan) => Ok(plan),
        _ => Err(unexpected()),
    }
}

/// Plans, shows, asks, applies and follows until the job ends.
pub async fn apply(
    handle: &mut Handle,
    intent: Intent,
    args: &ApplyArgs,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    apply_at(handle, intent, args, Pace::default(), out).await
}

/// Builds the demo, and says what to look at.
pub async fn demo(
    handle: &mut Handle,
    args: &ApplyArgs,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let code = apply(handle, Intent::Demo, args, out).await?;
    if code != 0 || args.plan || !matches!(args.out.output, Format::Table | Format::Wide) {
        return Ok(code);
    }
    // The picture follows the store; the snapshot that is being dropped is the last thing made.
    let clock = handle.clock.clone();
    let seen = async {
        let is_whole = |c: &Catalog| c.snapshots.values().any(|s| s.state.name == "Deleting");
        // An error means that the engine has stopped; what is known is printed then.
        let _ = handle.catalog.wait_for(|c| is_whole(c)).await;
    };
    tokio::select! {
        () = seen => {}
        () = clock.sleep(super::PATIENCE) => {}
    }
    let jobs = handle.jobs.borrow().clone();
    output::built(out, &handle.catalog.borrow(), &jobs, &handle.place)?;
    Ok(0)
}

/// Holds a job's copies to so many bytes a second; 0 = no limit.
pub async fn hold(handle: &Handle, job: JobId, rate: u64) -> Result<()> {
    let rate = Some(rate).filter(|r| *r > 0);
    ours(handle, || Request::Throttle(job, rate)).await
}

/// Lets so many copies run at once.
pub async fn parallel(handle: &Handle, job: JobId, copies: u32) -> Result<()> {
    ours(handle, || Request::Parallel(job, copies)).await
}

/// Tries again what failed, of a job that is stuck.
pub async fn retry(handle: &Handle, job: JobId) -> Result<()> {
    ours(handle, || Request::Retry(job)).await
}

/// Stops a job.
pub async fn cancel(handle: &Handle, job: JobId) -> Result<()> {
    ours(handle, || Request::Cancel(job)).await
}

/// Asks for something that only the process which runs the job can do. A job that a dead process left is taken up a moment after
/// it is known, or when that process's lease has run out: until then the answer is *busy*.
async fn ours(handle: &Handle, request: impl Fn() -> Request) -> Result<()> {
    let begun = handle.clock.mono();
    loop {
        match handle.request(request()).await {
            Err(e)
                if e.kind() == ErrorKind::Busy
                    && handle.clock.mono().saturating_sub(begun) < TAKEN_UP => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(()),
        }
        handle.clock.sleep(AGAIN).await;
    }
}

/// How fast a job is to go.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Pace {
    /// Bytes a second that the copies are held to, e.g. `20MiB`; 0 = no limit.
    #[arg(long, value_name = "BYTES", value_parser = super::rate)]
    pub rate: Option<u64>,
    /// Objects deleted or moved a second; 0 = no limit.
    #[arg(skip)]
    pub objects: Option<u64>,
    /// Copies at once, 1 to 256.
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub parallel: Option<u32>,
}

impl Pace {
    /// Nobody asked for anything.
    pub const fn is_unasked(&self) -> bool {
        self.rate.is_none() && self.parallel.is_none() && self.objects.is_none()
    }

    /// Asks for it.
    pub async fn set(self, handle: &Handle, job: JobId) -> Result<()> {
        if let Some(rate) = self.rate {
            hold(handle, job, rate).await?;
        }
        if let Some(objects) = self.objects {
            let objects = Some(objects).filter(|n| *n > 0);
            ours(handle, || Request::Pace(job, objects)).await?;
        }
        if let Some(copies) = self.parallel {
            parallel(handle, job, copies).await?;
        }
        Ok(())
    }
}

/// As [`apply`], at a pace from the start.
pub async fn apply_at(
    handle: &mut Handle,
    intent: Intent,
    args: &ApplyArgs,
    pace: Pace,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let plan = plan(handle, intent).await?;
    if args.plan {
        output::plan(out, &plan, args.out.output)?;
        return Ok(if plan.applicable() { 0 } else { 4 });
    }
    if let Some(check) = plan.failures().next() {
        output::plan(out, &plan, args.out.output)?;
        let why = check.failed.as_deref().unwrap_or_default();
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("cannot {}: {}: {why}", plan.title, check.name),
        ));
    }
    let typed = confirm(&plan, args)?;
    let apply = Request::Apply {
        hash: plan.hash.clone(),
        typed,
    };
    let job = match handle.request(apply).await? {
        Reply::Accepted(job) => job,
        Reply::Settled(what) => {
            output::settled(out, &what, args.out.output)?;
            return Ok(0);
        }
        _ => return Err(unexpected()),
    };
    match pace.set(handle, job).await {
        // It was quicker than the order.
        Err(e) if e.kind() == ErrorKind::Conflict => {}
        set => set?,
    }
    follow(handle, job, args.out.output, Say::News, out).await
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

/// What is said of a job while it runs, where there is no terminal to draw a line on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// Its notes, in `jsonl`.
    News,
    /// How it goes, now and then: that is what was asked for.
    Progress,
}

/// Between two lines of progress that no terminal overwrites.
const SAY: Duration = Duration::from_secs(1);

/// Follows a job, run here or by another process, until it ends or waits for the operator; progress goes to standard error.
pub async fn follow(
    handle: &mut Handle,
    job: JobId,
    format: Format,
    say: Say,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let live = super::interactive() && format == Format::Table;
    let mut said = 0;
    let mut told = false;
    let mut spoke: Option<(Duration, String)> = None;
    loop {
        let seen = handle
            .jobs
            .borrow_and_update()
            .jobs
            .iter()
            .find(|j| j.id == job)
            .cloned();
        if let Some(info) = seen {
            if let Some(how) = info.recovered.as_deref().filter(|_| !told) {
                told = true;
                let _ = writeln!(std::io::stderr(), "falconer: job {job} {how}");
            }
            if live {
                let mut err = std::io::stderr();
                let _ = write!(err, "\r\x1b[K{}", output::progress_line(&info));
                let _ = err.flush();
            } else if say == Say::Progress && !info.state.rests() {
                let now = handle.clock.mono();
                let due = spoke
                    .as_ref()
                    .is_none_or(|(at, _)| now.saturating_sub(*at) >= SAY);
                let text = output::progress_line(&info);
                if due && spoke.as_ref().is_none_or(|(_, last)| *last != text) {
                    if format == Format::Jsonl {
                        output::job(out, &info, Format::Jsonl)?;
                    } else {
                        let _ = writeln!(std::io::stderr(), "{text}");
                    }
                    spoke = Some((now, text));
                }
            } else if format == Format::Jsonl && info.notes.len() > said {
                said = info.notes.len();
                output::job(out, &info, Format::Jsonl)?;
            }
            if info.state.rests() {
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

/// The command that a job of this kind is watched, retried and cancelled with.
pub const fn command(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Export => "export",
        _ => "restore",
    }
}

fn result(info: &JobInfo) -> Result<u8> {
    match info.state {
        JobState::Verified => Ok(0),
        JobState::Cancelled => Err(Error::new(
            ErrorKind::Cancelled,
            format!("{} was cancelled", info.title),
        )),
        JobState::Stuck => {
            let why = info.error.clone().unwrap_or_default();
            Err(
                Error::new(ErrorKind::Conflict, format!("{} is stuck: {why}", info.title)).fix(
                    format!(
                        "clear the cause, then: falconer {1} retry {0}; or take it back: falconer {1} cancel {0}",
                        info.id,
                        command(info.kind)
                    ),
                ),
            )
        }
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

/// An answer to another question. It is not printed: it may hold a raw value.
pub fn unexpected() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the engine answered another question than the one asked",
    )
}
