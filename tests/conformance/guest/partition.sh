# The real VSCSI client, ibmvscsi, of a partition with one adapter.

# ask WHAT: has it done outside of the guest.
ask() {
	report ASK "$*"
}

# client_loaded [OPTION=VALUE...]: loads the client with these options.
client_loaded() {
	check "sd and sg load" modprobe -a sd_mod sg
	check "ibmvscsi loads with ${*:-its defaults}" modprobe ibmvscsi "$@"
}

client_unloaded() {
	check "ibmvscsi unloads" rmmod ibmvscsi
	check_not "its host is gone" ls /sys/class/scsi_host/host*
}

host_of_client() {
	for entry in /sys/class/scsi_host/host*; do
		[ "$(cat "$entry/proc_name" 2>/dev/null)" = ibmvscsi ] && echo "${entry##*host}"
	done
}

# block_of LUN, generic_of LUN: the devices of a unit of target 0 on channel 0.
block_of() {
	ls "/sys/class/scsi_device/$(host_of_client):0:0:$1/device/block" 2>/dev/null
}

generic_of() {
	ls "/sys/class/scsi_device/$(host_of_client):0:0:$1/device/scsi_generic" 2>/dev/null
}

has_disk() {
	[ -n "$(block_of "$1")" ]
}

# disk [LUN]: waits for the disk; then $disk and $generic are its devices.
disk() {
	wait_for 120 "LUN ${1:-0} is a disk" has_disk "${1:-0}"
	disk=/dev/$(block_of "${1:-0}")
	generic=/dev/$(generic_of "${1:-0}")
}

# transfer if|of BLOCKS COUNT: COUNT commands of BLOCKS blocks each, past the page cache.
transfer() {
	case $1 in
	if) sg_dd if="$disk" of=/dev/null iflag=direct bs=512 bpt="$2" count=$(($2 * $3)) ;;
	of) sg_dd if=/dev/zero of="$disk" oflag=direct bs=512 bpt="$2" count=$(($2 * $3)) ;;
	esac >/run/said 2>&1 || {
		cat /run/said
		return 1
	}
}

# transfers NAME: reads and writes of 4 KiB to 1 MiB.
transfers() {
	for blocks in 8 128 2048; do
		check "$1: reads of $((blocks / 2)) KiB" transfer if $blocks 4
		check "$1: writes of $((blocks / 2)) KiB" transfer of $blocks 4
	done
}

# reads_and_kernel_says PATTERN: for what is asked for outside, and happens to some read soon.
reads_and_kernel_says() {
	transfer if 8 1 && kernel_says "$1"
}

# kernel_says PATTERN: in what it logged since the last kernel_is_heard.
kernel_is_heard() {
	dmesg_lines=$(dmesg | wc -l)
}

kernel_says() {
	dmesg | tail -n +$((dmesg_lines + 1)) | grep -E "$1"
}
kernel_is_heard
