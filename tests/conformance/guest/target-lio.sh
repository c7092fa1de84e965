# Linux's own SRP target, LIO with ib_srpt, as the target under test: what Lunar is compared with, and
# the proof that a scenario that Lunar fails can be passed.
#
# What every target offers: target_start, target_stop; target_disable and target_enable of its port;
# target_add_lun N, target_remove_lun N; target_add_null N, a LUN that forgets what is written to it;
# target_device_is_back after the RDMA device was away; target_says_port up or down; target_memory in KiB, if it can tell; target_logins,
# how often the loop of logins goes round; target_leaves, what of the RDMA device no session may keep;
# id_ext, ioc_guid and service (ADDRESS:PORT) for the initiator. Its LUN 0 is a disk of target_size bytes.

core=/sys/kernel/config/target/core/rd_mcp_0
fabric=/sys/kernel/config/target/srpt
cm_port=5555
service=$address:$cm_port
target_size=$((96 << 20))
target_logins=20
# Not its completion queues: they belong to the device and are lent to sessions.
target_leaves='pd qp cm_id mr'
guid=$(cat /sys/class/infiniband/rxe0/node_guid)
ioc_guid=$(echo "$guid" | tr -d :)
id_ext=$ioc_guid
group=$fabric/$guid/$guid

target_start() {
	# target_core_mod keeps reservations there, and does without when they are missing.
	mkdir -p /var/target/pr /etc/target/pr
	modprobe -a target_core_mod ib_srpt || fail "LIO's modules do not load"
	mkdir -p $fabric || fail "ib_srpt is not there"
	echo $cm_port >$fabric/discovery_auth/rdma_cm_port || fail "ib_srpt does not listen at $cm_port"
	mkdir -p $group/acls/$address || fail "ib_srpt does not serve $guid"
	target_add_lun 0
	target_enable
}

target_add_lun() {
	size=$target_size
	[ "$1" = 0 ] || size=$((4 << 20))
	ram_disk "$1" "rd_pages=$((size / 4096))"
}

target_add_null() {
	ram_disk "$1" "rd_pages=$((target_size / 4096)),rd_nullio=1"
}

# ram_disk LUN PARAMETERS
ram_disk() {
	mkdir -p $core/disk$1 || fail "LIO has no ram disk"
	echo "$2" >$core/disk$1/control
	echo 1 >$core/disk$1/enable || fail "the ram disk cannot be enabled"
	mkdir $group/lun/lun_$1
	ln -s $core/disk$1 $group/lun/lun_$1/disk || fail "LUN $1 cannot be added"
	# With the first it was done for us.
	mkdir $group/acls/$address/lun_$1 2>/dev/null
	ln -s $group/lun/lun_$1 $group/acls/$address/lun_$1/disk 2>/dev/null
}

target_remove_lun() {
	rm -f $group/acls/$address/lun_$1/*disk* 2>/dev/null
	rmdir $group/acls/$address/lun_$1
	rm -f $group/lun/lun_$1/disk
	rmdir $group/lun/lun_$1 $core/disk$1 || fail "LUN $1 cannot be removed"
}

target_enable() {
	echo 1 >$group/enable || fail "the target port cannot be enabled"
}

target_disable() {
	echo 0 >$group/enable || fail "the target port cannot be disabled"
}

# ib_srpt serves a device as soon as it appears, but forgets what it was called.
target_device_is_back() {
	target_stop
	target_start
}

# The kernel says it of the device, and its target nothing.
target_says_port() {
	:
}

# The kernel keeps no account of one of its targets.
target_memory() {
	:
}

target_stop() {
	target_disable
	target_remove_lun 0
	rmdir $group/acls/$address $group ${group%/*} $core $fabric
	wait_for 30 "LIO unloads" without_module ib_srpt
}
