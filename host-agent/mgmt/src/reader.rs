//! Statements to a tree: what the words of `scst.conf` mean, and every rule a configuration has to keep. All mistakes
//! are reported, the first twenty with their places; with one of them there is no tree.

mod device_groups;

use std::collections::{BTreeMap, BTreeSet};

use crate::attributes::{
    DEVICE_ATTRIBUTES, Refusal, TARGET_ATTRIBUTES, device_attribute_names, flag, number,
    target_attribute_names,
};
use crate::diagnostic::{Collector, Diagnostic, Place, Refused};
use crate::syntax::{self, Statement, TEXT_BYTES_MAX, Word};
use crate::tree::{Device, Driver, Group, Handler, LUN_MAX, Lun, Luns, NullPlace, Target, Tree};

/// Longest name of a device in bytes.
pub const DEVICE_NAME_BYTES_MAX: usize = 64;

/// Longest name of anything else in bytes: that of an iSCSI or SRP port (RFC 7143 4.2.7.1).
pub const NAME_BYTES_MAX: usize = 223;

/// Reads the bytes of a configuration file. `file` is only what messages call it. Gives the tree and the warnings, or
/// every mistake.
pub fn read(file: &str, bytes: &[u8]) -> Result<(Tree, Vec<Diagnostic>), Refused> {
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or(&[]);
            // The part before the fault is valid, so nothing is replaced in it.
            let text = String::from_utf8_lossy(valid);
            let mut mistakes = Collector::new(file, &text);
            mistakes.error(
                end_of(&text),
                "a byte that is not UTF-8 follows here",
                "save the file as UTF-8, and see that it is a text file",
            );
            return Err(Refused { errors: mistakes.errors });
        }
    };
    let mut mistakes = Collector::new(file, valid);
    if bytes.len() > TEXT_BYTES_MAX {
        mistakes.error(
            Place::START,
            format!("the file has {} bytes, and {TEXT_BYTES_MAX} is the most", bytes.len()),
            "see that it is the right file",
        );
        return Err(Refused { errors: mistakes.errors });
    }
    let statements = syntax::statements(valid, &mut mistakes);
    let mut reader =
        Reader { tree: Tree::default(), mistakes, uses: Vec::new(), device_groups: Vec::new() };
    if reader.mistakes.errors.is_empty() {
        reader.root(&statements);
        reader.check_uses();
        reader.check_device_groups();
    }
    if reader.mistakes.errors.is_empty() {
        Ok((reader.tree, reader.mistakes.warnings))
    } else {
        let mut errors = reader.mistakes.errors;
        errors.sort_by_key(|error| error.place);
        Err(Refused { errors })
    }
}

fn end_of(text: &str) -> Place {
    let last = text.rsplit('\n').next().unwrap_or("");
    let line = text.bytes().filter(|byte| *byte == b'\n').count();
    let one_based = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
    Place { line: one_based(line), column: one_based(last.chars().count()), width: 1 }
}

/// What may stand at each level, for the messages about what may not.
const ROOT_KNOWN: &str = "HANDLER, TARGET_DRIVER, DEVICE_GROUP, setup_id";

struct Reader<'a> {
    tree: Tree,
    mistakes: Collector<'a>,
    /// The device names that LUNs use: devices may follow targets in the file, so they are looked up at the end.
    uses: Vec<Word>,
    /// What is to be checked of device groups when everything that they name is known.
    device_groups: Vec<device_groups::Unchecked>,
}

