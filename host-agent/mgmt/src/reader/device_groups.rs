//! `DEVICE_GROUP` blocks: which targets reach which devices in which state (ALUA).

use std::collections::{BTreeMap, BTreeSet};

use super::{Once, Reader};
use crate::attributes::{TARGET_GROUP_ATTRIBUTES, number, target_group_attribute_names};
use crate::diagnostic::Place;
use crate::syntax::{Statement, Word};
use crate::tree::{DeviceGroup, Luns, TARGET_GROUPS_MAX, Target, TargetGroup};

/// A device group whose names lead to things that may follow in the file.
pub(super) struct Unchecked {
    name: Word,
    targets: Vec<Named>,
}

/// A target of a target group.
struct Named {
    target_group: String,
    name: Word,
    rel_tgt_id: Option<(u16, Place)>,
}

impl Reader<'_> {
    pub(super) fn device_group(&mut self, statement: &Statement) {
        let Some(name) = self.one_name(statement, "DEVICE_GROUP disks {") else { return };
        self.check_name(name, "device group", &["mgmt"]);
        if self.tree.device_groups.contains_key(&name.text) {
            self.twice(name, "DEVICE_GROUP", "put its devices and target groups into one block");
            return;
        }
        let mut group = DeviceGroup::default();
        let mut targets = Vec::new();
        for inner in statement.block.iter().flatten() {
            match inner.keyword.text.as_str() {
                "DEVICE" => self.device_of_group(inner, &name.text, &mut group),
                "TARGET_GROUP" => self.target_group(inner, &mut group, &mut targets),
                other => self.mistakes.error(
                    inner.keyword.place,
                    format!("`{other}` is not known in device group `{}`", name.text),
                    "known here: DEVICE, TARGET_GROUP",
                ),
            }
        }
        let count = group.target_groups.len();
        if count > TARGET_GROUPS_MAX {
            self.mistakes.error(
                name.place,
                format!("device group `{}` has {count} target groups", name.text),
                format!("{TARGET_GROUPS_MAX} are possible: put targets together"),
            );
        }
        self.tree.device_groups.insert(name.text.clone(), group);
        self.device_groups.push(Unchecked { name: name.clone(), targets });
    }

    fn device_of_group(&mut self, statement: &Statement, own: &str, group: &mut DeviceGroup) {
        let Some(device) = self.one_name(statement, "DEVICE disk1") else { return };
        if statement.block.is_some() {
            self.mistakes.error(
                statement.keyword.place,
                format!("DEVICE `{}` of a device group has a block", device.text),
                "write `DEVICE NAME` alone on its line; its attributes are in the block of its handler",
            );
        }
        let mut others = self.tree.device_groups.iter();
        let other = others.find(|(_, other)| other.devices.contains(&device.text));
        let other = other.map(|(name, _)| name.clone());
        let twice = (!group.devices.insert(device.text.clone())).then(|| own.to_owned());
        if let Some(other) = other.or(twice) {
            self.mistakes.error(
                device.place,
                format!("device `{}` is already in device group `{other}`", device.text),
                "a device is in at most one device group: remove it from the other",
            );
            return;
        }
        self.uses.push(device.clone());
    }

    fn target_group(
        &mut self,
        statement: &Statement,
        group: &mut DeviceGroup,
        targets: &mut Vec<Named>,
    ) {
        let Some(name) = self.one_name(statement, "TARGET_GROUP here {") else { return };
        self.check_name(name, "target group", &["mgmt"]);
        if group.target_groups.contains_key(&name.text) {
            self.twice(name, "TARGET_GROUP", "put its targets into one block");
            return;
        }
        let mut target_group = TargetGroup::default();
        let mut once = Once::default();
        let mut id_place = name.place;
        for inner in statement.block.iter().flatten() {
            if inner.keyword.text == "TARGET" {
                self.target_of_group(inner, &name.text, &mut target_group, targets);
                continue;
            }
            let known = TARGET_GROUP_ATTRIBUTES.iter().find(|own| own.name == inner.keyword.text);
            let Some(known) = known else {
                self.mistakes.error(
                    inner.keyword.place,
                    format!(
                        "`{}` is not known in target group `{}`",
                        inner.keyword.text, name.text
                    ),
                    format!("known here: TARGET, {}", target_group_attribute_names()),
                );
                continue;
            };
            let Some(value) = self.attribute_value(inner) else { continue };
            let owner = format!("target group `{}`", name.text);
            if !self.once(&mut once, &inner.keyword, &owner) {
                continue;
            }
            if known.name == "group_id" {
                id_place = value.place;
            }
            if let Err(refusal) = (known.store)(&mut target_group, &value.text) {
                self.refuse(value.place, refusal);
            }
        }
        let id = target_group.id;
        let other = group.target_groups.iter().find(|(_, other)| id != 0 && other.id == id);
        if let Some((other, _)) = other {
            self.mistakes.error(
                id_place,
                format!("group_id {id} is already that of target group `{other}`"),
                "give each target group of a device group its own",
            );
        }
        if once.first("", "group_id") {
            self.mistakes.error(
                name.place,
                format!("target group `{}` has no group_id", name.text),
                "add for example `group_id 1`: initiators know it by that",
            );
        }
        let count = target_group.targets.len();
        if count > TARGET_GROUPS_MAX {
            self.mistakes.error(
                name.place,
                format!("target group `{}` has {count} targets", name.text),
                format!(
                    "{TARGET_GROUPS_MAX} are possible: make two target groups in the same state"
                ),
            );
        }
        group.target_groups.insert(name.text.clone(), target_group);
    }

    fn target_of_group(
        &mut self,
        statement: &Statement,
        own: &str,
        group: &mut TargetGroup,
        targets: &mut Vec<Named>,
    ) {
        let Some(name) = self.one_name(statement, "TARGET fe80:...:f34b") else { return };
        self.check_name(name, "target", &["mgmt"]);
        let other = targets.iter().find(|other| other.name.text == name.text);
        if let Some(other) = other {
            self.mistakes.error(
                name.place,
                format!("target `{}` is already in target group `{}`", name.text, other.target_group),
                "a target is in at most one target group of a device group: remove it from the other",
            );
            return;
        }
        let mut rel_tgt_id = None;
        for inner in statement.block.iter().flatten() {
            if inner.keyword.text != "rel_tgt_id" {
                self.mistakes.error(
                    inner.keyword.place,
                    format!(
                        "`{}` is not an attribute of a target group's target",
                        inner.keyword.text
                    ),
                    "known here: rel_tgt_id",
                );
                continue;
            }
            let Some(value) = self.attribute_value(inner) else { continue };
            match number(&value.text).map(u16::try_from) {
                Ok(Ok(id @ 1..)) => rel_tgt_id = Some((id, value.place)),
                Ok(_) => self.mistakes.error(
                    value.place,
                    format!("rel_tgt_id {} is not between 1 and 65535", value.text),
                    "use 1 to 65535: what the other node gives the target",
                ),
                Err(refusal) => self.refuse(value.place, refusal),
            }
        }
        // Whether it is of another node is known at the end of the file.
        group.targets.insert(name.text.clone(), None);
        targets.push(Named { target_group: own.to_owned(), name: name.clone(), rel_tgt_id });
    }

    /// Tells targets of this host and of others apart, and what does not fit.
    pub(super) fn check_device_groups(&mut self) {
        for Unchecked { name, targets } in std::mem::take(&mut self.device_groups) {
            // Names are unique within a driver, and there is one driver.
            let local: BTreeMap<String, Option<u16>> = self
                .tree
                .drivers
                .values()
                .flatten()
                .map(|(name, target)| (name.clone(), target.relative_target_port))
                .collect();
            let mut taken: BTreeMap<u16, String> =
                local.iter().filter_map(|(name, port)| Some(((*port)?, name.clone()))).collect();
            for target in &targets {
                let port = match local.get(&target.name.text) {
                    Some(own) => {
                        self.check_own_target(target, *own);
                        continue;
                    }
                    None => self.port_of_another_node(target, &mut taken),
                };
                let group = self.tree.device_groups.get_mut(&name.text);
                let group =
                    group.and_then(|group| group.target_groups.get_mut(&target.target_group));
                if let Some(group) = group {
                    group.targets.insert(target.name.text.clone(), port);
                }
            }
            self.warn_of_ungrouped_targets(&name, &targets);
        }
    }

    fn check_own_target(&mut self, target: &Named, own: Option<u16>) {
        if let Some((id, place)) = target.rel_tgt_id
            && own != Some(id)
        {
            self.mistakes.error(
                place,
                format!(
                    "target `{}` is one of this host, without rel_tgt_id {id}",
                    target.name.text
                ),
                "leave rel_tgt_id out here; that of the target is in its own block",
            );
        }
    }

    fn port_of_another_node(
        &mut self,
        target: &Named,
        taken: &mut BTreeMap<u16, String>,
    ) -> Option<u16> {
        let name = &target.name.text;
        let Some((id, place)) = target.rel_tgt_id else {
            self.mistakes.error(
                target.name.place,
                format!("there is no target `{name}` here, and for one of another node rel_tgt_id is missing"),
                format!("correct the name, or write `TARGET {name} {{ rel_tgt_id N }}`"),
            );
            return None;
        };
        if let Some(other) = taken.insert(id, name.clone()) {
            self.mistakes.error(
                place,
                format!("rel_tgt_id {id} is already that of target `{other}`"),
                "give each target its own, over all nodes",
            );
        }
        Some(id)
    }

    fn warn_of_ungrouped_targets(&mut self, name: &Word, targets: &[Named]) {
        let Some(group) = self.tree.device_groups.get(&name.text) else { return };
        let grouped: BTreeSet<&str> = targets.iter().map(|own| own.name.text.as_str()).collect();
        let exports = |luns: &Luns| luns.values().any(|lun| group.devices.contains(&lun.device));
        let ungrouped = |(own, target): &(&String, &Target)| {
            !grouped.contains(own.as_str())
                && (exports(&target.luns) || target.groups.values().any(|own| exports(&own.luns)))
        };
        let found = self.tree.drivers.values().flatten().find(ungrouped);
        if let Some((target, _)) = found {
            let reason = format!(
                "target `{target}` exports devices of device group `{}` and is in none of its target groups",
                name.text
            );
            let way_out =
                "its initiators reach them in state active whatever happens; put it into one";
            self.mistakes.warning(name.place, reason, way_out);
        }
    }
}
