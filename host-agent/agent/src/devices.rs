//! Opens the devices of the management tree with their handlers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use lunar_handlers::{BlockDevice, vdisk_blockio, vdisk_cdrom, vdisk_fileio, vdisk_nullio};
use lunar_mgmt::snapshot::Medium;
use lunar_mgmt::tree::{Device, Handler, Tree};
use tracing::warn;

/// One open device.
pub(crate) type Open = Box<dyn BlockDevice>;

/// Opens every device that is executed on the host, by name. The first that cannot be opened ends it: what is
/// configured is served as a whole or not at all.
pub(crate) fn open_all(tree: &Tree) -> anyhow::Result<BTreeMap<String, Open>> {
    tree.devices
        .iter()
        .filter(|(_, device)| device.on_host())
        .map(|(name, device)| {
            let (opened, warnings) = open(name, device)?;
            for warning in warnings {
                warn!(device = name, "{warning}");
            }
            Ok((name.clone(), opened))
        })
        .collect()
}

/// What the handlers found.
pub(crate) fn media(tree: &Tree, devices: &BTreeMap<String, Open>) -> BTreeMap<String, Medium> {
    let medium = |name: &String, device: &Open| {
        let found = device.geometry();
        Medium {
            block_bytes: found.block_bytes,
            blocks: found.blocks,
            id: tree.devices.get(name).map_or(0, medium_id),
            read_only: found.read_only,
            write_cache: found.write_cache,
            fua: found.fua,
        }
    };
    devices.iter().map(|(name, device)| (name.clone(), medium(name, device))).collect()
}

/// The number of the medium in a CD/DVD drive: made from what tells one file from another, so that it is
/// the same after a restart of the agent. Zero without a disc, and for all other devices.
pub(crate) fn medium_id(device: &Device) -> u32 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    use std::os::unix::fs::MetadataExt as _;
    let filename = device.filename.as_ref().filter(|_| device.handler == Handler::Cdrom);
    let Some(found) = filename.and_then(|filename| std::fs::metadata(filename).ok()) else {
        return 0;
    };
    let mut hasher = DefaultHasher::new();
    let identity = (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec());
    identity.hash(&mut hasher);
    (hasher.finish() as u32).max(1)
}

/// Opens one device; gives what is odd about it, too.
pub(crate) fn open(name: &str, device: &Device) -> anyhow::Result<(Open, Vec<String>)> {
    // The reader of the configuration refuses a device with a file but without a filename.
    let filename =
        || device.filename.as_deref().with_context(|| format!("device {name}: no filename"));
    Ok(match device.handler {
        Handler::FileIo => {
            let parameters = vdisk_fileio::Parameters {
                block_bytes: device.block_bytes,
                read_only: device.read_only,
                write_through: device.write_through,
                nv_cache: device.nv_cache,
                o_direct: device.o_direct,
                rotational: device.rotational,
                thin_provisioned: device.thin_provisioned,
                ..vdisk_fileio::Parameters::new(filename()?)
            };
            let opened = vdisk_fileio::open(name, &parameters)?;
            (Box::new(opened.device), opened.warnings)
        }
        Handler::BlockIo => {
            let parameters = vdisk_blockio::Parameters {
                block_bytes: device.block_bytes,
                size_bytes: device.size_bytes,
                read_only: device.read_only,
                write_through: device.write_through,
                nv_cache: device.nv_cache,
                rotational: device.rotational,
                thin_provisioned: device.thin_provisioned,
                ..vdisk_blockio::Parameters::new(filename()?)
            };
            let opened = vdisk_blockio::open(name, &parameters)?;
            (Box::new(opened.device), opened.warnings)
        }
        Handler::Cdrom => {
            let filename = device.filename.as_deref().map(Path::new);
            let opened = vdisk_cdrom::open(name, filename)?;
            (opened.device, opened.warnings)
        }
        Handler::NullIo => {
            let parameters = vdisk_nullio::Parameters {
                block_bytes: device.block_bytes,
                size_bytes: device.nullio_blocks().saturating_mul(u64::from(device.block_bytes)),
                read_only: device.read_only,
                rotational: device.rotational,
                read_zero: device.read_zero,
            };
            (Box::new(vdisk_nullio::open(name, &parameters)?), Vec::new())
        }
    })
}
