//! AWS's SDKs as unmodified clients: small programs around each, built or installed once into the
//! user's cache.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use toolchain::{AWS, Cache, Package, Plan, Step, find_program, fingerprint, go, npm, workspace};

/// An SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// The AWS CLI, which is botocore in a program.
    Cli,
    /// boto3.
    Python,
    /// aws-sdk-go-v2.
    Go,
    /// aws-sdk-js v3.
    Js,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cli, Self::Python, Self::Go, Self::Js];
    /// Those whose clock can be moved: the CLI is one of boto3's.
    pub const WITH_CLOCK: [Self; 3] = [Self::Python, Self::Go, Self::Js];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cli => "the AWS CLI",
            Self::Python => "boto3",
            Self::Go => "aws-sdk-go-v2",
            Self::Js => "aws-sdk-js v3",
        }
    }

    /// Prints who it is to STS; the command is run by `run`, which knows where.
    pub fn who(self, run: impl FnOnce(PathBuf) -> Command) -> Command {
        match self {
            Self::Cli => {
                let mut command = run(AWS.program("aws"));
                command.args(["sts", "get-caller-identity", "--query=Arn", "--output=text"]);
                clean(command)
            }
            _ => self.program(run, "who"),
        }
    }

    /// Reads times in seconds since 1970, one a line, and prints for each which key it would sign
    /// with then, or why none.
    pub fn contract(self) -> Command {
        self.program(Command::new, "contract")
    }

    fn program(self, run: impl FnOnce(PathBuf) -> Command, verb: &str) -> Command {
        let source = workspace().join("xtask/testbed/sdk");
        let mut command = match self {
            Self::Cli | Self::Python => {
                let mut command = run(AWS.program("python"));
                command.arg(source.join("python/client.py"));
                command
            }
            Self::Go => run(go_cache().path().join("sdk")),
            Self::Js => {
                let node = find_program("node").unwrap_or_else(|| "node".into());
                let mut command = run(node);
                command.arg(source.join("js/client.mjs"));
                command
            }
        };
        command.arg(verb);
        let mut command = clean(command);
        if self == Self::Js {
            command.env("KIAM_SDK_MODULES", js_cache().path());
        }
        command
    }
}

/// With nothing of this machine's, and a region, which none of them goes without.
fn clean(mut command: Command) -> Command {
    command
        .env_clear()
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_DEFAULT_REGION", "eu-west-1");
    command
}

/// Returns whether all are installed.
pub fn are_installed() -> bool {
    AWS.is_installed() && go_cache().is_complete() && js_cache().is_complete()
}

/// Adds what is missing.
pub fn plan(plan: &mut Plan) -> Result<()> {
    AWS.plan(plan)?;
    let why = "an unmodified client that asks for credentials in the sandbox's pods";
    if !go_cache().is_complete() {
        go::plan(plan);
        plan.step(Step {
            what: format!(
                "a client of aws-sdk-go-v2, built into {}",
                go_cache().path().display()
            ),
            why,
            about: Some(Duration::from_secs(40)),
            run: Box::new(build_go),
        });
    }
    if !js_cache().is_complete() {
        for (program, name) in [("node", "nodejs"), ("npm", "npm")] {
            if find_program(program).is_none() {
                plan.package(Package { name, why });
            }
        }
        plan.step(Step {
            what: format!("aws-sdk-js v3, by npm into {}", js_cache().path().display()),
            why,
            about: Some(Duration::from_secs(15)),
            run: Box::new(install_js),
        });
    }
    Ok(())
}

fn go_cache() -> Cache {
    let parts = [
        include_str!("../sdk/go/go.sum"),
        include_str!("../sdk/go/main.go"),
    ];
    Cache::new(&format!("sdk-go-{}", fingerprint(&parts)))
}

fn js_cache() -> Cache {
    let lock = include_str!("../sdk/js/package-lock.json");
    Cache::new(&format!("sdk-js-{}", fingerprint(&[lock])))
}

fn build_go() -> Result<()> {
    let go = go::find().context("there is no Go that is new enough")?;
    let sources = workspace().join("xtask/testbed/sdk/go");
    go_cache().fill(|folder, log| go.build(&sources, &folder.join("sdk"), log))
}

fn install_js() -> Result<()> {
    let sources = workspace().join("xtask/testbed/sdk/js");
    js_cache().fill(|folder, log| npm::install(&sources, folder, log))
}
