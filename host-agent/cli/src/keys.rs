//! `lunar keys`: what is made, and what is said of it.

use std::path::Path;

use lunar_control_channel::make::{self, Made, Validity};

use crate::Failure;

/// Makes the keys; the text to print.
pub(crate) fn make(
    directory: &Path,
    days: u32,
    force: bool,
    json: bool,
) -> Result<String, Failure> {
    let made = make::make(directory, Validity::days(days), force)
        .map_err(|error| Failure::Keys { reason: error.to_string() })?;
    Ok(if json { as_json(&made) } else { as_text(&made) })
}

fn as_json(made: &Made) -> String {
    let value = serde_json::json!({
        "authority": made.authority,
        "ca": made.ca,
        "agent": made.agent,
        "card": made.card,
        "valid_until": made.valid_until,
    });
    format!("{value:#}\n")
}

fn as_text(made: &Made) -> String {
    let Made { authority, ca, agent, card, valid_until } = made;
    let (ca, agent, card) = (ca.display(), agent.display(), card.display());
    format!(
        "Keys signed by `{authority}`, valid until {valid_until}:\n\
         {agent}  for the host: lunar-agent --control ADDRESS:PORT --tls {agent}\n\
         {card}  for the card: copy it there, lunar-firmware --control ADDRESS:PORT --tls {card}\n\
         {ca}  signed both, and can sign more: keep it off both machines, or delete it\n"
    )
}
