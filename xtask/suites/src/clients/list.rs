//! Clients: their programs and versions.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use toolchain::{AWS, find_program, workspace};

use super::install;
use super::state::State;
use testbed::sandbox::Place;

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    /// Its name, of which its pod and role are made.
    pub(super) name: &'static str,
    /// Its name in the table.
    pub(super) title: &'static str,
    pub(super) family: Family,
    /// Number of clients in one pod at once.
    pub(super) many: usize,
    /// Source of its version: the file that pins it, and the start of its line there.
    pinned: Pinned,
    /// States in which it gets no credentials of the real service either, and why.
    lacks: &'static [(State, &'static str)],
}

/// Runtime of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Python, with the AWS CLI and boto3.
    Botocore,
    /// Python, with the other clients.
    Python,
    Node,
    Go,
    Java,
    Rust,
    /// A program of Debian's.
    Debian,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pinned {
    /// Text between this prefix and the end of the version, in that file.
    In(&'static str, &'static str),
    /// A Debian package's.
    Package(&'static str),
}

const AWS_TXT: &str = include_str!("../../../toolchain/python/aws.txt");
const CLIENTS_TXT: &str = include_str!("../../../toolchain/python/clients.txt");
const PACKAGE_LOCK: &str = include_str!("../../clients/js/package-lock.json");
const GO_MOD: &str = include_str!("../../clients/go/go.mod");
const POM: &str = include_str!("../../clients/java/pom.xml");
const CARGO_LOCK: &str = include_str!("../../../../Cargo.lock");

const BASE: Client = Client {
    name: "",
    title: "",
    family: Family::Debian,
    many: 100,
    pinned: Pinned::Package(""),
    lacks: &[],
};
const NO_CONTAINERS: &str = "it does not ask containers' endpoints";

/// All clients.
pub(super) const ALL: [Client; 19] = [
    Client {
        name: "cli",
        title: "AWS CLI",
        family: Family::Botocore,
        pinned: Pinned::In(AWS_TXT, "\nawscli=="),
        ..BASE
    },
    Client {
        name: "boto3",
        title: "boto3",
        family: Family::Botocore,
        pinned: Pinned::In(AWS_TXT, "\nboto3=="),
        ..BASE
    },
    Client {
        name: "awscrt",
        title: "awscrt (Python)",
        family: Family::Python,
        pinned: Pinned::In(CLIENTS_TXT, "\nawscrt=="),
        ..BASE
    },
    Client {
        name: "pyarrow",
        title: "pyarrow (C++ SDK)",
        family: Family::Python,
        pinned: Pinned::In(CLIENTS_TXT, "\npyarrow=="),
        ..BASE
    },
    Client {
        name: "opendal",
        title: "opendal",
        family: Family::Python,
        pinned: Pinned::In(CLIENTS_TXT, "\nopendal=="),
        ..BASE
    },
    Client {
        name: "clickhouse",
        title: "ClickHouse",
        family: Family::Python,
        many: 20,
        pinned: Pinned::In(CLIENTS_TXT, "\nchdb-core=="),
        ..BASE
    },
    Client {
        name: "js-v2",
        title: "JavaScript v2",
        family: Family::Node,
        pinned: Pinned::In(
            PACKAGE_LOCK,
            "\"node_modules/aws-sdk\": {\n      \"version\": \"",
        ),
        ..BASE
    },
    Client {
        name: "js-v3",
        title: "JavaScript v3",
        family: Family::Node,
        pinned: Pinned::In(
            PACKAGE_LOCK,
            "\"node_modules/@aws-sdk/client-sts\": {\n      \"version\": \"",
        ),
        ..BASE
    },
    Client {
        name: "aws-crt-js",
        title: "aws-crt (JavaScript)",
        family: Family::Node,
        pinned: Pinned::In(
            PACKAGE_LOCK,
            "\"node_modules/aws-crt\": {\n      \"version\": \"",
        ),
        ..BASE
    },
    Client {
        name: "go-v1",
        title: "Go v1",
        family: Family::Go,
        pinned: Pinned::In(GO_MOD, "github.com/aws/aws-sdk-go v"),
        ..BASE
    },
    Client {
        name: "go-v2",
        title: "Go v2",
        family: Family::Go,
        pinned: Pinned::In(GO_MOD, "github.com/aws/aws-sdk-go-v2 v"),
        ..BASE
    },
    Client {
        name: "minio-go",
        title: "minio-go",
        family: Family::Go,
        pinned: Pinned::In(GO_MOD, "github.com/minio/minio-go/v7 v"),
        ..BASE
    },
    Client {
        name: "java-v1",
        title: "Java v1",
        family: Family::Java,
        pinned: Pinned::In(
            POM,
            "<artifactId>aws-java-sdk-sts</artifactId>\n      <version>",
        ),
        ..BASE
    },
    Client {
        name: "java-v2",
        title: "Java v2",
        family: Family::Java,
        many: 200,
        pinned: Pinned::In(POM, "<artifactId>sts</artifactId>\n      <version>"),
        ..BASE
    },
    Client {
        name: "java-v2-metadata",
        title: "Java v2 `Ec2MetadataClient`",
        family: Family::Java,
        pinned: Pinned::In(POM, "<artifactId>imds</artifactId>\n      <version>"),
        lacks: &[
            (State::RelativeUri, NO_CONTAINERS),
            (State::FullUri, NO_CONTAINERS),
        ],
        ..BASE
    },
    Client {
        name: "rust",
        title: "Rust (aws-config)",
        family: Family::Rust,
        pinned: Pinned::In(CARGO_LOCK, "name = \"aws-config\"\nversion = \""),
        ..BASE
    },
    Client {
        name: "ruby",
        title: "Ruby",
        pinned: Pinned::Package("ruby-aws-sdk-core"),
        ..BASE
    },
    Client {
        name: "s3fs",
        title: "s3fs-fuse",
        many: 20,
        pinned: Pinned::Package("s3fs"),
        lacks: &[
            (State::FullUri, NO_CONTAINERS),
            (State::ImdsV2, "it asks for its role before it has a token"),
        ],
        ..BASE
    },
    Client {
        name: "pgbackrest",
        title: "pgBackRest",
        many: 20,
        pinned: Pinned::Package("pgbackrest"),
        ..BASE
    },
];

impl Client {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|client| client.name == name)
    }

    /// The command that runs `count` of it in a pod; each line of its input is a turn.
    pub(super) fn command(&self, place: &Place, count: usize, rust: &std::path::Path) -> Command {
        let source = workspace().join("xtask/suites/clients");
        let node = || find_program("node").unwrap_or_else(|| "node".into());
        let java = || find_program("java").unwrap_or_else(|| "java".into());
        let script = |program: PathBuf, file: &str| {
            let mut command = place.command(program);
            command.arg(source.join(file));
            command
        };
        let mut command = match self.family {
            Family::Botocore => script(AWS.program("python"), "python/client.py"),
            Family::Python => script(install::PYTHON.program("python"), "python/client.py"),
            Family::Node => script(node(), "js/client.mjs"),
            Family::Go => place.command(install::go_cache().path().join("clients")),
            Family::Java => {
                let folder = install::java_cache().path().join("target");
                let mut command = place.command(java());
                command
                    .args([
                        "-Xmx96m",
                        "-Xss256k",
                        "-XX:+UseSerialGC",
                        "-XX:TieredStopAtLevel=1",
                    ])
                    .arg("-cp")
                    .arg(format!("{0}/classes:{0}/lib/*", folder.display()))
                    .arg("Client");
                command
            }
            Family::Rust => place.command(rust),
            Family::Debian if self.name == "ruby" => {
                script("/usr/bin/ruby".into(), "ruby/client.rb")
            }
            Family::Debian if self.name == "pgbackrest" => {
                script("/usr/bin/python3".into(), "pgbackrest/client.py")
            }
            Family::Debian => {
                // Its mounts are visible to no other process, and end with it.
                let mut command = place.command("/usr/bin/unshare");
                command
                    .args(["--mount", "--propagation=private", "/usr/bin/python3"])
                    .arg(source.join("s3fs/client.py"));
                command
            }
        };
        command.args([self.name, &count.to_string()]).env_clear();
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/nonexistent")
            .env("AWS_JAVA_V1_DISABLE_DEPRECATION_ANNOUNCEMENT", "true")
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_DEFAULT_REGION", "eu-west-1")
            .env("KIAM_CLIENTS_MODULES", install::js_cache().path());
        command
    }

    /// Version of the client.
    pub(super) fn version(&self) -> Result<String> {
        match self.pinned {
            Pinned::In(text, before) => {
                let (_, after) = text
                    .split_once(before)
                    .with_context(|| format!("{} is pinned nowhere", self.title))?;
                let version = |byte: char| byte.is_ascii_alphanumeric() || byte == '.';
                Ok(after.chars().take_while(|byte| version(*byte)).collect())
            }
            Pinned::Package(name) => install::package_version(name),
        }
    }

    /// Reason for which the real service gives it no credentials in this state either.
    pub(super) fn lacks(&self, state: State) -> Option<&'static str> {
        let mut lacks = self.lacks.iter();
        lacks.find(|(of, _)| *of == state).map(|(_, why)| *why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_a_name_of_its_own_and_a_pinned_version() {
        let mut names: Vec<_> = ALL.iter().map(|client| client.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for client in ALL {
            if matches!(client.pinned, Pinned::In(..)) {
                let version = client.version().unwrap();
                assert!(version.contains('.'), "{}: {version}", client.title);
            }
        }
    }
}
