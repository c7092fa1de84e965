//! Who is logged in, as the card reports it: for `lunar show`, and to know whether an entry's nexus
//! has been announced.

use std::collections::BTreeMap;

use lunar_offload_proto::control::NexusEvent;

/// Bytes of a peer's or group's name that are kept.
const TEXT_BYTES_MAX: usize = 256;

/// One I_T nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nexus {
    /// Handle, as in ring entries.
    pub handle: u32,
    /// Which life of the handle.
    pub generation: u32,
    /// Handle of the target.
    pub target: u32,
    /// SRP initiator port identifier.
    pub initiator_port_id: [u8; 16],
    /// The peer's GID or address.
    pub peer: String,
    /// The access group; empty for the target's default.
    pub group: String,
    /// The card's poll group that serves it.
    pub poll_group: u32,
    /// Channels it has.
    pub channels: u32,
    /// When it was reported first.
    pub since_ns: u64,
}

/// What the table says of an entry's nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Known,
    /// The login has not been reported yet.
    NotYet,
    /// The handle has a newer life.
    Stale,
}

#[derive(Debug, Default)]
pub(crate) struct NexusTable {
    by_handle: BTreeMap<u32, Nexus>,
}

impl NexusTable {
    /// Takes a LOGIN.
    ///
    /// # Errors
    /// Why it was not taken, in words.
    pub(crate) fn login(
        &mut self,
        event: &NexusEvent,
        nexuses_max: u32,
        now_ns: u64,
    ) -> Result<(), String> {
        let handle = event.nexus;
        let initiator_port_id = event.initiator_port_id.as_slice().try_into().map_err(|_| {
            format!(
                "nexus {handle}: its port id has {} bytes, not 16",
                event.initiator_port_id.len()
            )
        })?;
        let known = self.by_handle.get(&handle);
        if let Some(known) = known.filter(|known| known.generation > event.nexus_generation) {
            return Err(format!(
                "nexus {handle}: generation {} was reported after {}",
                event.nexus_generation, known.generation
            ));
        }
        let count = u32::try_from(self.by_handle.len()).unwrap_or(u32::MAX);
        if known.is_none() && count >= nexuses_max {
            return Err(format!("nexus {handle}: {nexuses_max} nexuses are logged in already"));
        }
        let same_life = known.filter(|known| known.generation == event.nexus_generation);
        let nexus = Nexus {
            handle,
            generation: event.nexus_generation,
            target: event.target,
            initiator_port_id,
            peer: cut(&event.peer),
            group: cut(&event.group),
            poll_group: event.poll_group,
            channels: event.channels,
            since_ns: same_life.map_or(now_ns, |known| known.since_ns),
        };
        self.by_handle.insert(handle, nexus);
        Ok(())
    }

    /// Takes a LOGOUT; `None` when that life of the nexus is not there.
    pub(crate) fn logout(&mut self, handle: u32, generation: u32) -> Option<Nexus> {
        self.by_handle.get(&handle).filter(|known| known.generation == generation)?;
        self.by_handle.remove(&handle)
    }

    pub(crate) fn standing(&self, handle: u32, generation: u32) -> Standing {
        match self.by_handle.get(&handle) {
            Some(known) if known.generation == generation => Standing::Known,
            Some(known) if known.generation > generation => Standing::Stale,
            _ => Standing::NotYet,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.by_handle.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Nexus> {
        self.by_handle.values()
    }
}

/// Text of the other side, in a length that a log can take.
pub(crate) fn cut(text: &str) -> String {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or("").to_owned()
}
