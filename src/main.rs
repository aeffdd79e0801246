//! argv → configuration → runtime → console or command → exit code.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use falconer::cli::{self, Cli};
use falconer::config::{Config, Resolved, Surroundings};
use falconer::engine::Engine;
use falconer::engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::profile::MetaProfile;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = log().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| {
                Error::new(ErrorKind::Internal, "no runtime could be started").caused_by(e)
            })?;
        runtime.block_on(run(cli))
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            // A reader that has gone away (`falconer get … | head`) has what it wanted.
            let pipe =
                e.kind() == ErrorKind::Cancelled && e.what() == "the output cannot be written";
            if !pipe {
                let _ = writeln!(std::io::stderr(), "falconer: {e}");
            }
            ExitCode::from(if pipe { 0 } else { cli::exit_code(e.kind()) })
        }
    }
}

async fn run(cli: Cli) -> Result<u8> {
    if let Some(command) = &cli.command
        && cli::offline(command)
        && !matches!(command, cli::Command::Config(_))
    {
        cli::run_offline(command, &[], &mut std::io::stdout().lock())?;
        return Ok(0);
    }
    let mut resolved = Config::resolve(&cli.connect, &Surroundings::of_process()?)?;
    if let Some(command @ cli::Command::Config(_)) = &cli.command {
        cli::run_offline(command, &resolved.origins, &mut std::io::stdout().lock())?;
        return Ok(0);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    resolved = overlay(resolved, &clock).await?;
    for note in &resolved.notes {
        let _ = writeln!(std::io::stderr(), "falconer: {note}");
    }
    let handle = Engine::open(&resolved.profile, clock, entropy).await?;
    match cli.command {
        Some(command) => cli::run(command, handle, &mut std::io::stdout()).await,
        None => falconer::ui::run(handle, look(&cli.look, &resolved))
            .await
            .map(|()| 0),
    }
}

/// What the cluster says of itself in etcd fills the keys that nothing nearer has set.
async fn overlay(resolved: Resolved, clock: &Arc<dyn Clock>) -> Result<Resolved> {
    if !matches!(resolved.profile.meta, MetaProfile::Etcd(_)) {
        return Ok(resolved);
    }
    let prefix = resolved.etcd_config_prefix();
    let pairs = Engine::dynamic_config(&resolved.profile, &prefix, clock.clone()).await?;
    resolved.with_etcd_config(&pairs)
}
