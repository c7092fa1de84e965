//! The configuration of a run: the example's, with the run's image in it, or the user's.

use std::path::Path;

use anyhow::Context as _;
use lunar_mgmt::Tree;
use lunar_mgmt::tree::{Device, Driver, Handler, Placement, Target, srp_port_id};
use lunar_offload_proto::access;

/// The example that ships.
pub const EXAMPLE: &str = include_str!("../../../docs/examples/scst.conf");

/// A LUN as the initiator of a run sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number.
    pub lun: u16,
    /// The device's name.
    pub device: String,
    /// Its handler's name.
    pub handler: &'static str,
    /// Its commands cross to the host.
    pub on_host: bool,
    /// Which memory its data goes through.
    pub placement: &'static str,
    /// The file behind it.
    pub file: Option<String>,
    /// Writes are refused.
    pub read_only: bool,
}

/// The configuration of a run.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// It.
    pub tree: Tree,
    /// Port identifier of the target to log in to.
    pub target_port: [u8; 16],
    /// The target's name.
    pub target: String,
    /// What the initiator sees there, by number.
    pub luns: Vec<Seen>,
}

impl Configuration {
    /// The example's configuration with `image` as `disk1`; with `copied`, the data of the devices on
    /// the host lies in the card's memory and is copied by DMA.
    ///
    /// # Errors
    /// When the example is not what this expects.
    pub fn from_example(
        image: &Path,
        read_only: bool,
        copied: bool,
        initiator: &str,
    ) -> anyhow::Result<Self> {
        let (mut tree, _) = lunar_mgmt::read("docs/examples/scst.conf", EXAMPLE.as_bytes())?;
        let file = image.to_str().context("the image's path is not UTF-8")?;
        let disk = tree.devices.get_mut("disk1").context("the example has no device disk1")?;
        disk.filename = Some(file.to_owned());
        disk.read_only = read_only;
        for device in tree.devices.values_mut().filter(|device| copied && device.on_host()) {
            device.placement_override = Some(Placement::CardDram);
        }
        Self::of(tree, initiator)
    }

    /// The user's configuration at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is refused, or gives the initiator nothing to log in to.
    pub fn from_file(path: &Path, initiator: &str) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("--config {shown}"))?;
        let (tree, warnings) = lunar_mgmt::read(&shown, &bytes)?;
        for warning in warnings {
            eprintln!("{warning}");
        }
        Self::of(tree, initiator)
    }

    fn of(tree: Tree, initiator: &str) -> anyhow::Result<Self> {
        let targets = tree.drivers.get(&Driver::IbSrpt);
        let found = targets.into_iter().flatten().find_map(|(name, target)| {
            let luns = if target.enabled { seen(&tree, target, initiator) } else { Vec::new() };
            (!luns.is_empty()).then(|| (name.clone(), luns))
        });
        let (target, luns) = found.with_context(|| {
            format!("no enabled ib_srpt target of the configuration has a LUN for {initiator}")
        })?;
        Ok(Self { target_port: srp_port_id(&target), tree, target, luns })
    }

    /// The text of the configuration, as the agent reads it.
    #[must_use]
    pub fn text(&self) -> String {
        lunar_mgmt::write(&self.tree)
    }
}

/// What `initiator` sees on `target`.
fn seen(tree: &Tree, target: &Target, initiator: &str) -> Vec<Seen> {
    let group = target
        .groups
        .values()
        .find(|group| group.initiators.iter().any(|pattern| access::matches(pattern, initiator)));
    let luns = group.map_or(&target.luns, |group| &group.luns);
    luns.iter()
        .filter_map(|(number, lun)| {
            let device = tree.devices.get(&lun.device)?;
            Some(Seen {
                lun: *number,
                device: lun.device.clone(),
                handler: device.handler.name(),
                on_host: device.on_host(),
                placement: placement(device),
                file: device.filename.clone().filter(|_| device.handler == Handler::FileIo),
                read_only: lun.read_only || device.read_only,
            })
        })
        .collect()
}

fn placement(device: &Device) -> &'static str {
    match device.placement() {
        Placement::HostDram => "host_dram",
        Placement::CardDram => "card_dram",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: &str = "fe80:0000:0000:0000:0002:c903:00aa:0001";

    #[test]
    fn the_example_gives_every_backend_in_both_placements() {
        for (copied, host) in [(false, "host_dram"), (true, "card_dram")] {
            let image = Path::new("/tmp/my image.img");
            let made = Configuration::from_example(image, false, copied, STRANGER).unwrap();
            let luns: Vec<_> = made
                .luns
                .iter()
                .map(|lun| (lun.lun, lun.handler, lun.on_host, lun.placement, lun.file.is_some()))
                .collect();
            assert_eq!(
                luns,
                [
                    (0, "vdisk_fileio", true, host, true),
                    (1, "vdisk_nullio", false, "card_dram", false),
                    (2, "vdisk_nullio", true, host, false),
                ]
            );
            let (tree, _) = lunar_mgmt::read("written", made.text().as_bytes()).unwrap();
            assert_eq!(tree, made.tree);
        }
    }

    #[test]
    fn an_initiator_of_a_group_sees_the_groups_luns() {
        let member = "fe80:0000:0000:0000:0002:c903:00ff:0001";
        let made =
            Configuration::from_example(Path::new("/tmp/image"), false, false, member).unwrap();
        assert_eq!(made.luns.len(), 1);
        assert!(made.luns[0].read_only);
    }

    #[test]
    fn a_configuration_without_a_target_for_the_initiator_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scst.conf");
        std::fs::write(&path, "TARGET_DRIVER ib_srpt {\n\tTARGET a {\n\t\tenabled 1\n\t}\n}\n")
            .unwrap();
        let refused = Configuration::from_file(&path, STRANGER).unwrap_err();
        assert!(refused.to_string().contains(STRANGER), "{refused}");
    }
}
