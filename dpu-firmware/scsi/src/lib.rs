//! lunar-scsi
