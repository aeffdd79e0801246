//! Findings about broadcasts (`spec/lifecycle.md` §1 (e), §II.8; `spec/oncall.md` §5.10).

use super::{FROZEN_MS, Fault, Rule, STUCK_MS, Severity};
use crate::engine::model::broadcast::{Broadcast, RETRIES, Waiting};
use crate::engine::model::resource::RowId;
use crate::engine::model::rows::View;
use crate::engine::model::text::age;

/// Findings about broadcasts and about the logs that feed them.
pub(super) fn faults(view: &View<'_>, out: &mut Vec<Fault>) {
    for b in view.catalog.broadcasts.values() {
        let Some(waiting) = b.waiting(view) else {
            continue;
        };
        let add = |rule, severity, reason, next| Fault {
            rule,
            severity,
            subject: Some(RowId::Broadcast(b.id)),
            since: b.since(view),
            reason,
            next,
        };
        let title = b.title(view);
        let own = b.own(view);
        if own.is_some_and(|own| own.unrecoverable) {
            out.push(add(
                Rule::BroadcastAppend,
                Severity::Bad,
                format!("{title}: {waiting}"),
                "trying again does not cure it; mend what the error names, its keys stay held until then",
            ));
        }
        if matches!(waiting, Waiting::Stopped(_)) {
            out.push(add(
                Rule::BroadcastStopped,
                Severity::Bad,
                format!("{title} does not go on: {waiting}"),
                "look at its record; nothing that needs its keys can run",
            ));
        }
        let retries = own.map_or(0, |own| own.retries);
        if matches!(waiting, Waiting::Callback(..)) && retries > RETRIES {
            out.push(add(
                Rule::BroadcastCallback,
                Severity::Bad,
                format!("{title} has failed {retries} times: {waiting}"),
                "it is tried again without end; clear what the error names",
            ));
        }
        // Said once: of two records with one key, by the later.
        if own.is_none()
            && b.holds_keys()
            && let Some((other, over)) = b.holds_against(view).filter(|(other, _)| *other < b.id)
        {
            out.push(add(
                Rule::BroadcastConflict,
                Severity::Bad,
                format!("{title} and broadcast {other} both hold {over}"),
                "a Milvus refuses to start with both; one of the records is damaged or was put back",
            ));
        }
        late(view, b, &waiting, out);
    }
    for (pchannel, why) in &view.broadcasts.troubles {
        out.push(Fault {
            rule: Rule::LogNotTaken,
            severity: Severity::Bad,
            subject: None,
            since: None,
            reason: format!("messages of {pchannel} cannot be taken in: {why}"),
            next: "checkpoints of its channels stand still until it is mended; it is tried again by itself",
        });
    }
}

/// What has waited too long: with the slowest channel where it waits for checkpoints, and with what it keeps waiting.
fn late(view: &View<'_>, b: &Broadcast, waiting: &Waiting, out: &mut Vec<Fault>) {
    let Some(ms) = b.since(view).map(|at| view.now.since(at)) else {
        return;
    };
    let blocks = match b.blocks(view) {
        0 => String::new(),
        n => format!("; {n} wait for its keys"),
    };
    let title = b.title(view);
    let fault = |rule, severity, next| Fault {
        rule,
        severity,
        subject: Some(RowId::Broadcast(b.id)),
        // The reason begins with it.
        since: None,
        reason: format!(
            "DDL is blocked {} by {title}: it waits for {waiting}{blocks}",
            age(ms)
        ),
        next,
    };
    if matches!(waiting, Waiting::Checkpoint { .. }) && ms > FROZEN_MS {
        out.push(fault(
            Rule::BroadcastCheckpoint,
            Severity::Bad,
            "find the node of that channel; every operation that needs the same keys waits",
        ));
    } else if !matches!(waiting, Waiting::Checkpoint { .. }) && ms > STUCK_MS {
        out.push(fault(
            Rule::BroadcastStuck,
            Severity::Warn,
            "see whether the coordinator and the node of that channel are alive",
        ));
    } else if !blocks.is_empty() {
        out.push(fault(
            Rule::BroadcastBlocking,
            Severity::Info,
            "they go on when it is done",
        ));
    }
}
