//! Why a machine was answered so: the recorded chain from facts by a rule to the reply.

use super::event::{Event, Recorded};
use super::timeline::{asked_word, utc};

/// The last `count` answers, oldest first: each as a line of question, its facts, its rule, its answer.
pub fn chain(events: &[Recorded], count: usize) -> Vec<String> {
    let answers: Vec<&Recorded> = events.iter().filter(|r| matches!(r.event, Event::Answered { .. })).collect();
    let mut lines = Vec::new();
    for recorded in answers.iter().skip(answers.len().saturating_sub(count)) {
        let Event::Answered { mac, node, asked, address, facts, rule, answer, .. } = &recorded.event else { continue };
        let from = address.map(|a| format!(" from {a}")).unwrap_or_default();
        lines.push(format!(
            "{} {} asked by {mac}{from} (answer {})",
            utc(recorded.at_ms),
            asked_word(*asked),
            recorded.rev
        ));
        lines.extend(
            facts.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("    {key} = {value}")),
        );
        lines.push(format!("  → rule {rule}, node {}", node.as_deref().unwrap_or("none")));
        lines.push(format!("  → {answer}"));
    }
    lines
}
