//! kiam-server: the program around [`kiam_server::app`].

use std::io::Write as _;
use std::process::ExitCode;

use kiam_common::{limits, telemetry};
use kiam_server::args::{Args, Cli, Command};
use kiam_server::{app, commands};
use tokio::signal::unix::{SignalKind, signal};

/// Reading a large cluster leaves a few texts of each object among many that are dropped: glibc's
/// allocator looks through its free pieces again and again then, and a start takes three times as long.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As in sysexits.h: the command line or what it names cannot be used.
const EX_USAGE: u8 = 64;
/// `explain` can tell neither yes nor no.
const CANNOT_TELL: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            return ExitCode::from(code);
        }
    };
    if let Cli::Run(args) = &cli
        && let Err(error) = telemetry::init(args.telemetry.json_log, &args.telemetry.level)
    {
        return usage(&error);
    }
    // One provider is compiled in; a second call would be the only error.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match (runtime, cli) {
        (Ok(runtime), Cli::Run(args)) => runtime.block_on(run(*args)),
        (_, Cli::Print(text)) => print(&text),
        (Ok(runtime), Cli::Command(command)) => runtime.block_on(obey(command)),
        (Err(error), _) => usage(&error),
    }
}

fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn obey(command: Command) -> ExitCode {
    let failed = |error: &dyn std::error::Error, code| {
        drop(writeln!(std::io::stderr(), "kiam-server: {error}"));
        ExitCode::from(code)
    };
    match command {
        Command::Health(args) => match commands::health(*args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        },
        Command::Explain(args) => match commands::explain(*args).await {
            Ok((text, granted)) => {
                let printed = print(text.as_bytes());
                if granted { printed } else { ExitCode::FAILURE }
            }
            Err(error) => failed(&error, CANNOT_TELL),
        },
    }
}

async fn run(args: Args) -> ExitCode {
    tracing::debug!(files = limits::raise_open_files(), "may be open at once");
    limits::leave_no_core_file();
    let bound = match app::build(args).await {
        Ok(bound) => bound,
        Err(error) => return usage(&error),
    };
    tracing::info!(address = %bound.address, admin = ?bound.admin, "serving agents");
    match bound.run_until(interrupted()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("stopped: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[expect(
    clippy::print_stderr,
    reason = "for whoever started it, also where logs are JSON"
)]
fn usage(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("kiam-server: {error}");
    ExitCode::from(EX_USAGE)
}
