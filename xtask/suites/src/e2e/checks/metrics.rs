//! What running programs count, compared with what is documented.

use anyhow::{Context as _, Result, ensure};

use super::super::report::Facts;
use super::super::world::World;
use crate::metrics::{Metrics, PROGRAMS, of};

pub(super) async fn documented(world: &mut World) -> Result<Facts> {
    let [agent, server] = PROGRAMS;
    let served = [
        (agent, of(agent)?, world.agent.admin("/metrics")?),
        (server, of(server)?, world.server_operator("/metrics")?),
    ];
    let mut facts = Facts::new();
    for (program, documented, told) in served {
        ensure!(told.status == 200, "{program}: {}", told.body);
        let served = compare(&documented, &told.body).context(program)?;
        facts.push(format!(
            "{program} has counted {served} of its {} metrics so far",
            documented.len()
        ));
    }
    Ok(facts)
}

/// Each metric that is told is documented, with its help and type. Returns how many are told.
fn compare(documented: &Metrics, told: &str) -> Result<usize> {
    let mut served = 0;
    for line in told.lines() {
        let mut words = line.splitn(4, ' ');
        if words.next() != Some("#") {
            continue;
        }
        let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if name.starts_with("process_") {
            continue;
        }
        let metric = documented
            .get(name)
            .with_context(|| format!("{name} is not documented"))?;
        let expected = match what {
            "HELP" => metric.help.as_str(),
            _ => metric.kind.as_str(),
        };
        ensure!(
            text == expected,
            "{name} is told as {text:?}, documented as {expected:?}"
        );
        served += usize::from(what == "TYPE");
    }
    ensure!(served > 5, "only {served} metrics are told:\n{told}");
    Ok(served)
}
