# The real VSCSI client, ibmvscsi, of a partition.

adapter=71000010

# ask WHAT: has it done outside of the guest.
ask() {
	report ASK "$*"
}

client_loaded() {
	check "ibmvscsi loads" modprobe -a ibmvscsi sd_mod sg
}

disk_of() {
	ls "/sys/class/scsi_device/$1/device/block" 2>/dev/null
}

has_disk() {
	[ -n "$(disk_of "$1")" ]
}

# disk: waits for unit 0 of the only host; then $address is where it is, $disk and $generic are its devices.
disk() {
	wait_for 60 "the client finds a disk" eval 'host=$(ls /sys/class/scsi_host) && has_disk "${host#host}:0:0:0"'
	address=${host#host}:0:0:0
	disk=/dev/$(disk_of $address)
	generic=/dev/$(ls /sys/class/scsi_device/$address/device/scsi_generic)
}

inquiry_says() {
	sg_inq "$1" >/run/said 2>&1
	cat /run/said
	grep -q "$2" /run/said || sg_inq "$1" | tr -s ' ' | grep -q "$2"
}
