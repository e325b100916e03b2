//! Clients whose only credentials are those that AWS's SDK for Rust finds, for
//! `cargo xtask clients`.
//!
//! `rust-client rust COUNT`: for each line of its input, each client signs one request.

use aws_config::BehaviorVersion;
use aws_config::identity::IdentityCache;
use aws_sdk_sts::Client;
use aws_sdk_sts::error::DisplayErrorContext;
use tokio::task::JoinSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build()?;
    let count = std::env::args().nth(2).ok_or("no count")?.parse()?;
    let endpoint = std::env::var("KIAM_STS_URL")?;
    let mut clients = Vec::new();
    for _ in 0..count {
        // Without the cache of credentials each request asks for new ones; what else a client keeps,
        // its token above all, it keeps.
        let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .identity_cache(IdentityCache::no_cache())
            .endpoint_url(&endpoint);
        let config = runtime.block_on(config.load());
        clients.push(Client::new(&config));
    }
    for line in std::io::stdin().lines() {
        line?;
        runtime.block_on(turn(&clients));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its report")]
async fn turn(clients: &[Client]) {
    let mut all = JoinSet::new();
    for client in clients {
        let request = client.get_caller_identity();
        all.spawn(async move { request.send().await.map(drop) });
    }
    let (mut good, mut first) = (0, String::new());
    for end in all.join_all().await {
        match end {
            Ok(()) => good += 1,
            Err(error) if first.is_empty() => {
                let text = DisplayErrorContext(error).to_string();
                first = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            Err(_) => {}
        }
    }
    println!("done {good} {first}");
}
