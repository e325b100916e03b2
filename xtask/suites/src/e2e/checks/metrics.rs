//! Metrics of running programs, compared with the documented ones.

use anyhow::{Context as _, Result, ensure};

use super::super::fixture::Fixture;
use super::super::report::Facts;
use crate::metrics::{Metrics, PROGRAMS, of};

pub(super) async fn documented(fixture: &mut Fixture) -> Result<Facts> {
    let [agent, server] = PROGRAMS;
    let served = [
        (agent, of(agent)?, fixture.agent.admin("/metrics")?),
        (server, of(server)?, fixture.server_operator("/metrics")?),
    ];
    let mut facts = Facts::new();
    for (program, documented, exported) in served {
        ensure!(exported.status == 200, "{program}: {}", exported.body);
        let served = compare(&documented, &exported.body).context(program)?;
        facts.push(format!(
            "{program} has counted {served} of its {} metrics so far",
            documented.len()
        ));
    }
    Ok(facts)
}

/// Checks that each exported metric is documented with its help and type; returns their number.
fn compare(documented: &Metrics, exported: &str) -> Result<usize> {
    let mut served = 0;
    for line in exported.lines() {
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
            "{name} is exported as {text:?}, documented as {expected:?}"
        );
        served += usize::from(what == "TYPE");
    }
    ensure!(
        served > 5,
        "only {served} metrics are exported:\n{exported}"
    );
    Ok(served)
}