impl Reader<'_> {
    fn root(&mut self, statements: &[Statement]) {
        let mut once = Once::default();
        for statement in statements {
            match statement.keyword.text.as_str() {
                "HANDLER" => self.handler(statement, &mut once),
                "TARGET_DRIVER" => self.driver(statement, &mut once),
                "DEVICE_GROUP" => self.device_group(statement),
                "setup_id" => {
                    if !self.once(&mut once, &statement.keyword, "the configuration") {
                        continue;
                    }
                    let Some(value) = self.attribute_value(statement) else { continue };
                    match number(&value.text).map(u32::try_from) {
                        Ok(Ok(id)) => self.tree.setup_id = id,
                        Ok(Err(_)) => self.mistakes.error(
                            value.place,
                            format!("setup_id {} does not fit 32 bits", value.text),
                            "use 0 to 0xffffffff",
                        ),
                        Err(refusal) => self.refuse(value.place, refusal),
                    }
                }
                other => self.mistakes.error(
                    statement.keyword.place,
                    format!("`{other}` is not known at the top of the file"),
                    format!("known here: {ROOT_KNOWN}"),
                ),
            }
        }
    }

    fn handler(&mut self, statement: &Statement, once: &mut Once) {
        let Some(name) = self.one_name(statement, "HANDLER vdisk_fileio {") else { return };
        let Some(handler) = Handler::from_name(&name.text) else {
            let known: Vec<_> = Handler::ALL.iter().map(|handler| handler.name()).collect();
            self.mistakes.error(
                name.place,
                format!("there is no handler `{}`", name.text),
                format!("known: {}", known.join(", ")),
            );
            return;
        };
        if !once.first("HANDLER", handler.name()) {
            self.twice(name, "HANDLER", "put its devices into one block");
        }
        for inner in statement.block.iter().flatten() {
            match inner.keyword.text.as_str() {
                "DEVICE" => self.device(handler, inner),
                other => self.mistakes.error(
                    inner.keyword.place,
                    format!("`{other}` is not known in HANDLER {}", handler.name()),
                    "known here: DEVICE",
                ),
            }
        }
    }

    fn device(&mut self, handler: Handler, statement: &Statement) {
        let Some(name) = self.one_name(statement, "DEVICE disk1 {") else { return };
        // The attributes of a handler's directory in the management tree.
        self.check_name(name, "device", &["mgmt", "type", "trace_level", "module", "uevent"]);
        if let Some(other) = self.tree.devices.get(&name.text) {
            let handler = other.handler.name();
            self.twice(
                name,
                "DEVICE",
                &format!("device names are unique over all handlers; the first is in {handler}"),
            );
            return;
        }
        let mut device = Device::new(handler);
        let mut places: BTreeMap<&'static str, Place> = BTreeMap::new();
        for inner in statement.block.iter().flatten() {
            self.device_attribute(&mut device, &name.text, inner, &mut places);
        }
        self.check_device(&device, name, &places);
        self.tree.devices.insert(name.text.clone(), device);
    }

    fn device_attribute(
        &mut self,
        device: &mut Device,
        device_name: &str,
        statement: &Statement,
        places: &mut BTreeMap<&'static str, Place>,
    ) {
        let keyword = &statement.keyword;
        let handler = device.handler;
        let known = DEVICE_ATTRIBUTES
            .iter()
            .find(|known| known.attribute.name == keyword.text)
            .filter(|known| known.handlers.contains(&handler));
        let Some(known) = known else {
            self.mistakes.error(
                keyword.place,
                format!(
                    "`{}` is not an attribute of {} device `{device_name}`",
                    keyword.text,
                    handler.name()
                ),
                format!("known here: {}", device_attribute_names(handler)),
            );
            return;
        };
        let Some(value) = self.attribute_value(statement) else { return };
        if places.insert(known.attribute.name, value.place).is_some() {
            self.twice(keyword, "attribute", "keep one of the two");
            return;
        }
        if let Err(refusal) = (known.attribute.store)(device, &value.text) {
            self.refuse(value.place, refusal);
        }
    }

    /// The rules that need more than one attribute.
    fn check_device(&mut self, device: &Device, name: &Word, places: &BTreeMap<&str, Place>) {
        let place = |attribute: &str| places.get(attribute).copied().unwrap_or(name.place);
        let needs_file = device.handler.has_file() && device.handler != Handler::Cdrom;
        if needs_file && !places.contains_key("filename") {
            self.mistakes.error(
                name.place,
                format!("{} device `{}` has no filename", device.handler.name(), name.text),
                "add `filename /absolute/path` to its block",
            );
        }
        for (set, attribute) in
            [(device.write_through, "write_through"), (device.nv_cache, "nv_cache")]
        {
            if device.read_only && set {
                self.mistakes.error(
                    place(attribute),
                    format!("{attribute} says how writes behave, and `{}` is read_only", name.text),
                    format!("remove {attribute} or read_only"),
                );
            }
        }
        if device.dummy && (device.removable || device.null_place == NullPlace::Host) {
            self.mistakes.error(
                place("dummy"),
                format!("dummy 1: `{}` is no device, on the host or removable", name.text),
                "remove dummy, or lunar_backend and removable",
            );
        }
        if device.read_zero && !device.on_host() {
            self.mistakes.error(
                place("read_zero"),
                format!("read_zero 1: `{}` is on the card, whose reads give anything", name.text),
                "add `lunar_backend host`, or remove read_zero",
            );
        }
        if places.contains_key("size") && places.contains_key("size_mb") {
            self.mistakes.error(
                place("size_mb"),
                "size and size_mb both give the capacity",
                "keep one of the two",
            );
        }
        let block_bytes = u64::from(device.block_bytes);
        if let Some(bytes) = device.size_bytes
            && bytes.checked_rem(block_bytes) != Some(0)
        {
            self.mistakes.error(
                place("size"),
                format!("the capacity of {bytes} bytes is no multiple of blocksize {block_bytes}"),
                "round it to whole blocks",
            );
        }
        if let Some(bytes) = device.optimal_transfer_bytes
            && u64::from(bytes).checked_rem(block_bytes) != Some(0)
        {
            self.mistakes.error(
                place("opt_trans_len"),
                format!("opt_trans_len {bytes} is no multiple of blocksize {block_bytes}"),
                "round it to whole blocks",
            );
        }
    }

    fn driver(&mut self, statement: &Statement, once: &mut Once) {
        let Some(name) = self.one_name(statement, "TARGET_DRIVER ib_srpt {") else { return };
        let Some(driver) = Driver::from_name(&name.text) else {
            let known: Vec<_> = Driver::ALL.iter().map(|driver| driver.name()).collect();
            self.mistakes.error(
                name.place,
                format!("there is no target driver `{}`", name.text),
                format!("known: {}; remove the block of one you do not need", known.join(", ")),
            );
            return;
        };
        if !once.first("TARGET_DRIVER", driver.name()) {
            self.twice(name, "TARGET_DRIVER", "put its targets into one block");
        }
        let mut targets = BTreeMap::new();
        let mut port_ids: BTreeMap<u16, String> = BTreeMap::new();
        for inner in statement.block.iter().flatten() {
            match inner.keyword.text.as_str() {
                "TARGET" => self.target(inner, &mut targets, &mut port_ids),
                other => self.mistakes.error(
                    inner.keyword.place,
                    format!("`{other}` is not known in TARGET_DRIVER {}", driver.name()),
                    "known here: TARGET",
                ),
            }
        }
        self.tree.drivers.insert(driver, targets);
    }

    fn target(
        &mut self,
        statement: &Statement,
        targets: &mut BTreeMap<String, Target>,
        port_ids: &mut BTreeMap<u16, String>,
    ) {
        let Some(name) = self.one_name(statement, "TARGET fe80:...:f34b {") else { return };
        // The attributes of a target driver's directory in the management tree.
        let reserved =
            ["mgmt", "module", "uevent", "trace_level", "version", "enabled", "dif_capabilities"];
        self.check_name(name, "target", &reserved);
        if targets.contains_key(&name.text) {
            self.twice(name, "TARGET", "put its LUNs and groups into one block");
            return;
        }
        let mut target = Target::default();
        let mut once = Once::default();
        let mut group_of: BTreeMap<String, String> = BTreeMap::new();
        for inner in statement.block.iter().flatten() {
            match inner.keyword.text.as_str() {
                "LUN" => self.lun(inner, &mut target.luns),
                "GROUP" => self.group(inner, &mut target.groups, &mut group_of),
                "HW_TARGET" => {
                    self.no_values(inner);
                    target.hardware = true;
                }
                _ => self.target_attribute(&mut target, &name.text, inner, &mut once, port_ids),
            }
        }
        let lists = target.groups.values().filter(|group| !group.luns.is_empty()).count();
        if lists == 0 || !target.luns.is_empty() {
            self.warn_without_lun_0(&target.luns, name, "target");
        }
        targets.insert(name.text.clone(), target);
    }

    fn target_attribute(
        &mut self,
        target: &mut Target,
        target_name: &str,
        statement: &Statement,
        once: &mut Once,
        port_ids: &mut BTreeMap<u16, String>,
    ) {
        let keyword = &statement.keyword;
        let Some(known) = TARGET_ATTRIBUTES.iter().find(|known| known.name == keyword.text) else {
            self.mistakes.error(
                keyword.place,
                format!("`{}` is not known in target `{target_name}`", keyword.text),
                format!("known here: LUN, GROUP, HW_TARGET, {}", target_attribute_names()),
            );
            return;
        };
        let Some(value) = self.attribute_value(statement) else { return };
        if !self.once(once, keyword, &format!("target `{target_name}`")) {
            return;
        }
        if let Err(refusal) = (known.store)(target, &value.text) {
            self.refuse(value.place, refusal);
        }
        if known.name == "rel_tgt_id"
            && let Some(id) = target.relative_target_port
            && let Some(other) = port_ids.insert(id, target_name.to_owned())
        {
            self.mistakes.error(
                value.place,
                format!("rel_tgt_id {id} is already that of target `{other}`"),
                "give each target its own, or leave it out for the smallest free one",
            );
        }
    }

    fn group(
        &mut self,
        statement: &Statement,
        groups: &mut BTreeMap<String, Group>,
        group_of: &mut BTreeMap<String, String>,
    ) {
        let Some(name) = self.one_name(statement, "GROUP hosts {") else { return };
        self.check_name(name, "group", &["mgmt"]);
        if groups.contains_key(&name.text) {
            self.twice(name, "GROUP", "put its LUNs and initiators into one block");
            return;
        }
        let mut group = Group::default();
        for inner in statement.block.iter().flatten() {
            match inner.keyword.text.as_str() {
                "LUN" => self.lun(inner, &mut group.luns),
                "INITIATOR" => {
                    let Some(pattern) = self.one_name(inner, "INITIATOR fe80:*") else { continue };
                    if inner.block.is_some() {
                        self.mistakes.error(
                            inner.keyword.place,
                            "INITIATOR has a block, and an initiator has no attributes",
                            "write `INITIATOR PATTERN` alone on its line",
                        );
                    }
                    self.check_name(pattern, "initiator", &["mgmt"]);
                    if let Some(other) = group_of.insert(pattern.text.clone(), name.text.clone()) {
                        self.mistakes.error(
                            pattern.place,
                            format!("initiator `{}` is already in group `{other}`", pattern.text),
                            "an initiator is in one group of a target: remove it from the other",
                        );
                        continue;
                    }
                    group.initiators.push(pattern.text.clone());
                }
                other => self.mistakes.error(
                    inner.keyword.place,
                    format!("`{other}` is not known in group `{}`", name.text),
                    "known here: LUN, INITIATOR",
                ),
            }
        }
        self.warn_without_lun_0(&group.luns, name, "group");
        groups.insert(name.text.clone(), group);
    }

    fn lun(&mut self, statement: &Statement, luns: &mut Luns) {
        let [number_word, device] = statement.values.as_slice() else {
            self.mistakes.error(
                statement.keyword.place,
                format!("LUN takes a number and a device, not {} words", statement.values.len()),
                "write for example `LUN 0 disk1`",
            );
            return;
        };
        let number = match number(&number_word.text) {
            Ok(number) => number,
            Err(refusal) => return self.refuse(number_word.place, refusal),
        };
        let Some(number) = u16::try_from(number).ok().filter(|number| *number <= LUN_MAX) else {
            self.mistakes.error(
                number_word.place,
                format!(
                    "LUN {number} is greater than {LUN_MAX}, the greatest there is (SAM-6 4.7)"
                ),
                format!("use 0 to {LUN_MAX}"),
            );
            return;
        };
        let mut lun = Lun { device: device.text.clone(), read_only: false };
        for inner in statement.block.iter().flatten() {
            if inner.keyword.text != "read_only" {
                self.mistakes.error(
                    inner.keyword.place,
                    format!("`{}` is not an attribute of a LUN", inner.keyword.text),
                    "known here: read_only",
                );
                continue;
            }
            let Some(value) = self.attribute_value(inner) else { continue };
            match flag(&value.text) {
                Ok(read_only) => lun.read_only = read_only,
                Err(refusal) => self.refuse(value.place, refusal),
            }
        }
        if let Some(other) = luns.get(&number) {
            self.mistakes.error(
                number_word.place,
                format!("LUN {number} is already device `{}`", other.device),
                "use another number",
            );
            return;
        }
        self.uses.push(device.clone());
        luns.insert(number, lun);
    }

    fn check_uses(&mut self) {
        for device in std::mem::take(&mut self.uses) {
            if !self.tree.devices.contains_key(&device.text) {
                let known: Vec<_> = self.tree.devices.keys().take(10).map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                self.mistakes.error(
                    device.place,
                    format!("there is no device `{}`", device.text),
                    format!("add it to the block of its handler; devices there are: {known}"),
                );
            }
        }
    }

    fn warn_without_lun_0(&mut self, luns: &Luns, name: &Word, what: &str) {
        if !luns.contains_key(&0) {
            self.mistakes.warning(
                name.place,
                format!(
                    "{what} `{}` has no LUN 0, and most initiators look for others through it",
                    name.text
                ),
                "give one of its devices the number 0",
            );
        }
    }

    fn check_name(&mut self, name: &Word, what: &str, reserved: &[&str]) {
        let text = name.text.as_str();
        let bytes_max = if what == "device" { DEVICE_NAME_BYTES_MAX } else { NAME_BYTES_MAX };
        let reason = if text.is_empty() {
            format!("the {what}'s name is empty")
        } else if text.len() > bytes_max {
            format!("the {what}'s name has {} bytes, and {bytes_max} is the most", text.len())
        } else if text.contains('/') {
            format!("{what} name `{text}` contains `/`")
        } else if text.contains('\t') {
            format!("{what} name `{text}` contains a tab")
        } else if matches!(text, "." | "..") || reserved.contains(&text) {
            format!(
                "{what} name `{text}` is reserved: the management tree has an entry of that name"
            )
        } else {
            return;
        };
        self.mistakes.error(name.place, reason, "choose another name");
    }

    /// The one word after a keyword that names a thing.
    fn one_name<'s>(&mut self, statement: &'s Statement, example: &str) -> Option<&'s Word> {
        if let [name] = statement.values.as_slice() {
            return Some(name);
        }
        let count = statement.values.len();
        self.mistakes.error(
            statement.keyword.place,
            format!("{} takes one name, not {count} words", statement.keyword.text),
            format!("write for example `{example}`; quote a name with blanks"),
        );
        None
    }

    /// The one value of an attribute, which has no block.
    fn attribute_value<'s>(&mut self, statement: &'s Statement) -> Option<&'s Word> {
        let name = &statement.keyword.text;
        if statement.block.is_some() {
            self.mistakes.error(
                statement.keyword.place,
                format!("attribute `{name}` has a block"),
                format!("write `{name} VALUE` on a line of its own"),
            );
            return None;
        }
        if let [value] = statement.values.as_slice() {
            return Some(value);
        }
        self.mistakes.error(
            statement.keyword.place,
            format!("attribute `{name}` takes one value, not {}", statement.values.len()),
            format!("write `{name} VALUE`; quote a value with blanks"),
        );
        None
    }

    fn no_values(&mut self, statement: &Statement) {
        if !statement.values.is_empty() || statement.block.is_some() {
            self.mistakes.error(
                statement.keyword.place,
                format!("{} takes no value and no block", statement.keyword.text),
                format!("write `{}` alone on its line", statement.keyword.text),
            );
        }
    }

    fn once(&mut self, once: &mut Once, keyword: &Word, owner: &str) -> bool {
        let first = once.first("", &keyword.text);
        if !first {
            self.mistakes.error(
                keyword.place,
                format!("`{}` is given twice in {owner}", keyword.text),
                "keep one of the two",
            );
        }
        first
    }

    fn twice(&mut self, name: &Word, what: &str, way_out: &str) {
        self.mistakes.error(
            name.place,
            format!("{what} `{}` is given twice", name.text),
            way_out.to_owned(),
        );
    }

    fn refuse(&mut self, place: Place, refusal: Refusal) {
        self.mistakes.error(place, refusal.reason, refusal.way_out);
    }
}

/// What has been seen on one level.
#[derive(Default)]
struct Once(BTreeSet<(String, String)>);

impl Once {
    fn first(&mut self, kind: &str, name: &str) -> bool {
        self.0.insert((kind.to_owned(), name.to_owned()))
    }
}
