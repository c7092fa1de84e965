//! A tree to `scst.conf`: the shortest text that reads back as the same tree, in one order. What has its default is not
//! written (SCST's `[key]` rule).

use std::fmt::Write as _;

use crate::attributes::{DEVICE_ATTRIBUTES, TARGET_ATTRIBUTES, TARGET_GROUP_ATTRIBUTES};
use crate::tree::{Device, DeviceGroup, Group, Handler, Luns, Target, TargetGroup, Tree};

/// The text of `tree`.
pub fn write(tree: &Tree) -> String {
    let mut out = Writer { text: String::new(), depth: 0 };
    if tree.setup_id != 0 {
        out.line(&["setup_id", &format!("{:#x}", tree.setup_id)]);
    }
    for handler in Handler::ALL {
        let devices: Vec<_> =
            tree.devices.iter().filter(|(_, device)| device.handler == handler).collect();
        if !devices.is_empty() {
            out.block(&["HANDLER", handler.name()], |out| {
                for (name, device) in devices {
                    out.block(&["DEVICE", name], |out| out.device(device));
                }
            });
        }
    }
    for (driver, targets) in &tree.drivers {
        out.block(&["TARGET_DRIVER", driver.name()], |out| {
            for (name, target) in targets {
                out.block(&["TARGET", name], |out| out.target(target));
            }
        });
    }
    for (name, group) in &tree.device_groups {
        out.block(&["DEVICE_GROUP", name], |out| out.device_group(group));
    }
    out.text
}

struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    fn words(&mut self, words: &[&str]) {
        for _ in 0..self.depth {
            self.text.push('\t');
        }
        for (index, word) in words.iter().enumerate() {
            if index > 0 {
                self.text.push(' ');
            }
            self.word(word);
        }
    }

    fn word(&mut self, word: &str) {
        let special = |character: char| matches!(character, ' ' | '\t' | '{' | '}' | '"' | '\\');
        if !word.is_empty() && !word.starts_with('#') && !word.contains(special) {
            self.text.push_str(word);
            return;
        }
        self.text.push('"');
        for character in word.chars() {
            if matches!(character, '"' | '\\') {
                self.text.push('\\');
            }
            self.text.push(character);
        }
        self.text.push('"');
    }

    fn line(&mut self, words: &[&str]) {
        self.words(words);
        self.text.push('\n');
    }

    fn block(&mut self, words: &[&str], inside: impl FnOnce(&mut Self)) {
        self.words(words);
        let _infallible = writeln!(self.text, " {{");
        self.depth = self.depth.saturating_add(1);
        inside(self);
        self.depth = self.depth.saturating_sub(1);
        self.line_close();
    }

    fn line_close(&mut self) {
        for _ in 0..self.depth {
            self.text.push('\t');
        }
        self.text.push_str("}\n");
    }

    fn device(&mut self, device: &Device) {
        for known in DEVICE_ATTRIBUTES {
            if known.handlers.contains(&device.handler)
                && let Some(value) = (known.attribute.show)(device)
            {
                self.line(&[known.attribute.name, &value]);
            }
        }
    }

    fn target(&mut self, target: &Target) {
        if target.hardware {
            self.line(&["HW_TARGET"]);
        }
        for known in TARGET_ATTRIBUTES {
            if let Some(value) = (known.show)(target) {
                self.line(&[known.name, &value]);
            }
        }
        self.luns(&target.luns);
        for (name, group) in &target.groups {
            self.block(&["GROUP", name], |out| out.group(group));
        }
    }

    fn device_group(&mut self, group: &DeviceGroup) {
        for device in &group.devices {
            self.line(&["DEVICE", device]);
        }
        for (name, targets) in &group.target_groups {
            self.block(&["TARGET_GROUP", name], |out| out.target_group(targets));
        }
    }

    fn target_group(&mut self, group: &TargetGroup) {
        for known in TARGET_GROUP_ATTRIBUTES {
            if let Some(value) = (known.show)(group) {
                self.line(&[known.name, &value]);
            }
        }
        for (name, of_another_node) in &group.targets {
            match of_another_node {
                None => self.line(&["TARGET", name]),
                Some(port) => self.block(&["TARGET", name], |out| {
                    out.line(&["rel_tgt_id", &port.to_string()]);
                }),
            }
        }
    }

    fn group(&mut self, group: &Group) {
        self.luns(&group.luns);
        for pattern in &group.initiators {
            self.line(&["INITIATOR", pattern]);
        }
    }

    fn luns(&mut self, luns: &Luns) {
        for (number, lun) in luns {
            let words = ["LUN", &number.to_string(), &lun.device];
            if lun.read_only {
                self.block(&words, |out| out.line(&["read_only", "1"]));
            } else {
                self.line(&words);
            }
        }
    }
}
