//! What goes wrong in a run, and what the administrator changes, decided by the seed.

use crate::laws::Broken;
use crate::random::Random;
use crate::units::{UNITS, configuration};
use crate::world::World;

/// The plan of faults.
pub(crate) struct Faults {
    next_at: u64,
    /// When a dead agent is followed by the next.
    start_at: Option<u64>,
    /// When the control channel is tried again.
    pub(crate) connect_at: u64,
    pub(crate) agent_stalled_until: u64,
    port_up_at: Option<u64>,
    /// When a dead card starts again.
    card_at: Option<u64>,
    /// When the card reaches the host's memory again.
    way_back_at: Option<u64>,
    /// When the agent or its channel was gone last.
    pub(crate) last_outage: Option<u64>,
    /// The agent asked the card for its arenas.
    pub(crate) revoking: bool,
}

impl Faults {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self {
            next_at: random.between(1_500_000, 3_000_000),
            start_at: None,
            connect_at: 0,
            agent_stalled_until: 0,
            port_up_at: None,
            card_at: None,
            way_back_at: None,
            last_outage: Some(0),
            revoking: false,
        }
    }
}

impl World {
    /// What is due in this step.
    pub(crate) fn run_faults(&mut self) -> Result<(), Broken> {
        self.recover();
        if self.ending || self.now < self.faults.next_at {
            return Ok(());
        }
        self.faults.next_at = self.now + self.random.between(20_000, 900_000);
        match self.random.below(36) {
            0..=2 => self.restart_agent(),
            3..=4 => self.disconnect(),
            5..=7 => {
                self.journal.note("the agent stalls", [0; 3]);
                self.faults.agent_stalled_until = self.now + self.random.between(20_000, 1_500_000);
            }
            8..=10 => {
                let group = self.random.index(usize::from(crate::card::GROUPS));
                self.journal.note("a poll group stalls", [group as u64, 0, 0]);
                let until = self.now + self.random.between(20_000, 800_000);
                if let Some(card) = self.card.as_mut() {
                    card.stall(group, until);
                }
            }
            11..=13 => self.toggle_read_only(),
            14..=16 => self.toggle_standby(),
            17 => self.toggle_presence(),
            18..=19 => self.announce_revoke(),
            20 => {
                // The host's memory goes at once, and its agent with it.
                self.kill_agent();
                self.counts.revokes += 1;
                self.journal.note("the host's memory is gone at once", [0; 3]);
                self.host.lose_memory(&mut self.random);
                self.start_later();
            }
            21 if let Some(card) = self.card.as_ref() => {
                self.journal.note("the card's port goes down", [0; 3]);
                card.device().port_down();
                self.faults.port_up_at = Some(self.now + self.random.between(5_000, 400_000));
            }
            22..=23 if self.is_serving() && self.faults.way_back_at.is_none() => {
                self.journal.note("the way to the host's memory is cut", [0; 3]);
                self.counts.cuts += 1;
                self.host.slot.cut();
                self.faults.way_back_at = Some(self.now + self.random.between(5_000, 400_000));
            }
            21..=29 => self.kill_channel(),
            30..=34 => self.log_out_channel(),
            _ if self.card.is_some() => {
                self.kill_card()?;
                self.faults.port_up_at = None;
                self.faults.card_at = Some(self.now + self.random.between(10_000, 1_500_000));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whatever ends a fault.
    fn recover(&mut self) {
        if self.faults.port_up_at.is_some_and(|at| at <= self.now) {
            self.faults.port_up_at = None;
            self.journal.note("the card's port is up", [0; 3]);
            if let Some(card) = self.card.as_ref() {
                card.device().port_up();
            }
        }
        if self.faults.card_at.is_some_and(|at| at <= self.now) {
            self.faults.card_at = None;
            let power_on = self.random.chance(1, 2);
            self.start_card(power_on);
            self.faults.connect_at = self.now + self.random.between(5_000, 300_000);
        }
        if self.faults.start_at.is_some_and(|at| at <= self.now) {
            self.faults.start_at = None;
            self.start_agent();
            self.faults.connect_at = self.now + self.random.between(5_000, 300_000);
        }
        if self.faults.way_back_at.is_some_and(|at| at <= self.now) {
            self.faults.way_back_at = None;
            self.journal.note("the way to the host's memory is whole again", [0; 3]);
            self.host.slot.mend();
        }
        // The control channel takes the same way.
        let way = self.faults.way_back_at.is_none() && self.card.is_some();
        if way && self.wire.is_none() && self.agent.is_some() && self.faults.connect_at <= self.now
        {
            self.connect();
        }
        let revoked = self.agent.as_mut().is_some_and(|agent| std::mem::take(&mut agent.revoked));
        if revoked && std::mem::take(&mut self.faults.revoking) {
            self.journal.note("the card gave the arenas back", [0; 3]);
            self.kill_agent();
            self.host.replug(&mut self.random);
            self.start_later();
        }
    }

    fn start_later(&mut self) {
        let most = if self.random.chance(1, 4) { 14_000_000 } else { 1_500_000 };
        self.faults.start_at = Some(self.now + self.random.between(10_000, most));
        self.faults.revoking = false;
        self.faults.agent_stalled_until = 0;
    }

    fn restart_agent(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
            self.start_later();
        }
    }

    fn announce_revoke(&mut self) {
        if !self.is_serving() || self.faults.revoking {
            return;
        }
        self.journal.note("the agent announces a revoke", [0; 3]);
        self.counts.revokes += 1;
        if let Some(agent) = self.agent.as_mut() {
            agent.core.revoke(2);
            self.faults.last_outage = Some(self.now);
            self.faults.revoking = true;
            if self.random.chance(1, 2) {
                // So that it meets a ring that is full, and tasks that wait for it.
                self.faults.agent_stalled_until =
                    self.now + self.random.between(100_000, 1_500_000);
            }
        }
    }

    fn toggle_read_only(&mut self) {
        let lun = 1 + self.random.index(UNITS.len() - 1);
        self.shape.read_only[lun] = !self.shape.read_only[lun];
        if !self.shape.read_only[lun] {
            // From now on the card may let writes through.
            self.read_only_since[lun] = None;
            self.laws.fenced[lun] = false;
        }
        self.reconfigure();
        if self.shape.read_only[lun] {
            // Without an agent the next one's configuration will say it.
            let generation = self.agent.as_ref().map(|agent| agent.core.configuration_generation());
            self.read_only_since[lun] = Some(generation.unwrap_or(u32::MAX));
        }
        self.journal.note("LUN read-only", [lun as u64, self.shape.read_only[lun].into(), 0]);
    }

    /// The target's port goes to standby for a LUN, or is active again.
    fn toggle_standby(&mut self) {
        // One at a time: there is to be something to do.
        let in_standby = self.shape.standby.iter().position(|standby| *standby);
        let lun = in_standby.unwrap_or_else(|| 1 + self.random.index(UNITS.len() - 1));
        let standby = !self.shape.standby[lun];
        self.shape.standby[lun] = standby;
        self.reconfigure();
        // Without an agent the next one's configuration will say it.
        let generation = self.agent.as_ref().map(|agent| agent.core.configuration_generation());
        let generation = Some(generation.unwrap_or(u32::MAX));
        if standby {
            (self.standby_since[lun], self.active_since[lun]) = (generation, None);
            self.active_at[lun] = u64::MAX;
        } else {
            // From now on the card may let writes through.
            (self.standby_since[lun], self.active_since[lun]) = (None, generation);
            self.laws.fenced[lun] = false;
        }
        self.journal.note("LUN in standby", [lun as u64, standby.into(), 0]);
    }

    fn toggle_presence(&mut self) {
        let Some(lun) = UNITS.iter().position(|unit| unit.comes_and_goes) else { return };
        self.shape.absent[lun] = !self.shape.absent[lun];
        self.journal.note("LUN absent", [lun as u64, self.shape.absent[lun].into(), 0]);
        self.reconfigure();
    }

    fn reconfigure(&mut self) {
        if let Some(agent) = self.agent.as_mut() {
            agent
                .core
                .set_configuration(configuration(&self.shape), self.now)
                .expect("a good configuration");
        }
    }

    fn kill_channel(&mut self) {
        let number = self.random.index(self.channels.len());
        let channel = &mut self.channels[number];
        if channel.initiator.is_logged_in() {
            self.journal.note("channel dies", [number as u64, 0, 0]);
            channel.initiator.disconnect();
        }
    }

    fn log_out_channel(&mut self) {
        let number = self.random.index(self.channels.len());
        if self.channels[number].initiator.logout().is_ok() {
            self.journal.note("channel logs out", [number as u64, 0, 0]);
        }
    }
}
