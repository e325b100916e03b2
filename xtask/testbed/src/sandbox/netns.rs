//! Network namespaces, made by name and entered by threads.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::tools;

/// A network namespace that this process has made. It is removed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    name: String,
    path: PathBuf,
}

impl Netns {
    pub(super) fn make(name: &str) -> Result<Self> {
        tools::ip(None, &format!("netns add {name}"))?;
        Ok(Self(Arc::new(Owned {
            name: name.to_owned(),
            path: Path::new("/run/netns").join(name),
        })))
    }

    /// Its name, as in `ip netns`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs commands of iproute2's `ip` inside of it, one a line.
    ///
    /// # Errors
    /// With what `ip` printed, when one of them fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        tools::ip(Some(self.name()), lines)
    }

    /// Does something inside of it, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<R: Send>(&self, what: impl FnOnce() -> R + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| what()));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future to its end inside of it. Threads that the future's runtime starts are inside
    /// as well, and so are all sockets.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no runtime can be made.
    pub fn block_on<R: Send>(&self, future: impl AsyncFnOnce() -> R + Send) -> Result<R> {
        self.run(|| Ok(runtime()?.block_on(future())))?
    }

    /// Runs a future inside of it on a thread of its own, until the future ends or the guest is
    /// dropped.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no runtime can be made.
    pub fn host<F>(&self, name: &str, future: impl FnOnce() -> F + Send + 'static) -> Result<Guest>
    where
        F: Future<Output = ()>,
    {
        let netns = self.clone();
        Guest::start(name, move || netns.enter(), future)
    }

    /// A listening socket inside of it, which any thread can serve.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&self, address: SocketAddr) -> Result<std::net::TcpListener> {
        self.run(|| std::net::TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address} in {}", self.name()))
    }

    /// Lets it forward packets, quietly.
    pub(super) fn forward(&self) -> Result<()> {
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ];
        self.run(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                std::fs::write(&path, value)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            anyhow::Ok(())
        })?
    }

    fn enter(&self) -> Result<()> {
        let file = File::open(self.path())
            .with_context(|| format!("cannot open {}", self.path().display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the namespace {}", self.name()))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // The janitor tries again.
        let _ = tools::ip(None, &format!("netns delete {}", self.name));
    }
}

/// A future on a thread and runtime of its own; dropping it ends both.
pub struct Guest {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.thread.as_ref().map(JoinHandle::thread);
        f.debug_tuple("Guest")
            .field(&thread.and_then(|thread| thread.name()))
            .finish()
    }
}

impl Guest {
    /// Runs a future on a thread of its own, in the namespace that this process is in.
    ///
    /// # Errors
    /// When no thread or runtime can be made.
    pub fn outside<F>(name: &str, future: impl FnOnce() -> F + Send + 'static) -> Result<Self>
    where
        F: Future<Output = ()>,
    {
        Self::start(name, || Ok(()), future)
    }

    fn start<F>(
        name: &str,
        enter: impl FnOnce() -> Result<()> + Send + 'static,
        future: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, starting) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime = match enter().and_then(|()| runtime()) {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // Nobody waits for it only if the caller is gone.
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = started.send(Ok(()));
                runtime.block_on(async {
                    tokio::select! {
                        () = future() => {}
                        _ = stopped => {}
                    }
                });
                // Blocking work, a name being looked up say, must not hold the drop.
                runtime.shutdown_background();
            })
            .with_context(|| format!("cannot start the thread {name}"))?;
        starting
            .recv()
            .map_err(|_gone| anyhow!("the thread {name} died"))??;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")
}
