//! argv → configuration → runtime → console or command → exit code.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use falconer::cli::{self, Cli, ColorChoice};
use falconer::config::{Config, Resolved, Surroundings};
use falconer::engine::Engine;
use falconer::engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::profile::{Access, MetaProfile, Profile};
use falconer::ui::Options;
use falconer::ui::theme::{ColorFlag, LookFlags};

/// How long the engine may take to give the root back.
const LEAVE: Duration = Duration::from_secs(2);

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
    resolved = overlay(resolved, &clock, cli.command.is_none()).await?;
    for note in &resolved.notes {
        let _ = writeln!(std::io::stderr(), "falconer: {note}");
    }
    if cli.command.as_ref().is_some_and(cli::Command::reads_only) && is_there(&resolved.profile) {
        resolved.profile.access = Access::ReadOnly;
    }
    let handle = Engine::open(resolved.profile.clone(), clock.clone(), entropy).await?;
    let mut jobs = handle.jobs.clone();
    let done = match cli.command {
        Some(command) => cli::run(command, handle, &mut std::io::stdout()).await,
        None => falconer::ui::run(handle, look(cli.look, &resolved))
            .await
            .map(|()| 0),
    };
    // With its last client the engine ends and gives the root back: who comes next must not have to wait for our lease to run out.
    let ended = async { while jobs.changed().await.is_ok() {} };
    tokio::select! {
        () = ended => {}
        () = clock.sleep(LEAVE) => {}
    }
    done
}

/// What the cluster says of itself in etcd fills the keys that nothing nearer has set. The console opens without it when etcd
/// does not answer: it is wanted most then.
async fn overlay(
    mut resolved: Resolved,
    clock: &Arc<dyn Clock>,
    console: bool,
) -> Result<Resolved> {
    if !matches!(resolved.profile.meta, MetaProfile::Etcd(_)) {
        return Ok(resolved);
    }
    let prefix = resolved.etcd_config_prefix();
    match Engine::dynamic_config(&resolved.profile, &prefix, clock.clone()).await {
        Ok(pairs) => resolved.with_etcd_config(&pairs),
        Err(e) if console && e.is_transient() => {
            resolved.notes.push(format!(
                "the configuration under {prefix} in etcd was not read: {e}"
            ));
            Ok(resolved)
        }
        Err(e) => Err(e),
    }
}

/// An embedded store that has not been made yet cannot be opened to read: there, even a question makes it.
fn is_there(profile: &Profile) -> bool {
    match &profile.meta {
        MetaProfile::Embedded { file } => file.exists(),
        MetaProfile::Memory => false,
        MetaProfile::Etcd(_) | MetaProfile::Dump { .. } => true,
    }
}

/// Colours and letters of the console: flags first, then the profile's `color`, then the terminal.
fn look(flags: cli::Look, resolved: &Resolved) -> Options {
    let color = match (flags.color, resolved.color.as_deref()) {
        (ColorChoice::Auto, Some("never" | "none")) | (ColorChoice::Never, _) => ColorFlag::Never,
        (ColorChoice::Auto, _) => ColorFlag::Auto,
        (ColorChoice::Always, _) => ColorFlag::Always,
        (ColorChoice::Ansi16, _) => ColorFlag::Ansi16,
        (ColorChoice::Ansi256, _) => ColorFlag::Ansi256,
        (ColorChoice::True, _) => ColorFlag::True,
    };
    let light = match (flags.light, flags.dark) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let set = |name: &str| std::env::var_os(name).is_some();
    Options {
        look: LookFlags {
            color: Some(color),
            light,
            ascii: flags.ascii,
        },
        marker: set("FALCONER_UI_MARKER"),
        panic_key: set("FALCONER_UI_PANIC_KEY"),
        ..Options::default()
    }
}

/// Writes a log only where `FALCONER_LOG_FILE` names a file, filtered by `FALCONER_LOG`: the console owns the terminal.
fn log() -> Result<()> {
    let Some(path) = std::env::var_os("FALCONER_LOG_FILE") else {
        return Ok(());
    };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|e| {
            Error::new(
                ErrorKind::Config,
                format!("log file {} cannot be written", path.to_string_lossy()),
            )
            .fix("correct or unset FALCONER_LOG_FILE")
            .caused_by(e)
        })?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("FALCONER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("falconer=info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::sync::Mutex::new(file))
        .init();
    Ok(())
}
