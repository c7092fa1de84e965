# Linux's SRP initiator, ib_srp, over RDMA/CM. The target under test says where it listens.

srp=/sys/class/infiniband_srp/srp-rxe0-1

srp_hosts() {
	for entry in /sys/class/scsi_host/host*; do
		[ "$(cat "$entry/proc_name" 2>/dev/null)" = ib_srp ] && echo "${entry##*host}"
	done | sort -n
}

# try_login [OPTION,...]: succeeds when the target took the login; then $host is the SCSI host.
try_login() {
	modprobe -a ib_srp sd_mod sg || fail "ib_srp does not load"
	# Never empty: a pattern file without patterns matches everything in busybox.
	(echo none && srp_hosts) >/run/hosts.before
	logging_in=0
	until echo "id_ext=$id_ext,ioc_guid=$ioc_guid,dest=$service${1:+,$1}" 2>/run/login >$srp/add_target; do
		# ib_srp forgets a session a moment after its host is gone.
		grep -q 'File exists' /run/login && [ $logging_in -lt 50 ] || return 1
		logging_in=$((logging_in + 1))
		usleep 100000
	done
	host=$(srp_hosts | grep -v -x -F -f /run/hosts.before | head -n 1)
	[ -n "$host" ]
}

# login [OPTION,...]: logs in with Linux's defaults and these options.
login() {
	check "ib_srp logs in with ${1:-its defaults}" try_login "$1"
}

# logout [HOST]
logout() {
	gone=${1:-$host}
	for remote in /sys/class/srp_remote_ports/port-$gone:*; do
		echo 1 >"$remote/delete" || fail "host $gone cannot be logged out"
	done
	wait_for 30 "the session of host $gone is gone" host_is_gone "$gone"
}

host_is_gone() {
	[ ! -e "/sys/class/scsi_host/host$1" ]
}

# The letters behind H:0:0:LUN do not follow the order of the LUNs: disks are found by address.
disk_of() {
	ls "/sys/class/scsi_device/$1:0:0:$2/device/block" 2>/dev/null
}

generic_of() {
	ls "/sys/class/scsi_device/$1:0:0:$2/device/scsi_generic" 2>/dev/null
}

has_disk() {
	[ -n "$(disk_of "$1" "$2")" ]
}

# disk [HOST [LUN]]: waits for the disk; then $disk and $generic are its devices.
disk() {
	wait_for 30 "LUN ${2:-0} of host ${1:-$host} is a disk" has_disk "${1:-$host}" "${2:-0}"
	disk=/dev/$(disk_of "${1:-$host}" "${2:-0}")
	generic=/dev/$(generic_of "${1:-$host}" "${2:-0}")
}

# ends WITH WHAT COMMAND...: sg3-utils has an exit code for each kind of sense.
ends() {
	with=$1 what=$2
	shift 2
	"$@" >/run/said 2>&1
	ended=$?
	[ $ended = "$with" ] || {
		cat /run/said
		fail "$what: \`$*\` ended with $ended, not $with"
	}
	report CHECK "$what"
}

# pieces NAME: transfers from and to buffers in pieces of several sizes with gaps between them, and from pages.
pieces() {
	for size in 512 1024 4096; do
		check "pieces of $size bytes" discontiguous-io "$disk" $size 120
	done
	verified "$1" --filename="$disk" --rw=randwrite --bs=512k --size=8m --iodepth=4
}

# file_system: makes one on $disk and mounts it at /mnt.
file_system() {
	check "mkfs.ext4" mkfs.ext4 -q -F "$disk"
	check "mount" mount -t ext4 "$disk" /mnt
}

# file_system_is_clean: unmounts it and looks at all of it.
file_system_is_clean() {
	check "unmount" umount /mnt
	check "fsck finds nothing" e2fsck -f -n "$disk"
}

# verified NAME OPTIONS...: writes with fio and reads back what it wrote, with a checksum in every block.
verified() {
	job=$1
	shift
	check "fio $job reads what it wrote" fio --name="$job" --eta=never --thread --ioengine=libaio --direct=1 \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse --output=/run/fio "$@"
}

# load SECONDS [OPTIONS...]: writes and verifies in the background until load_is_over.
load() {
	seconds=$1
	shift
	fio --name=load --eta=never --thread --filename=/mnt/load --size=16m --rw=randwrite --bs=4k \
		--iodepth=16 --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 \
		--time_based --runtime="$seconds" --output=/run/load "$@" &
	load=$!
	sleep 3
	check "there is load" kill -0 $load
}

# load_in_turns: writes and verifies in the background, turn by turn, until load_is_enough.
load_in_turns() {
	rm -f /run/enough
	until [ -e /run/enough ]; do
		fio --name=load --eta=never --thread --filename=/mnt/load --size=4m --rw=randwrite --bs=4k \
			--iodepth=16 --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 \
			--output=/run/load || exit 1
	done &
	load=$!
	sleep 2
	check "there is load" kill -0 $load
}

load_is_enough() {
	touch /run/enough
	load_is_over
}

# still_loaded: what was done was done under load.
still_loaded() {
	check "the load is still there" kill -0 $load
}

# load_is_over: no error may have reached the file system, and what was written has to be there.
load_is_over() {
	wait $load || {
		cat /run/load
		fail "fio met an error, or did not read what it had written"
	}
	report CHECK "no error reached fio, and what was written can be read"
	check_not "the kernel saw no I/O error" kernel_says "$io_error|EXT4-fs error|EXT4-fs warning"
}

# What the kernel says of an I/O error that counts.
io_error='I/O error'

# kernel_says PATTERN: in what it logged since the scenario began.
kernel_says() {
	dmesg | tail -n +$((dmesg_lines + 1)) | grep -E "$1"
}
dmesg_lines=$(dmesg | wc -l)

# table PATH...: the multipath device over these paths from now on.
table() {
	modprobe -a dm_multipath dm_round_robin || fail "dm-multipath does not load"
	size=$(blockdev --getsz "$disk")
	line="0 $size multipath 1 queue_if_no_path 0 1 1 round-robin 0 $# 1"
	for each in "$@"; do
		line="$line $each 1"
	done
	if dmsetup info many >/dev/null 2>&1; then
		dmsetup --noudevsync reload many --table "$line" || fail "the paths cannot be changed"
		# What is on its way ends first; what fails on the way waits in the new table.
		dmsetup --noudevsync suspend --noflush many && dmsetup --noudevsync resume many ||
			fail "the paths cannot be changed"
	else
		dmsetup --noudevsync create many --table "$line" || fail "there is no multipath device"
		dmsetup mknodes
	fi
}

# What the RDMA device has of what $target_leaves names, as a line of counts.
resources() {
	rdma resource show rxe0 | tr ' ' '\n' | {
		while read -r word; do
			case " $target_leaves " in *" $word "*) read -r count && echo -n "$word $count " ;; esac
		done
	}
}

# same_resources BEFORE: in the end the device has what it had, and nothing more.
same_resources() {
	wait_for 20 "the RDMA device has what it had: $1" has_resources "$1"
}

has_resources() {
	[ "$(resources)" = "$1" ]
}

# same_memory BEFORE: the target, where it can tell, has not grown beyond what it may keep to tell of the
# past: Lunar's agent takes 2 MiB for that within 200 logins, and no more within 500.
same_memory() {
	[ -n "$1" ] || return 0
	grown=$(($(target_memory) - $1))
	measure target_memory_growth $grown KiB
	check "the target's memory has not grown by 4 MiB" [ $grown -lt 4096 ]
}
