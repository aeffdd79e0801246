//! Takes the demo back: it began in an empty root, so every key below the root is its own, and every object under its ids.

use std::collections::BTreeSet;

use futures::StreamExt;

use super::ids::IdMap;
use super::{State, Step, all_keys, seed};
use crate::engine::error::Result;
use crate::engine::format::paths::ObjPath;
use crate::engine::ids::ObjectKey;
use crate::engine::jobs::Next;
use crate::engine::jobs::cx::JobCx;
use crate::engine::meta::Write;
use crate::engine::plan::execute::Change;

/// One step.
pub async fn step(cx: &JobCx, state: State) -> Result<Next<State>> {
    match state.step {
        Step::UndoKeys => keys(cx, state).await,
        Step::UndoObjects => objects(cx, state).await,
        Step::UndoJobs => {
            // A job of ours that still writes would put back what is removed here.
            if let Some(job) = state.child {
                cx.children()?.ended(job).await?;
            }
            Ok(Next::Step(state.to(Step::UndoKeys)))
        }
        _ if state.first == 0 => Ok(Next::Undone(state)),
        _ => Ok(Next::Step(state.to(Step::UndoJobs))),
    }
}

/// By name, as they stand at one revision.
async fn keys(cx: &JobCx, state: State) -> Result<Next<State>> {
    let (rev, kvs) = all_keys(&cx.meta, &cx.roots).await?;
    if kvs.is_empty() {
        return Ok(Next::Step(state.to(Step::UndoObjects)));
    }
    cx.commit(Change {
        name: format!("undo-{rev}"),
        writes: kvs.into_iter().map(|kv| Write::Delete(kv.key)).collect(),
        ..Change::default()
    })
    .await?;
    Ok(Next::Step(state))
}

/// What carries an id that was taken for the demo.
async fn objects(cx: &JobCx, state: State) -> Result<Next<State>> {
    let seed = seed::read()?;
    let ids = IdMap::of(&seed, state.first);
    let ours = state.first..ids.after();
    let root = cx.objects.root().to_owned();
    let mut found = BTreeSet::new();
    let mut listing = cx.objects.list(&ObjectKey(root.clone()), None);
    while let Some(object) = listing.next().await {
        let key = object?.key;
        let owner = ObjPath::parse(&root, &key.0)
            .known()
            .map(|path| path.owner());
        let id = owner.and_then(|o| o.collection.map(|c| c.0).or(o.build.map(|b| b.0)));
        if id.is_some_and(|id| ours.contains(&id)) {
            found.insert(key);
        }
    }
    for key in found {
        cx.delete_object(&key).await?;
    }
    Ok(Next::Undone(state))
}
