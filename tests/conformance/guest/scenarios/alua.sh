#: access states swap under load, implicit and explicit: dm-multipath and scsi_dh_alua follow, no error
#: targets lunar
#: limit 400
# Two targets of one card export the same disk, each in a target group of its own. What multipathd does with
# `prio alua` and `path_grouping_policy group_by_prio` is done here: a path that works again is reinstated, and the
# group with the best state is switched to.
. /guest/initiator.sh

# A path that a state closes fails; what is on the multipath device must not.
io_error='I/O error, dev dm-'
a=/run/alua
first_name=$target_name first_guid=$ioc_guid
other_name=${target_name%:*}:face
other_guid=$(echo "${other_name#fe80:0000:0000:0000:}" | tr -d :)

mkdir -p $a
modprobe scsi_dh_alua || fail "scsi_dh_alua does not load"
device_groups="DEVICE_GROUP disks {
	DEVICE disk0
	TARGET_GROUP near {
		group_id 1
		preferred 1
		TARGET $first_name
	}
	TARGET_GROUP far {
		group_id 2
		state standby
		TARGET $other_name
	}
	TARGET_GROUP other_node {
		group_id 257
		state unavailable
		TARGET another {
			rel_tgt_id 7
		}
	}
}"
other_targets=$other_name

# path GUID: logs in to that target, and makes $path, $name and $generic its disk.
path() {
	id_ext=$1 ioc_guid=$1
	login
	disk
	name=${disk#/dev/}
	path=$(cat "/sys/block/$name/dev")
}

# paths: both are there, the device over them in two groups, and $disk is it.
paths() {
	path "$first_guid"
	near_host=$host near=$path near_name=$name near_generic=$generic
	path "$other_guid"
	far_host=$host far=$path far_name=$name far_generic=$generic
	modprobe -a dm_multipath dm_round_robin || fail "dm-multipath does not load"
	size=$(blockdev --getsz "/dev/$near_name")
	line="0 $size multipath 1 queue_if_no_path 1 alua 2 1 round-robin 0 1 1 $near 1 round-robin 0 1 1 $far 1"
	dmsetup --noudevsync create many --table "$line" || fail "there is no multipath device"
	dmsetup mknodes
	disk=/dev/mapper/many
}

no_paths() {
	check "the multipath device goes" dmsetup --noudevsync remove many
	logout "$near_host"
	logout "$far_host"
}

state_of() {
	cat "/sys/block/$1/device/access_state"
}

# What multipathd's path checker asks; so the kernel hears of a unit attention where there is no load.
both_asked() {
	sg_turs "$near_generic" >/dev/null 2>&1
	sg_turs "$far_generic" >/dev/null 2>&1
}

are_in() {
	both_asked
	[ "$(state_of "$near_name")" = "$1" ] && [ "$(state_of "$far_name")" = "$2" ]
}

# kernel_sees NEAR FAR: scsi_dh_alua's states, as its priorities are made of them.
kernel_sees() {
	wait_for 20 "the kernel sees near $1, far $2" are_in "$1" "$2"
}

# used GROUP: what multipathd does when the priorities changed.
used() {
	for each in "$near" "$far"; do
		dmsetup message many 0 reinstate_path "$each" || fail "path $each cannot be reinstated"
	done
	dmsetup message many 0 switch_group "$1" || fail "group $1 cannot be switched to"
}

# set_to GROUP STATE [OPTION...]: by the management.
set_to() {
	check "lunar alua set disks $*" target_alua set disks "$@" >/dev/null
}

# written PATH: sectors that went through it.
written() {
	awk '{ print $7 }' "/sys/block/$1/stat"
}

goes_through() {
	[ "$(written "$1")" -gt $(($2 + 64)) ]
}

# load_through NAME: from now on it is this path that is written through.
load_through() {
	wait_for 20 "the load goes through $1" goes_through "$1" "$(written "$1")"
}

# rtpg GENERIC: one line a group: id, preferred, state, status code.
rtpg() {
	sg_rtpg --decode "$1" | awk '
		/target port group id/ { id = $6; pref = $0; sub(/.*Pref=/, "", pref); pref = substr(pref, 1, 1) }
		/asymmetric access state/ { state = $8 }
		/status code/ && !/vendor/ { print id, pref, state, $4 }'
}

# reported LINES: what REPORT TARGET PORT GROUPS says, through either path.
reported() {
	for each in "$near_generic" "$far_generic"; do
		# A unit attention may be in the way once.
		rtpg "$each" >/dev/null 2>&1
		rtpg "$each" >$a/rtpg
		echo "$1" | cmp -s - $a/rtpg || {
			cat $a/rtpg
			fail "sg_rtpg through $each does not say what is expected"
		}
	done
	report CHECK "sg_rtpg says so through both paths"
}

# stpg PATTERN ARGUMENTS...: sg_stpg says such a line; its exit code is 0 whatever the target answers.
stpg() {
	pattern=$1
	shift
	# A unit attention may be in the way once.
	both_asked
	sg_stpg -v "$@" >$a/stpg 2>&1
	grep -E -q "$pattern" $a/stpg || {
		cat $a/stpg
		fail "sg_stpg $* does not say '$pattern'"
	}
	report CHECK "sg_stpg $*: $pattern"
}

# Implicit: the management changes states.
target_start
paths
kernel_sees active/optimized standby
check "near is preferred" [ "$(cat /sys/block/$near_name/device/preferred_path)" = 1 ]
check "sg_inq: TPGS is implicit" sh -c "sg_inq $near_generic | grep -q 'TPGS=1'"
reported '0x2 0 0x02 0x00
0x1 1 0x00 0x00
0x101 0 0x03 0x00'
says_port() {
	sg_vpd --page=di "$1" | grep -q -i "Target port group: $2"
}
check "VPD page 83h: near's target port group" says_port "$near_generic" 0x1
check "VPD page 83h: far's target port group" says_port "$far_generic" 0x2
stpg 'Invalid opcode' --active --tp=2 "$near_generic"
check_not "a path in standby cannot be read" dd if=/dev/$far_name of=/dev/null bs=4k count=1 iflag=direct
file_system
load_in_turns
load_through "$near_name"

set_to far active
set_to near standby
kernel_sees standby active/optimized
used 2
load_through "$far_name"

set_to near nonoptimized
kernel_sees active/non-optimized active/optimized
used 1
load_through "$near_name"

set_to far unavailable --preferred 1
kernel_sees active/non-optimized unavailable
check "far is preferred" [ "$(cat /sys/block/$far_name/device/preferred_path)" = 1 ]
reported '0x2 1 0x03 0x02
0x1 1 0x01 0x02
0x101 0 0x03 0x00'

# For a moment there is no way at all.
set_to near transitioning
usleep 700000
set_to near active
kernel_sees active/optimized unavailable
used 1
load_through "$near_name"

set_to far active --preferred 0
set_to near offline
kernel_sees offline active/optimized
used 2
load_through "$far_name"
still_loaded
load_is_enough
file_system_is_clean
no_paths

# Explicit: scsi_dh_alua does, when a group is switched to. A new agent goes on with the states.
disk_attributes='expl_alua 1'
reconfigured
target_alua | grep -q 'near.*offline.*management' || fail "a restart of the agent opens a path"
set_to near active --preferred 1
set_to far standby
paths
kernel_sees active/optimized standby
check "sg_inq: TPGS is both" sh -c "sg_inq $near_generic | grep -q 'TPGS=3'"
check "mount" mount -t ext4 "$disk" /mnt
load_in_turns
set_to near standby
used 2
load_through "$far_name"
kernel_sees standby active/optimized
reported '0x2 0 0x00 0x01
0x1 1 0x02 0x02
0x101 0 0x03 0x00'
used 1
load_through "$near_name"
kernel_sees active/optimized active/optimized
both_asked
sg_stpg --state=s --tp=2 "$near_generic" >$a/stpg 2>&1 || fail "sg_stpg: $(cat $a/stpg)"
check "its own nexus is not told" sg_turs "$near_generic"
kernel_sees active/optimized standby
stpg 'byte 6' --state=ao --tp=9 "$near_generic"
stpg 'byte 4 bit 3' --state=o --tp=1 "$near_generic"
stpg 'Set target port groups command failed' --state=ao --tp=257 "$near_generic"
still_loaded
load_is_enough
file_system_is_clean
target_alua >$a/shown
check "lunar alua tells of the initiator" grep -q 'far.*standby.*initiator' $a/shown
check_not "lunar alua: a state that there is not" target_alua set disks near asleep
no_paths
target_stop
